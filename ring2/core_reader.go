package ring2

import (
	"fmt"
	"hash/crc32"
	"sync/atomic"
)

// readerCore reads one ring that an untrusted writer fills. It works on plain
// memory and never blocks. Its caller holds a lock: reading and releasing come
// from different goroutines. Sequence numbers and positions count modulo 2^64.
type readerCore struct {
	ring
	next    uint64       // sequence number of the next record
	release uint64       // everything below was given back
	end     uint64       // data position after the last record
	ended   bool         // end is known: a record was read
	stepEnd uint64       // sequence number after the last capture of the step being read
	held    uint64       // no record from release up to here is one that was published
	slots   []readerSlot // of the records from release to next
	seen    abiDesc      // the copy that is checked and used
}

// readerSlot is what the reader remembers of a record that it has not released.
type readerSlot struct {
	pos    uint64
	inside bool // not a step boundary: the record belongs to the step before it
	lost   bool // claimed, but never published; pos is unknown
}

// corruptError says that a ring cannot be read on: its writer is broken.
type corruptError struct {
	seq   uint64
	cause string
}

func (e *corruptError) Error() string {
	return fmt.Sprintf("ring is corrupt at record %d: %s; the engine must be restarted", e.seq, e.cause)
}

// newReaderCore starts to read at a sequence number, as the snapshot says.
func newReaderCore(r ring, start uint64) *readerCore {
	return &readerCore{ring: r, next: start, release: start, stepEnd: start, held: start,
		slots: make([]readerSlot, len(r.descs))}
}

// poll reads the next record if it is there. The descriptor is copied once and
// only the copy is checked and used: the writer could change the original.
func (c *readerCore) poll(rec *Record) (bool, error) {
	if c.next-c.release >= uint64(len(c.descs)) {
		return false, nil // every slot holds a record that was not released
	}
	shared := c.desc(c.next)
	// Pairs with the release store in publish.
	commit := atomic.LoadUint64(&shared.Commit)
	if commit != c.next+1 {
		// Before its first lap, a slot is zero; later it holds the lap before.
		descs := uint64(len(c.descs))
		if commit != c.next+1-descs && (commit != 0 || c.next >= descs) {
			return false, c.corrupt("its commit word is %d", commit)
		}
		return false, nil
	}
	c.seen = *shared
	d := &c.seen
	if err := c.check(d); err != nil {
		return false, err
	}
	*rec = Record{Seq: d.Seq, Kind: Kind(d.Kind), Flags: d.Flags, CaptureNS: d.CaptureNS, Step: d.Step,
		Layout: d.Layout, Rows: d.Rows}
	if d.Flags&FlagAborted == 0 {
		rec.Payload = c.span(d.DataPos, int(d.DataLen))
	}
	if err := c.checkPayload(d, rec); err != nil {
		return false, err
	}
	if rec.Kind == KindStep && !rec.Aborted() {
		c.stepEnd = stepEnd(rec.Payload, d.Seq, uint64(len(c.descs)))
	}
	c.slots[c.next&c.mask] = readerSlot{pos: d.DataPos, inside: rec.Kind == KindCapture}
	c.end, c.ended = d.DataPos+uint64(alignUp(int(d.DataLen))), true
	c.next++
	return true, nil
}

// check looks at everything in a copied descriptor that memory safety and the
// protocol depend on.
func (c *readerCore) check(d *abiDesc) error {
	size := uint64(alignUp(int(d.DataLen)))
	switch {
	case d.CRC32C != d.checksum():
		return c.corrupt("its descriptor has checksum %#x and says %#x", d.checksum(), d.CRC32C)
	case d.Seq != c.next:
		return c.corrupt("its descriptor says record %d", d.Seq)
	case d.DataPos%abiPayloadAlign != 0 || d.DataPos&c.dataMask+size > uint64(len(c.data)):
		return c.corrupt("its %d bytes at position %d cross the end of the data", d.DataLen, d.DataPos)
	case c.ended && int64(d.DataPos-c.end) < 0:
		return c.corrupt("its position %d lies before %d", d.DataPos, c.end)
	case Kind(d.Kind) != KindCapture && d.DataLen > maxControlRecord:
		return c.corrupt("its payload has %d bytes; of %s at most %d", d.DataLen, Kind(d.Kind), maxControlRecord)
	}
	if first, ok := c.firstHeld(); ok && d.DataPos+size-first > uint64(len(c.data)) {
		return c.corrupt("its %d bytes at position %d overlap a record that was not released", d.DataLen, d.DataPos)
	}
	return nil
}

// firstHeld is the position of the first record that was not released. It looks
// at each lost record once, however many a dead writer left.
func (c *readerCore) firstHeld() (uint64, bool) {
	if c.held-c.release > c.next-c.release {
		c.held = c.release
	}
	for ; c.held != c.next; c.held++ {
		if s := &c.slots[c.held&c.mask]; !s.lost {
			return s.pos, true
		}
	}
	return 0, false
}

// checkPayload checks the bytes of control records, and of others that say so.
func (c *readerCore) checkPayload(d *abiDesc, rec *Record) error {
	if rec.Flags&FlagPayloadCRC == 0 {
		if rec.Kind >= KindModel && rec.Kind <= KindBye && rec.Kind != KindCapture {
			return c.corrupt("%s without a payload checksum", rec.Kind)
		}
		return nil
	}
	if rec.Aborted() {
		return nil
	}
	if sum := crc32.Checksum(rec.Payload, castagnoli); sum != d.PayloadCRC32C {
		return c.corrupt("%s payload has checksum %#x; its descriptor says %#x", rec.Kind, sum, d.PayloadCRC32C)
	}
	return nil
}

func (c *readerCore) corrupt(format string, args ...any) error {
	return &corruptError{c.next, fmt.Sprintf(format, args...)}
}

// stepEnd is the sequence number after the last capture that a STEP announces.
// A payload that does not parse, or announces what the ring cannot hold, has no
// captures: whoever expands it will say what is wrong.
func stepEnd(b []byte, seq, descs uint64) uint64 {
	p := payload{b: b}
	p.take(8)
	n := p.count(int(p.u16()), MaxStepLayouts, stepLayoutBytes, "layouts")
	end := seq + 1
	for range n {
		p.take(4)
		outcome := Reason(p.u8())
		p.take(3)
		if capture := p.u64(); outcome == ReasonNone && capture-seq > end-seq-1 && capture-seq < descs {
			end = capture + 1
		}
	}
	return end
}

// boundary is the last step boundary at or below seq, which lies between release
// and next.
func (c *readerCore) boundary(seq uint64) uint64 {
	if seq == c.next && int64(c.stepEnd-seq) > 0 && seq != c.release {
		seq-- // inside a step whose captures were not all read
	}
	for seq != c.release && seq != c.next && c.slots[seq&c.mask].inside {
		seq--
	}
	return seq
}

// setRelease gives back everything below seq, as far as that was read and ends
// at a step boundary. It never goes backward.
func (c *readerCore) setRelease(seq uint64) {
	if seq-c.release > c.next-c.release {
		return
	}
	if seq = c.boundary(seq); seq == c.release {
		return
	}
	c.release = seq
	// Pairs with the acquire load in writerCore.refresh: our reads of what lies
	// below come before the writer's next writes there.
	atomic.StoreUint64(&c.consumer.ReleaseSeq, seq)
}

// ready says whether a poll would find something. Its load pairs with the store
// in publish, as poll's does.
func (c *readerCore) ready() bool {
	return c.next-c.release < uint64(len(c.descs)) && atomic.LoadUint64(&c.desc(c.next).Commit) == c.next+1
}

// arm asks the writer for a wake-up. It is a read-modify-write on purpose: it and
// the writer's swap in writerCore.wake are ordered, so either our next poll sees
// its commit or it sees our 1.
func (c *readerCore) arm() { atomic.SwapUint32(&c.consumer.NeedWakeup, 1) }

// disarm pairs with writerCore.wake as arm does. A wake-up that was on its way
// finds an eventfd that nobody waits for, and ends the next wait early.
func (c *readerCore) disarm() { atomic.SwapUint32(&c.consumer.NeedWakeup, 0) }

// claimed is the writer's claim, as far as a ring can hold it. Its load pairs
// with the store in writerCore.advance.
func (c *readerCore) claimed() uint64 {
	claim := atomic.LoadUint64(&c.producer.ClaimSeq)
	if claim-c.release > uint64(len(c.descs)) {
		return c.next
	}
	return claim
}

// skipLost passes over records that a dead writer claimed but never published,
// and appends their sequence numbers.
func (c *readerCore) skipLost(lost []uint64) []uint64 {
	claim := c.claimed()
	for int64(claim-c.next) > 0 && atomic.LoadUint64(&c.desc(c.next).Commit) != c.next+1 {
		lost = append(lost, c.next)
		c.slots[c.next&c.mask] = readerSlot{inside: int64(c.stepEnd-c.next) > 0, lost: true}
		c.next++
	}
	return lost
}

// counters reads what the writer counted. The loads pair with the stores in
// writerCore.storeCounters, Writer.tend and Writer.sayGoodbye.
func (c *readerCore) counters() ProducerCounters {
	p := c.producer
	out := ProducerCounters{CapturedRows: atomic.LoadUint64(&p.CapturedRows),
		AbortedRows: atomic.LoadUint64(&p.AbortedRows), Steps: atomic.LoadUint64(&p.Steps),
		BeatNS: atomic.LoadUint64(&p.BeatNS), Closing: atomic.LoadUint32(&p.Closing) != 0}
	for i := range out.DroppedRows {
		out.DroppedRows[i] = atomic.LoadUint64(&p.DroppedRows[i])
	}
	return out
}
