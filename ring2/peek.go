package ring2

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync/atomic"
	"time"
)

// Peek looks at a ring that others use, and never writes to it: neither its writer
// nor its reader can tell. What it shows was true for a moment. Everything is
// copied before it is checked, since it changes meanwhile.
type Peek struct {
	ring
	shown Config
	unmap func()
}

// OpenPeek looks at a ring in memory, which may be mapped for reading only.
func OpenPeek(ctl, data []byte) (*Peek, error) {
	config, err := parseConfig(ctl, uint64(len(data)))
	if err != nil {
		return nil, err
	}
	r, err := ringOn(ctl, ctl[abiConsumerOff:], data, config.DescCount)
	if err != nil {
		return nil, err
	}
	return &Peek{ring: r, shown: config, unmap: func() {}}, nil
}

// Config is what the engine said about itself and its ring.
func (p *Peek) Config() Config { return p.shown }

// Close gives the mapping up. Nothing may be called after it.
func (p *Peek) Close() { p.unmap() }

// PeekState is what the two sides say about themselves.
type PeekState struct {
	Claim, Release uint64
	Producer       ProducerCounters
	ReaderBeatNS   uint64 // CLOCK_MONOTONIC of the reader's last sign of life
	ReaderWaits    bool   // the reader blocks until it is woken
}

// State reads the words of both sides, one after the other.
func (p *Peek) State() PeekState {
	// Release first: then it is not beyond the claim.
	release := atomic.LoadUint64(&p.consumer.ReleaseSeq)
	core := readerCore{ring: p.ring}
	return PeekState{Release: release, Claim: atomic.LoadUint64(&p.producer.ClaimSeq), Producer: core.counters(),
		ReaderBeatNS: atomic.LoadUint64(&p.consumer.BeatNS), ReaderWaits: atomic.LoadUint32(&p.consumer.NeedWakeup) != 0}
}

// Age is how long ago a CLOCK_MONOTONIC time was; 0 for one that is to come.
func Age(ns uint64) time.Duration { return time.Duration(max(0, int64(monotonicNS()-ns))) }

// Sight says what a look at a record found.
type Sight uint8

// The sights.
const (
	SightWhole   Sight = 0
	SightPending Sight = 1 // not committed: claimed a moment ago, still being copied, or lost
	SightGone    Sight = 2 // a later record has its place
	SightTorn    Sight = 3 // it changed during the look, or its writer is broken
)

var sightNames = [...]string{"whole", "pending", "gone", "torn"}

func (s Sight) String() string { return name(sightNames[:], int(s), "sight") }

// Glance is a descriptor as it was for a moment. Payload is nil: see Peek.Payload.
type Glance struct {
	Record
	Bytes int // of the payload
	desc  abiDesc
}

// Look copies the descriptor of a record and checks the copy.
func (p *Peek) Look(seq uint64) (Glance, Sight) {
	shared := p.desc(seq)
	// Pairs with the release store in publish.
	if sight := committed(shared, seq); sight != SightWhole {
		return Glance{}, sight
	}
	d := *shared
	if sight := committed(shared, seq); sight != SightWhole {
		return Glance{}, SightGone
	}
	size := uint64(alignUp(int(d.DataLen)))
	if d.CRC32C != d.checksum() || d.Seq != seq || d.DataPos&p.dataMask+size > uint64(len(p.data)) ||
		Kind(d.Kind) != KindCapture && d.DataLen > maxControlRecord {
		return Glance{}, SightTorn
	}
	return Glance{Bytes: int(d.DataLen), desc: d, Record: Record{Seq: d.Seq, Kind: Kind(d.Kind), Flags: d.Flags,
		CaptureNS: d.CaptureNS, Step: d.Step, Layout: d.Layout, Rows: d.Rows}}, SightWhole
}

func committed(d *abiDesc, seq uint64) Sight {
	switch commit := atomic.LoadUint64(&d.Commit); {
	case commit == seq+1:
		return SightWhole
	case int64(commit-seq-1) > 0:
		return SightGone
	}
	return SightPending
}

// Payload copies the payload of a record into buf, which grows as needed. Bytes
// with a checksum are good when it fits. For others only the reader's word counts:
// before it has released them, the writer does not write there again; afterwards
// they are SightGone.
func (p *Peek) Payload(g *Glance, buf []byte) ([]byte, Sight) {
	if g.Aborted() {
		return buf[:0], SightGone
	}
	d := &g.desc
	buf = append(buf[:0], p.span(d.DataPos, int(d.DataLen))...)
	if g.Flags&FlagPayloadCRC != 0 {
		if crc32.Checksum(buf, castagnoli) != d.PayloadCRC32C {
			return buf[:0], SightGone
		}
		return buf, SightWhole
	}
	// Pairs with the writer's acquire load in writerCore.refresh: it reuses what it
	// has seen released.
	if int64(g.Seq-atomic.LoadUint64(&p.consumer.ReleaseSeq)) < 0 || committed(p.desc(g.Seq), g.Seq) != SightWhole {
		return buf[:0], SightGone
	}
	return buf, SightWhole
}

// ReadJournal reads one segment of a writer's journal, which may be growing: what
// was alive when the segment began, and the control records put since. It calls
// visit for each that got into the ring; payloads are visit's to keep. It ends
// without an error where the segment does, also inside a record.
func ReadJournal(r io.Reader, visit func(Record)) (epoch uint64, err error) {
	b := bufio.NewReaderSize(r, 1<<16)
	if epoch, err = readJournalHeader(b); err != nil {
		return 0, err
	}
	for {
		rec, err := readJournalRecord(b)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return epoch, nil
		}
		if err != nil {
			return epoch, fmt.Errorf("read journal of epoch %016x: %w", epoch, err)
		}
		if rec.flags&ObituaryNeverPut == 0 {
			visit(Record{Seq: rec.seq, Kind: rec.kind, Flags: FlagPayloadCRC, Payload: rec.payload})
		}
	}
}
