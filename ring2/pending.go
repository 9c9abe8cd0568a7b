package ring2

import "sync/atomic"

// States of a detached copy.
const (
	pendingCopying  = 0 // its span may be written
	pendingClosing  = 1 // its descriptor is being published
	pendingDone     = 2 // published by its owner, who writes no more
	pendingStuck    = 3 // published as aborted by the writer; the copy may still write
	pendingReturned = 4 // the stuck copy has completed after all
)

// Pending is a capture whose copy goes on after the step's Commit, as a DMA
// does. Commit or Abort may come from any goroutine, in any order among
// pendings, exactly once, and only after the copy has stopped writing.
type Pending struct {
	writer     *Writer
	desc       *abiDesc
	seq, pos   uint64
	claimNS    uint64
	ledgerRows uint64
	bytes      []byte // whole payload
	offsets    []int  // of the entries in bytes, and the end
	lengths    []int
	state      atomic.Uint32
}

// Span is the memory of one entry's rows.
func (p *Pending) Span(entry int) []byte {
	off := p.offsets[entry]
	return p.bytes[off : off+p.lengths[entry] : off+p.lengths[entry]]
}

// Commit publishes the capture. Of a copy that the writer had given up, it only
// returns the span.
func (p *Pending) Commit() { p.close(0) }

// Abort publishes the capture as failed: its rows are lost and counted.
func (p *Pending) Abort() { p.close(FlagAborted) }

func (p *Pending) close(flags uint16) {
	for !p.state.CompareAndSwap(pendingCopying, pendingClosing) {
		switch s := p.state.Load(); s {
		case pendingStuck:
			p.state.Store(pendingReturned)
			p.leave()
			return
		case pendingDone, pendingReturned:
			panic("BUG: a detached capture was committed or aborted twice")
		}
	}
	if flags&FlagAborted != 0 {
		p.writer.abortedLater.Add(p.ledgerRows)
	}
	p.desc.CaptureNS = monotonicNS()
	publish(p.desc, flags, p.seq)
	p.state.Store(pendingDone)
	p.writer.wakeReader()
	p.leave()
}

func (p *Pending) leave() {
	p.writer.detached.Add(-1)
	p.writer.memory.leave()
}

// writing says whether the copy may still write into its span.
func (p *Pending) writing() bool {
	s := p.state.Load()
	return s != pendingDone && s != pendingReturned
}
