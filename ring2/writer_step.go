package ring2

import (
	"errors"
	"fmt"
	"time"
)

// RaggedBytes gives the size of a ragged entry of a step before its claim.
type RaggedBytes struct {
	Layout int // index in the step's layouts
	Entry  int
	Bytes  int // of all rows, without the offsets
}

// StepCapture is the open step of a writer, valid until Commit. It is owned by
// the goroutine that owns the writer.
type StepCapture struct {
	writer  *Writer
	open    bool
	step    Step // without its ranges
	ranges  int
	plans   []plan
	fates   []captureFate // of the plans
	first   []int         // of each plan, index in offsets
	offsets []int         // of the entries of all plans in their captures
	lengths []int
}

// captureFate is what Commit does with a capture.
type captureFate uint8

const (
	fateCommit captureFate = iota
	fateAbort
	fateDetached // somebody else publishes it
)

// stallRule decides whether a step in mode Complete may wait.
type stallRule struct {
	row       int    // exhausted steps in a row
	stoppedAt uint64 // release word when the last of them ended
	stalls    uint64
	stallNS   uint64
	exhausted uint64
}

// mayWait is false after limit exhausted steps in a row, until the reader moves.
func (r *stallRule) mayWait(limit int, release uint64) bool {
	if r.row >= limit && release != r.stoppedAt {
		r.row = 0
	}
	return r.row < limit
}

func (r *stallRule) note(waited time.Duration, exhausted bool, release uint64) {
	r.stalls++
	r.stallNS += uint64(waited)
	if !exhausted {
		r.row = 0
		return
	}
	r.row++
	r.exhausted++
	r.stoppedAt = release
}

// BeginStep claims a STEP record and one CAPTURE for each layout; bit i of a
// range's mask says that the i-th layout has the range's rows. ragged gives the
// sizes of ragged entries; one that is left out has only empty rows. Whatever
// finds no room is dropped, counted, and named: that is no error. In mode
// Complete it first waits for room, at most the step stall budget. Until Commit,
// the writer takes no other step. It keeps nothing of its arguments.
func (w *Writer) BeginStep(ranges []StepRange, layouts []uint32, ragged ...RaggedBytes) (*StepCapture, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &w.step
	switch {
	case w.closing:
		return nil, errClosed
	case s.open:
		return nil, errors.New("begin step: the step before was not committed")
	}
	if err := s.plan(ranges, layouts, ragged); err != nil {
		return nil, fmt.Errorf("begin step: %w", err)
	}
	w.countLater()
	stepPos, named, fits := w.tryStep()
	if !fits && w.o.Mode == Complete && w.stall.mayWait(w.o.StallLimit, w.core.release) {
		stepPos, named = w.waitForRoom(stepPos, named)
	}
	if !w.memory.enter() {
		return nil, errClosed // while it waited
	}
	s.step.Step = w.nextStep
	w.nextStep++
	w.scratch = AppendStep(w.scratch[:0], Step{Step: s.step.Step, Layouts: s.step.Layouts, Ranges: ranges})
	if named {
		w.journal.append(w.journal.ordinal(), w.core.claim, KindStep, 0, w.scratch)
		w.core.claimStep(s.plans, stepPos, s.step.Step, w.scratch)
		s.writeRaggedTables()
	} else {
		w.journal.append(w.journal.ordinal(), w.core.claim, KindStep, ObituaryNeverPut, w.scratch)
		w.queue.missing.addStep(ranges, s.plans, s.step.Step, ReasonControlFull)
		w.core.countStep(s.plans)
	}
	s.open = true
	return s, nil
}

// plan checks a step and computes what it needs.
func (s *StepCapture) plan(ranges []StepRange, layouts []uint32, ragged []RaggedBytes) error {
	if len(ranges) == 0 || len(ranges) > MaxStepRanges || len(layouts) > MaxStepLayouts {
		return fmt.Errorf("%d ranges and %d layouts; want 1 to %d and at most %d", len(ranges), len(layouts), MaxStepRanges,
			MaxStepLayouts)
	}
	rows := uint64(0)
	for i := range ranges {
		r := &ranges[i]
		rows += uint64(r.Count)
		if r.Count == 0 || r.Position+r.Count < r.Position || int(r.Phase) >= len(phaseNames) ||
			len(layouts) < MaxStepLayouts && r.LayoutMask>>len(layouts) != 0 {
			return fmt.Errorf("range %d has position %d, %d tokens, phase %d and mask %#x for %d layouts", i, r.Position,
				r.Count, r.Phase, r.LayoutMask, len(layouts))
		}
	}
	if rows > maxRows {
		return fmt.Errorf("it has %d token rows; at most %d", rows, maxRows)
	}
	s.plans, s.fates, s.first = s.plans[:0], s.fates[:0], s.first[:0]
	s.offsets, s.lengths, s.step.Layouts = s.offsets[:0], s.lengths[:0], s.step.Layouts[:0]
	for i, id := range layouts {
		l := s.writer.layouts[id]
		if l == nil {
			return fmt.Errorf("layout %d is not defined", id)
		}
		if err := checkRagged(l, i, ragged); err != nil {
			return err
		}
		p := plan{layout: l}
		p.measure(i, ranges, ragged)
		s.plans, s.fates = append(s.plans, p), append(s.fates, fateCommit)
		s.step.Layouts = append(s.step.Layouts, StepLayout{Layout: id})
		s.locate(&p, i, ragged)
	}
	s.ranges = len(ranges)
	return nil
}

func checkRagged(l *Layout, index int, ragged []RaggedBytes) error {
	for _, r := range ragged {
		if r.Layout != index {
			continue
		}
		if r.Entry < 0 || r.Entry >= len(l.Entries) || !l.Entries[r.Entry].Ragged || r.Bytes < 0 || r.Bytes > maxRowBytes {
			return fmt.Errorf("ragged size of %d bytes for entry %d of layout %d: no such ragged entry, or above %d bytes",
				r.Bytes, r.Entry, l.ID, maxRowBytes)
		}
	}
	return nil
}

// locate notes where the entries of a capture lie in its payload.
func (s *StepCapture) locate(p *plan, index int, ragged []RaggedBytes) {
	s.first = append(s.first, len(s.offsets))
	at := 0
	if p.layout.ragged() {
		at = alignUp(8 * len(p.layout.Entries))
	}
	for e := range p.layout.Entries {
		n := p.entryBytes(index, e, ragged)
		s.offsets, s.lengths = append(s.offsets, at), append(s.lengths, n)
		at += alignUp(n)
	}
}

// tryStep decides what fits now. named is false when not even the STEP record
// does: then everything is dropped. fits says whether waiting could not help.
func (w *Writer) tryStep() (stepPos uint64, named, fits bool) {
	s := &w.step
	w.refresh()
	named = w.flush()
	if named {
		stepPos, named = w.core.planStep(s.plans, stepBytes(len(s.plans), s.ranges))
	}
	for i := range s.plans {
		p := &s.plans[i]
		l := &s.step.Layouts[i]
		if !named {
			p.outcome = ReasonControlFull
		}
		if l.Outcome, l.CaptureSeq = p.outcome, 0; p.outcome == ReasonNone {
			l.CaptureSeq = p.seq
		}
	}
	return stepPos, named, named && everythingFits(s.plans)
}

// waitForRoom waits until the step fits or its budget is used up, and returns the
// last plan. The lock is free while it sleeps.
func (w *Writer) waitForRoom(stepPos uint64, named bool) (uint64, bool) {
	start := time.Now()
	nap := 20 * time.Microsecond
	for fits := false; ; {
		waited := time.Since(start)
		if left := w.o.StepStallBudget - waited; fits || left <= 0 || w.closing {
			w.stall.note(waited, !fits, w.core.release)
			return stepPos, named
		}
		w.mu.Unlock()
		time.Sleep(min(nap, w.o.StepStallBudget-waited))
		w.mu.Lock()
		nap = min(2*nap, time.Millisecond)
		stepPos, named, fits = w.tryStep()
	}
}

// writeRaggedTables writes the sizes of entries at the start of captures that
// need them.
func (s *StepCapture) writeRaggedTables() {
	for i := range s.plans {
		p := &s.plans[i]
		if p.outcome != ReasonNone || !p.layout.ragged() {
			continue
		}
		table := s.writer.core.span(p.pos, alignUp(8*len(p.layout.Entries)))
		clear(table)
		for e := range p.layout.Entries {
			order.PutUint64(table[8*e:], uint64(s.lengths[s.first[i]+e]))
		}
	}
}

// Step is the number of the step, from 0 in each epoch.
func (s *StepCapture) Step() uint64 { return s.step.Step }

// Captured says whether the i-th layout of the step has room. If not, it was
// dropped and counted, and needs no copy.
func (s *StepCapture) Captured(i int) bool { return s.plans[i].outcome == ReasonNone }

// Rows is the number of rows of an entry of the i-th layout.
func (s *StepCapture) Rows(i, entry int) int { return s.plans[i].rows(entry) }

// Span is the memory of an entry's rows, in the order of the step's ranges, or
// nil when the layout was dropped. It must be written in full before Commit: it
// holds the bytes of older records. Of a ragged entry it starts with Rows+1
// little-endian u64 offsets into the bytes that follow them.
func (s *StepCapture) Span(i, entry int) []byte {
	p := &s.plans[i]
	if p.outcome != ReasonNone {
		return nil
	}
	at := s.first[i] + entry
	return s.writer.core.span(p.pos+uint64(s.offsets[at]), s.lengths[at])
}

// Abort says that the copy into the i-th layout failed: Commit publishes it as
// such, and its rows are counted. It does nothing for a layout that was dropped.
func (s *StepCapture) Abort(i int) {
	if s.fates[i] == fateCommit {
		s.fates[i] = fateAbort
	}
}

// Detach takes the i-th layout out of the step: its copy goes on after Commit,
// and the returned Pending publishes it. It returns nil when the layout was
// dropped, and panics when it was detached before.
func (s *StepCapture) Detach(i int) *Pending {
	p, w := &s.plans[i], s.writer
	if s.fates[i] == fateDetached {
		panic("BUG: a capture was detached twice")
	}
	if p.outcome != ReasonNone {
		return nil
	}
	first, n := s.first[i], len(p.layout.Entries)
	w.mu.Lock()
	defer w.mu.Unlock()
	s.fates[i] = fateDetached
	d := &Pending{writer: w, desc: w.core.desc(p.seq), seq: p.seq, pos: p.pos, claimNS: w.core.now(),
		ledgerRows: p.ledgerRows, bytes: w.core.span(p.pos, p.bytes),
		offsets: append([]int(nil), s.offsets[first:first+n]...),
		lengths: append([]int(nil), s.lengths[first:first+n]...)}
	w.core.slots[p.seq&w.core.mask].copy = d
	w.detached.Add(1)
	w.memory.hold()
	return d
}

// Commit publishes the captures that were not detached and ends the step.
func (s *StepCapture) Commit() {
	w := s.writer
	w.mu.Lock()
	defer w.mu.Unlock()
	if !s.open {
		panic("BUG: a step was committed twice")
	}
	for i := range s.plans {
		if p := &s.plans[i]; p.outcome == ReasonNone && s.fates[i] != fateDetached {
			w.core.finish(p, s.fates[i] == fateAbort)
		}
	}
	w.core.endStep()
	w.wakeReader()
	s.open = false
	w.memory.leave()
}
