package ring2

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// begin starts a step and fails the test on an error.
func begin(t *testing.T, w *Writer, ranges []StepRange, layouts []uint32) *StepCapture {
	t.Helper()
	s, err := w.BeginStep(ranges, layouts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// write fills the i-th layout of a step.
func write(s *StepCapture, i int, ranges []StepRange) {
	l := s.plans[i].layout
	for e := range l.Entries {
		fillEntry(s.Span(i, e), l, i, e, ranges)
	}
}

// readAll polls a session without waiting.
func readAll(t *testing.T, s *Session) []Record {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Record
	for {
		var r Record
		ok, err := s.core.poll(&r)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return out
		}
		out = append(out, r)
	}
}

// quiet is a writer whose background does nothing, so that a test decides when
// things happen.
func quiet(t *testing.T, o WriterOptions) *heapPair {
	t.Helper()
	p := newHeapPair(t, o, 0, 0)
	p.w.stop()
	p.w.background.Wait()
	return p
}

func TestCapturesNeverTakeTheRoomOfControlRecords(t *testing.T) {
	for _, bytes := range []int{minDataBytes, 8 << 20} { // out of bytes, and out of descriptors
		p := quiet(t, WriterOptions{DescCount: 64, DataBytes: bytes})
		id, err := p.w.DefineLayout([]LayoutEntry{{Hook: "h", DType: U8, Shape: []uint32{8 << 10}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.w.OpenRequest(RequestOpen{Number: 1}); err != nil {
			t.Fatal(err)
		}
		ranges := []StepRange{{Number: 1, Count: 1, LayoutMask: 1}}
		dropped := 0
		for dropped == 0 {
			s := begin(t, p.w, ranges, []uint32{id})
			if !s.Captured(0) {
				dropped++
			}
			s.Commit()
		}
		before := p.w.Stats()
		if before.DroppedRows[ReasonControlFull] != 0 {
			t.Fatalf("the STEP of the first dropped capture did not fit: %+v", before)
		}
		for n := range uint64(3) {
			if err := p.w.OpenRequest(RequestOpen{Number: 10 + n}); err != nil {
				t.Fatal(err)
			}
			begin(t, p.w, ranges, []uint32{id}).Commit()
		}
		if s := p.w.Stats(); s.PendingControl != 0 || s.DroppedRows[ReasonControlFull] != 0 {
			t.Errorf("control records wait although captures leave them a reserve: %+v", s)
		}
	}
}

func TestWhatNeverFitsIsDroppedAsOversize(t *testing.T) {
	p := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes, Mode: Complete, StepStallBudget: time.Hour})
	id, err := p.w.DefineLayout([]LayoutEntry{{Hook: "h", DType: U8, Shape: []uint32{minDataBytes / 2}}})
	if err != nil {
		t.Fatal(err)
	}
	s := begin(t, p.w, []StepRange{{Number: 1, Count: 1, LayoutMask: 1}}, []uint32{id})
	if s.Captured(0) {
		t.Fatal("a record of half the ring was taken; it could wait for ever for its place")
	}
	s.Commit()
	if got := p.w.Stats(); got.DroppedRows[ReasonOversize] != 1 || got.Stalls != 0 {
		t.Errorf("%+v", got)
	}
}

func TestCompleteModeStopsWaitingUntilTheReaderMoves(t *testing.T) {
	p := quiet(t, WriterOptions{DescCount: 16, DataBytes: minDataBytes, Mode: Complete, StallLimit: 3,
		StepStallBudget: time.Millisecond})
	ranges, layouts := smallStep(t, p.w)
	for p.w.Stats().ExhaustedSteps == 0 {
		begin(t, p.w, ranges, layouts).Commit()
	}
	for range 10 {
		begin(t, p.w, ranges, layouts).Commit()
	}
	got := p.w.Stats()
	if got.Stalls != 3 || got.ExhaustedSteps != 3 {
		t.Fatalf("%d steps waited and %d used up their budget; want 3, then no more", got.Stalls, got.ExhaustedSteps)
	}
	records := readAll(t, p.s)
	p.s.Release(records[len(records)-1].Seq + 1)
	s := begin(t, p.w, ranges, layouts)
	if !s.Captured(0) {
		t.Error("a step was dropped although the reader moved")
	}
	s.Commit()
	for p.w.Stats().ExhaustedSteps == 3 {
		begin(t, p.w, ranges, layouts).Commit()
	}
	if got := p.w.Stats(); got.Stalls != 4 {
		t.Errorf("%d steps waited; want a fourth after the reader moved", got.Stalls)
	}
}

func TestCompleteModeNeverWaitsLongerThanItsBudgetSays(t *testing.T) {
	const budget = 3 * time.Millisecond
	p := quiet(t, WriterOptions{DescCount: 16, DataBytes: minDataBytes, Mode: Complete, StallLimit: 1 << 30,
		StepStallBudget: budget})
	ranges, layouts := smallStep(t, p.w)
	for range 40 {
		begin(t, p.w, ranges, layouts).Commit()
	}
	// Each wait ends by its own count: it naps no longer than what is left, so
	// that only the scheduler can add to it.
	got := p.w.Stats()
	if got.ExhaustedSteps == 0 || got.ExhaustedSteps != got.Stalls {
		t.Fatalf("%d of %d waits used up their budget; nobody made room", got.ExhaustedSteps, got.Stalls)
	}
	if got.StallNS < got.Stalls*uint64(budget) {
		t.Errorf("%d waits took %d ns together: less than the budget, so they gave up too early", got.Stalls, got.StallNS)
	}
}

func TestABudgetIsNotSpentWhereWaitingHelps(t *testing.T) {
	p := quiet(t, WriterOptions{DescCount: 16, DataBytes: minDataBytes, Mode: Complete, StepStallBudget: 20 * time.Second})
	ranges, layouts := smallStep(t, p.w)
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			if records := readAll(t, p.s); len(records) > 0 {
				p.s.Release(records[len(records)-1].Seq + 1)
			}
			time.Sleep(100 * time.Microsecond)
		}
	}()
	for range 300 {
		begin(t, p.w, ranges, layouts).Commit()
	}
	stop.Store(true)
	<-done
	if got := p.w.Stats(); got.ExhaustedSteps != 0 || got.DroppedRows != [ReasonCount]uint64{} {
		t.Errorf("a reader that moves did not save the steps: %+v", got)
	}
}

func TestReleaseWordsThatMakeNoSenseAreRefusedAndCounted(t *testing.T) {
	p := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes})
	ranges, layouts := smallStep(t, p.w)
	begin(t, p.w, ranges, layouts).Commit()
	begin(t, p.w, ranges, layouts).Commit()
	word := &p.w.core.consumer.ReleaseSeq
	good := p.w.core.claim - 2 // the second STEP
	atomic.StoreUint64(word, good)
	if got := p.w.Stats(); got.Release != good || got.RefusedReleases != 0 {
		t.Fatalf("a step boundary was refused: %+v", got)
	}
	past := p.w.core.claim + 3
	for i, bad := range []uint64{good - 1, 0, past, good + 1, ^uint64(0), 1 << 63} {
		atomic.StoreUint64(word, bad)
		p.w.Stats()
		if got := p.w.Stats(); got.Release != good || got.RefusedReleases != uint64(i+1) {
			t.Fatalf("release word %d after %d: %+v", bad, good, got)
		}
	}
	atomic.StoreUint64(word, past)
	for range 3 {
		begin(t, p.w, ranges, layouts).Commit()
	}
	if got := p.w.Stats(); got.Release != good {
		t.Errorf("the claim passed a word that was refused, and now it counts: released %d", got.Release)
	}
}

func TestALateCopyNeverLandsInSomebodyElsesBytes(t *testing.T) {
	p := quiet(t, WriterOptions{DescCount: 32, DataBytes: minDataBytes, CopyTimeout: time.Nanosecond})
	id, err := p.w.DefineLayout([]LayoutEntry{{Hook: "h", DType: U8, Shape: []uint32{8 << 10}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.w.OpenRequest(RequestOpen{Number: 1}); err != nil {
		t.Fatal(err)
	}
	ranges := []StepRange{{Number: 1, Count: 1, LayoutMask: 1}}
	s := begin(t, p.w, ranges, []uint32{id})
	late := s.Detach(0)
	s.Commit()
	p.w.tend(true)
	if got := p.w.Stats(); got.StuckCopies != 1 || got.AbortedRows != 1 {
		t.Fatalf("the copy was not given up: %+v", got)
	}
	c := newChecker(t, p.s)
	for lap := range 200 { // several laps around the data
		s := begin(t, p.w, ranges, []uint32{id})
		if s.Captured(0) {
			write(s, 0, ranges)
		}
		for i := range late.Span(0) {
			late.Span(0)[i] = 0xee // the DMA is still running
		}
		s.Commit()
		for _, r := range readAll(t, p.s) {
			c.record(&r)
			p.s.Release(r.Seq + 1)
		}
		if lap == 100 {
			if got := p.w.Stats(); got.QuarantinedBytes != 8<<10 {
				t.Fatalf("%d bytes are in quarantine; want the copy's 8192", got.QuarantinedBytes)
			}
		}
	}
	late.Commit()
	p.w.tend(true)
	got := p.w.Stats()
	if got.QuarantinedBytes != 0 || got.StuckCopies != 1 {
		t.Errorf("after the copy completed: %+v", got)
	}
	c.balance(got)
	if c.committed == 0 || c.aborted != 1 {
		t.Errorf("%d rows committed, %d aborted", c.committed, c.aborted)
	}
}

func TestACopyInTimeCommitsAfterItsStep(t *testing.T) {
	p := quiet(t, WriterOptions{DescCount: 32, DataBytes: minDataBytes})
	ranges, layouts := smallStep(t, p.w)
	s := begin(t, p.w, ranges, layouts)
	late := s.Detach(0)
	s.Commit()
	next := begin(t, p.w, ranges, layouts)
	write(next, 0, ranges)
	next.Commit()
	c := newChecker(t, p.s)
	for _, r := range readAll(t, p.s) {
		c.record(&r)
	}
	if c.committed != 0 {
		t.Fatal("the reader passed a capture that was not committed")
	}
	for e := range denseLayout {
		fillEntry(late.Span(e), s.plans[0].layout, 0, e, ranges)
	}
	late.Commit()
	for _, r := range readAll(t, p.s) {
		c.record(&r)
	}
	c.balance(p.w.Stats())
}

func TestACopyThatIsClosedTwiceIsABug(t *testing.T) {
	p := quiet(t, WriterOptions{DescCount: 32, DataBytes: minDataBytes})
	ranges, layouts := smallStep(t, p.w)
	s := begin(t, p.w, ranges, layouts)
	c := s.Detach(0)
	s.Commit()
	c.Commit()
	for name, again := range map[string]func(){"commit": c.Commit, "abort": c.Abort, "step": s.Commit} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s twice went unnoticed", name)
				}
			}()
			again()
		}()
	}
}

func TestWrongCallsAreErrors(t *testing.T) {
	p := quiet(t, WriterOptions{DescCount: 32, DataBytes: minDataBytes})
	w := p.w
	ranges, layouts := smallStep(t, w)
	dup := RequestOpen{Number: 1}
	many := make([]Label, MaxLabels+1)
	long := string(make([]byte, MaxTextBytes+1))
	for name, err := range map[string]error{
		"number twice":      w.OpenRequest(dup),
		"labels":            w.OpenRequest(RequestOpen{Number: 2, Labels: many}),
		"long id":           w.OpenRequest(RequestOpen{Number: 2, ExternalID: long}),
		"long label":        w.OpenRequest(RequestOpen{Number: 2, Labels: []Label{{Value: long}}}),
		"long model":        w.SetModel(Model{Name: long}),
		"end of nothing":    w.EndRequest(RequestEnd{Number: 2}),
		"amend of too much": w.Amend(Amend{Ranges: make([]AmendRange, MaxStepRanges+1)}),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := w.OpenRequest(RequestOpen{Number: 3, Labels: fullLabels()}); err == nil {
		t.Error("a request above the bound of control records was taken")
	}
	if w.alive.requests[3] != nil || w.alive.requests[2] != nil {
		t.Error("a request that was refused is alive")
	}
	for name, r := range map[string]StepRange{
		"no tokens": {Number: 1}, "position": {Number: 1, Position: ^uint32(0), Count: 2},
		"mask": {Number: 1, Count: 1, LayoutMask: 2}, "phase": {Number: 1, Count: 1, Phase: 9},
		"rows": {Number: 1, Count: maxRows + 1},
	} {
		if _, err := w.BeginStep([]StepRange{r}, layouts); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := w.BeginStep(ranges, []uint32{7}); err == nil {
		t.Error("a layout that does not exist was taken")
	}
	if _, err := w.BeginStep(ranges, layouts, RaggedBytes{Layout: 0, Entry: 0, Bytes: 1}); err == nil {
		t.Error("a ragged size of an entry that is not ragged was taken")
	}
	s := begin(t, w, ranges, layouts)
	if _, err := w.BeginStep(ranges, layouts); err == nil {
		t.Error("two steps are open")
	}
	s.Commit()
	if err := w.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := w.BeginStep(ranges, layouts); !errors.Is(err, errClosed) {
		t.Errorf("a step after Close: %v", err)
	}
	if err := w.OpenRequest(RequestOpen{Number: 9}); !errors.Is(err, errClosed) {
		t.Errorf("a request after Close: %v", err)
	}
}

func fullLabels() []Label {
	var out []Label
	for range MaxLabels {
		out = append(out, Label{Key: string(make([]byte, 1000)), Value: string(make([]byte, 1000))})
	}
	return out
}

func TestOptionsThatMakeNoRingAreRefused(t *testing.T) {
	for name, o := range map[string]WriterOptions{
		"descriptors": {DescCount: 100}, "few": {DescCount: 4}, "bytes": {DataBytes: 3 << 20}, "small": {DataBytes: 4096},
		"rank": {Rank: 2, RankCount: 2}, "negative": {Rank: -1}, "ranks": {RankCount: maxRanks + 1},
		"instance": {EngineInstance: string(make([]byte, 64))}, "mode": {Mode: 2}, "budget": {StepStallBudget: -1},
	} {
		if w, err := NewWriter(o); err == nil {
			t.Errorf("%s: a ring was made", name)
			_ = w.Close(context.Background())
		}
	}
}

// A reader that went away while records waited must not leave a hole in their
// order: what a record refers to always comes first.
func TestWhatWaitedForRoomComesInAnOrderThatMakesSense(t *testing.T) {
	p := quiet(t, WriterOptions{DescCount: 8, DataBytes: minDataBytes})
	ranges, layouts := smallStep(t, p.w)
	for range 10 {
		s := begin(t, p.w, ranges, layouts)
		if s.Captured(0) {
			write(s, 0, ranges)
		}
		s.Commit()
		ranges[0].Position += ranges[0].Count
	}
	if err := p.w.OpenRequest(RequestOpen{Number: 2}); err != nil {
		t.Fatal(err)
	}
	begin(t, p.w, []StepRange{{Number: 2, Count: 5, LayoutMask: 1}}, layouts).Commit()
	if err := p.w.EndRequest(RequestEnd{Number: 2}); err != nil {
		t.Fatal(err)
	}
	if err := p.w.EndRequest(RequestEnd{Number: 2}); err == nil {
		t.Error("a request ended twice")
	}
	if got := p.w.Stats(); got.PendingControl == 0 {
		t.Fatalf("nothing waits: %+v", got)
	}
	c := newChecker(t, p.s)
	for range 20 {
		for _, r := range readAll(t, p.s) {
			c.record(&r)
			p.s.Release(r.Seq + 1)
		}
		p.w.tend(false)
	}
	c.balance(p.w.Stats())
	if !c.ended[2] || c.dropped[ReasonControlFull] == 0 {
		t.Errorf("ended %v, dropped %v", c.ended, c.dropped)
	}
}

func TestMissingRangesBeyondTheirBoundAreMergedOrCounted(t *testing.T) {
	var m missingSet
	l := &Layout{Entries: denseLayout}
	plans := []plan{{layout: l}}
	for n := range uint64(maxMissing + 100) {
		m.addStep([]StepRange{{Number: n, Position: 4, Count: 2, LayoutMask: 1}}, plans, n, ReasonControlFull)
	}
	if len(m.ranges) != maxMissing || m.unnamed != 100*4 {
		t.Fatalf("%d ranges, %d rows unnamed; want %d and 400", len(m.ranges), m.unnamed, maxMissing)
	}
	m.addStep([]StepRange{{Number: 5, Position: 40, Count: 2, LayoutMask: 1}}, plans, 9999, ReasonControlFull)
	if r := m.ranges[5]; r.Position != 4 || r.Count != 38 || r.Rows != 8 || r.LastStep != 9999 {
		t.Errorf("merged into %+v; want the hull 4 to 42 with 8 rows", r)
	}
	m.forget(256)
	m.addStep([]StepRange{{Number: 300, Position: 6, Count: 1, LayoutMask: 1}}, plans, 1, ReasonControlFull)
	if r := m.ranges[300-256]; r.Number != 300 || r.Count != 3 {
		t.Errorf("after the first ones were named, %+v", r)
	}
}

func TestMemoryStaysUntilTheOpenStepAndLateCopiesAreDone(t *testing.T) {
	w := newTestWriter(t, WriterOptions{})
	ranges, layouts := smallStep(t, w)
	before := ringMappings(t)
	first := begin(t, w, ranges, layouts)
	late := first.Detach(0)
	first.Commit()
	open := begin(t, w, ranges, layouts)
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	write(open, 0, ranges)
	open.Commit()
	if ringMappings(t) != before {
		t.Fatal("the memory went before the late copy was done")
	}
	for e := range denseLayout {
		clear(late.Span(e))
	}
	late.Commit()
	if ringMappings(t) != before-2 {
		t.Error("the memory stays")
	}
	w.Stats()
}
