package ring2

import (
	"hash/crc32"
	"math"
	"sync/atomic"
)

// writerCore claims and publishes records in one ring. It works on plain memory,
// never blocks and has one owner; only Pending, a detached copy, comes from
// other goroutines. Sequence numbers and positions count modulo 2^64, so every
// comparison is one of differences.
type writerCore struct {
	ring
	now func() uint64 // CLOCK_MONOTONIC

	claim   uint64 // next sequence number
	head    uint64 // next data position, aligned
	tail    uint64 // slots below are reusable: released, and their copies completed
	tailPos uint64 // data below is reusable
	release uint64 // last release word that was accepted
	refused uint64 // last release word that was refused
	open    bool   // between beginStep and endStep
	openSeq uint64 // first sequence number of the open step
	slots   []writerSlot
	holes   []hole

	reserveDescs, reserveBytes uint64
	counters                   counters
}

// counters are the writer's own; rows are rows of the ledger.
type counters struct {
	capturedRows, abortedRows, steps, refusedReleases, stuckCopies uint64
	droppedRows                                                    [ReasonCount]uint64
}

// writerSlot is what the writer remembers of a claimed descriptor.
type writerSlot struct {
	kind Kind
	end  uint64   // data position after the record
	copy *Pending // detached copy that may still write, else nil
}

// hole is the span of a stuck copy that the ring has moved past.
type hole struct {
	off, end uint64 // in data
	copy     *Pending
}

// Bounds of quarantined spans. At either bound, the stuck span is not moved past
// and the ring drops captures when it is full.
const (
	maxHoles         = 64
	maxHolesFraction = 4 // of data_bytes
)

// newWriterCore starts a ring at sequence number and data position zero, or, in
// tests, near the end of their ranges. start is where both begin.
func newWriterCore(r ring, c Config, now func() uint64, startSeq, startPos uint64) *writerCore {
	core := &writerCore{ring: r, now: now, claim: startSeq, tail: startSeq, release: startSeq, refused: startSeq,
		head: startPos, tailPos: startPos, slots: make([]writerSlot, c.DescCount),
		reserveDescs: c.ReserveDescs, reserveBytes: c.ReserveBytes}
	if startSeq != 0 {
		// Zeroed commit words differ from what the first lap publishes only
		// when that lap starts at zero.
		for i := range c.DescCount {
			atomic.StoreUint64(&r.desc(startSeq+i).Commit, startSeq+i+1-c.DescCount)
		}
	}
	atomic.StoreUint64(&r.consumer.ReleaseSeq, startSeq)
	atomic.StoreUint64(&r.producer.ClaimSeq, startSeq)
	r.initConfig(c)
	return core
}

// refresh takes the reader's release word and reclaims what it frees. A word
// that decreases, passes the claim or stops inside a step is refused.
func (c *writerCore) refresh() {
	// Pairs with the release store in readerCore.setRelease: the reader is done
	// with everything below.
	r := atomic.LoadUint64(&c.consumer.ReleaseSeq)
	switch {
	case r == c.release || r == c.refused:
		// A word that was refused stays refused: the claim may pass it later.
	case r-c.release > c.claim-c.release || r != c.claim && c.slots[r&c.mask].kind == KindCapture:
		c.refused = r
		c.counters.refusedReleases++
	default:
		c.release, c.refused = r, r
	}
	c.reclaim()
}

// reclaim moves the tail over released records whose own copies have completed.
func (c *writerCore) reclaim() {
	for i := 0; i < len(c.holes); {
		if c.holes[i].copy.writing() {
			i++
			continue
		}
		c.holes = append(c.holes[:i], c.holes[i+1:]...)
	}
	limit := c.release
	if c.open && limit-c.tail > c.openSeq-c.tail {
		limit = c.openSeq
	}
	for c.tail != limit {
		s := &c.slots[c.tail&c.mask]
		if s.copy != nil && s.copy.writing() && !c.quarantine(s.copy) {
			return
		}
		s.copy = nil
		c.tailPos = s.end
		c.tail++
	}
	if c.tail == c.claim {
		c.tailPos = c.head
	}
}

// quarantine takes the span of a stuck copy out of use, so that the ring can
// move past it although the copy may still write there.
func (c *writerCore) quarantine(p *Pending) bool {
	if p.state.Load() != pendingStuck {
		return false
	}
	used := uint64(len(p.bytes))
	for _, h := range c.holes {
		used += h.end - h.off
	}
	if len(c.holes) >= maxHoles || used > uint64(len(c.data))/maxHolesFraction {
		return false
	}
	off := p.pos & c.dataMask
	c.holes = append(c.holes, hole{off: off, end: off + uint64(alignUp(len(p.bytes))), copy: p})
	return true
}

func (c *writerCore) quarantinedBytes() uint64 {
	n := uint64(0)
	for _, h := range c.holes {
		n += h.end - h.off
	}
	return n
}

// cursor is where the next record would go.
type cursor struct{ claim, head uint64 }

// maxRecordBytes is the largest record that always fits into an empty ring,
// whatever its start.
func (c *writerCore) maxRecordBytes() uint64 {
	return min((uint64(len(c.data))-c.reserveBytes)/2, math.MaxUint32&^(abiPayloadAlign-1))
}

// place finds room for a record of n bytes at the cursor. Only control records
// may use the reserve.
func (c *writerCore) place(at cursor, n uint64, control bool) (pos uint64, why Reason) {
	size, spare, limit := uint64(alignUp(int(n))), c.reserveDescs, uint64(len(c.data))-c.reserveBytes
	if size > c.maxRecordBytes() {
		return 0, ReasonOversize
	}
	if control {
		spare, limit = 0, uint64(len(c.data))
	}
	if at.claim-c.tail+spare >= uint64(len(c.descs)) {
		return 0, ReasonNoSlot
	}
	pos = c.around(at.head, size)
	if pos+size-c.tailPos > limit {
		return 0, ReasonNoSpace
	}
	return pos, ReasonNone
}

// around moves a position forward until size bytes there neither cross the end
// of data nor touch a hole. It gives up after two laps, which never fit.
func (c *writerCore) around(pos, size uint64) uint64 {
	for start := pos; pos-start <= 2*uint64(len(c.data)); {
		off := pos & c.dataMask
		next := off
		if off+size > uint64(len(c.data)) {
			next = uint64(len(c.data))
		}
		for _, h := range c.holes {
			if off < h.end && h.off < off+size {
				next = max(next, h.end)
			}
		}
		if next == off {
			return pos
		}
		pos += next - off
	}
	return pos
}

// take claims the record that place found and fills its descriptor, except for
// what publish adds.
func (c *writerCore) take(at *cursor, pos uint64, n int, kind Kind, step uint64) (uint64, *abiDesc) {
	seq := at.claim
	d := c.desc(seq)
	d.Seq, d.DataPos, d.DataLen, d.Kind, d.Flags = seq, pos, uint32(n), uint16(kind), 0
	d.CaptureNS, d.Step, d.Layout, d.Rows, d.PayloadCRC32C = 0, step, 0, 0, 0
	if kind != KindCapture {
		d.CaptureNS = c.now() // That of a capture comes with its publication.
	}
	at.claim, at.head = seq+1, pos+uint64(alignUp(n))
	c.slots[seq&c.mask] = writerSlot{kind: kind, end: at.head}
	return seq, d
}

// advance makes the claims up to the cursor known.
func (c *writerCore) advance(at cursor) {
	c.claim, c.head = at.claim, at.head
	// Pairs with the load in readerCore.claimed, mostly after our death, to know
	// what was under way. It is stored before any commit below it.
	atomic.StoreUint64(&c.producer.ClaimSeq, at.claim)
}

// publish seals a descriptor and shows it to the reader.
func publish(d *abiDesc, flags uint16, seq uint64) {
	d.Flags |= flags
	d.CRC32C = d.checksum()
	// Pairs with the acquire load of commit in readerCore.poll: whoever sees
	// seq+1 sees descriptor and payload.
	atomic.StoreUint64(&d.Commit, seq+1)
}

// fitsControl says whether putControl would succeed.
func (c *writerCore) fitsControl(n int) bool {
	_, why := c.place(cursor{c.claim, c.head}, uint64(n), true)
	return why == ReasonNone
}

// resetReader takes back what a dead reader left in its zone. The next reader
// has not started: nobody pairs with these stores yet.
func (c *writerCore) resetReader() {
	c.refresh()
	c.refused = c.release
	atomic.StoreUint64(&c.consumer.ReleaseSeq, c.release)
	atomic.SwapUint32(&c.consumer.NeedWakeup, 0)
}

// putControl writes a whole control record. It fails when not even the reserve
// has room.
func (c *writerCore) putControl(kind Kind, step uint64, payload []byte) (uint64, bool) {
	at := cursor{c.claim, c.head}
	pos, why := c.place(at, uint64(len(payload)), true)
	if why != ReasonNone {
		return 0, false
	}
	seq, d := c.takeControl(&at, pos, kind, step, payload)
	c.advance(at)
	publish(d, FlagPayloadCRC, seq)
	return seq, true
}

func (c *writerCore) takeControl(at *cursor, pos uint64, kind Kind, step uint64, payload []byte) (uint64, *abiDesc) {
	seq, d := c.take(at, pos, len(payload), kind, step)
	copy(c.span(pos, len(payload)), payload)
	d.PayloadCRC32C = crc32.Checksum(payload, castagnoli)
	return seq, d
}

// storeCounters shows the counters to the reader, which reconciles with them
// when we die.
func (c *writerCore) storeCounters() {
	p := c.producer // each store pairs with a load in readerCore.counters
	atomic.StoreUint64(&p.CapturedRows, c.counters.capturedRows)
	for i := range c.counters.droppedRows {
		atomic.StoreUint64(&p.DroppedRows[i], c.counters.droppedRows[i])
	}
	atomic.StoreUint64(&p.AbortedRows, c.counters.abortedRows)
	atomic.StoreUint64(&p.Steps, c.counters.steps)
}

// wake says whether the reader blocks and must be woken. It is a
// read-modify-write on purpose: it and the reader's swap in readerCore.arm are
// ordered, so either the reader's re-check sees our commit or we see its 1.
func (c *writerCore) wake() bool { return atomic.SwapUint32(&c.consumer.NeedWakeup, 0) == 1 }
