package ring2

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// opened is a writer and a listener on a real socket.
type opened struct {
	l    *Listener
	path string
}

func listen(t *testing.T, o ListenerOptions) *opened {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	o.Logger = silent
	l, err := Listen(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &opened{l, path}
}

func accept(t *testing.T, l *Listener) *Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := l.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func newTestWriter(t *testing.T, o WriterOptions) *Writer {
	t.Helper()
	if o.DescCount == 0 {
		o.DescCount, o.DataBytes = 64, minDataBytes
	}
	o.Logger = silent
	w, err := NewWriter(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = w.Close(ctx)
	})
	return w
}

// closeSoon closes a writer whose reader keeps up.
func closeSoon(t *testing.T, w *Writer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := w.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestStepsArriveOverTheSocketInBothWaitModes(t *testing.T) {
	for _, mode := range []WaitMode{WaitPoll, WaitEvent} {
		o := listen(t, ListenerOptions{Name: "agent-1", Wait: mode})
		w := newTestWriter(t, WriterOptions{Socket: o.path, EngineInstance: "e-1", Rank: 1, RankCount: 2,
			DescCount: 64, DataBytes: minDataBytes, Mode: Complete, StepStallBudget: 10 * time.Second})
		s := accept(t, o.l)
		c := s.Config()
		if c.EngineInstance != "e-1" || c.Rank != 1 || c.RankCount != 2 || c.Epoch != w.Epoch() || c.Mode != Complete {
			t.Errorf("config is %+v", c)
		}
		ranges, layouts := smallStep(t, w)
		go func() {
			for n := range 300 {
				st, err := w.BeginStep(ranges, layouts)
				if err != nil {
					t.Error(err)
					return
				}
				write(st, 0, ranges)
				st.Commit()
				if n%100 == 99 {
					time.Sleep(150 * time.Millisecond) // long enough to make a polling reader block
				}
			}
			closeSoon(t, w)
		}()
		check := newChecker(t, s)
		check.drain(s, true)
		check.balance(w.Stats())
		if !check.bye || check.committed != 300*7 {
			t.Errorf("bye %v, %d rows", check.bye, check.committed)
		}
		if got := s.Producer(); got.CapturedRows != 300*7 || got.Steps != 300 || !got.Closing || got.BeatNS == 0 {
			t.Errorf("the writer's counters after its end: %+v", got)
		}
		if s.ClaimSeq() != s.ReleaseSeq() {
			t.Errorf("claimed %d, released %d", s.ClaimSeq(), s.ReleaseSeq())
		}
	}
}

func TestReleaseStopsAtStepBoundaries(t *testing.T) {
	p := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes})
	ranges, layouts := smallStep(t, p.w) // records 0, 1
	two := []uint32{layouts[0], layouts[0], layouts[0]}
	begin(t, p.w, ranges, two).Commit() // 2 STEP, 3 to 5 CAPTURE
	open := begin(t, p.w, ranges, two)  // 6 STEP, 7 to 9 CAPTURE
	p.s.Release(3)
	if got := p.s.ReleaseSeq(); got != 0 {
		t.Errorf("released %d although nothing was read", got)
	}
	readAll(t, p.s) // up to 6: its captures are not committed
	for _, x := range []struct{ ask, want uint64 }{
		{1, 1}, {0, 1}, {3, 2}, {5, 2}, {2, 2}, {6, 6}, {7, 6}, {99, 6}, {6, 6},
	} {
		p.s.Release(x.ask)
		if got := p.s.ReleaseSeq(); got != x.want {
			t.Errorf("release of %d gave %d; want %d", x.ask, got, x.want)
		}
		if st := p.w.Stats(); st.RefusedReleases != 0 || st.Release != x.want {
			t.Errorf("the writer refused: %+v", st)
		}
	}
	open.Commit()
	readAll(t, p.s)
	p.s.Release(9)
	if got := p.s.ReleaseSeq(); got != 6 {
		t.Errorf("released %d in the middle of a step", got)
	}
	p.s.Release(10)
	if got := p.w.Stats(); got.Release != 10 {
		t.Errorf("the whole step was not released: %d", got.Release)
	}
}

// named says what a session's snapshot names.
func named(t *testing.T, s *Session) []string {
	t.Helper()
	var out []string
	for _, r := range s.Snapshot() {
		m, modelErr := ParseModel(r.Payload)
		l, layoutErr := ParseLayout(r.Payload)
		open, openErr := ParseRequestOpen(r.Payload)
		switch {
		case r.Kind == KindModel && modelErr == nil:
			out = append(out, "model "+m.Name)
		case r.Kind == KindLayout && layoutErr == nil:
			out = append(out, fmt.Sprint("layout ", l.ID))
		case r.Kind == KindRequestOpen && openErr == nil:
			out = append(out, fmt.Sprint("request ", open.Number))
		default:
			t.Errorf("the snapshot holds a %s that does not parse", r.Kind)
		}
	}
	return out
}

func TestASecondAgentReadsAgainFromTheLastRelease(t *testing.T) {
	o := listen(t, ListenerOptions{})
	w := newTestWriter(t, WriterOptions{Socket: o.path})
	first := accept(t, o.l)
	if err := w.SetModel(Model{Name: "old"}); err != nil {
		t.Fatal(err)
	}
	if err := w.SetModel(Model{Name: "m"}); err != nil {
		t.Fatal(err)
	}
	ranges, layouts := smallStep(t, w) // request 1
	for n := uint64(2); n <= 4; n++ {
		if err := w.OpenRequest(RequestOpen{Number: n, ExternalID: "r"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.EndRequest(RequestEnd{Number: 2}); err != nil { // released with its end: forgotten
		t.Fatal(err)
	}
	step := func() {
		s := begin(t, w, ranges, layouts)
		write(s, 0, ranges)
		s.Commit()
	}
	step()
	released := w.Stats().Claim
	if err := w.EndRequest(RequestEnd{Number: 3}); err != nil { // its end is not released: still alive
		t.Fatal(err)
	}
	if err := w.OpenRequest(RequestOpen{Number: 5}); err != nil { // not released: read from the ring
		t.Fatal(err)
	}
	step()
	var before []Record
	for len(before) < int(w.Stats().Claim) {
		var err error
		if before, err = first.Next(context.Background(), before); err != nil {
			t.Fatal(err)
		}
	}
	first.Release(released)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	step() // while nobody is there
	second := accept(t, o.l)
	if second.ReleaseSeq() != released {
		t.Fatalf("the second agent starts at %d; the first released %d", second.ReleaseSeq(), released)
	}
	want := []string{"model m", "layout 0", "request 1", "request 3", "request 4"}
	if got := named(t, second); !slices.Equal(got, want) {
		t.Errorf("the snapshot names %v; want %v", got, want)
	}
	check := newChecker(t, second)
	done := make(chan struct{})
	go func() {
		defer close(done)
		closeSoon(t, w)
	}()
	check.drain(second, true)
	<-done
	if check.committed != 14 || !check.ended[3] {
		t.Errorf("the second agent read %d rows; want those of the two steps that were not released", check.committed)
	}
	if w.Stats().Attaches != 2 {
		t.Errorf("%d attaches", w.Stats().Attaches)
	}
}

func TestLeasesOutliveTheSession(t *testing.T) {
	o := listen(t, ListenerOptions{})
	w := newTestWriter(t, WriterOptions{Socket: o.path})
	s := accept(t, o.l)
	ranges, layouts := smallStep(t, w)
	st := begin(t, w, ranges, layouts)
	write(st, 0, ranges)
	st.Commit()
	var records []Record
	for len(records) < 4 {
		var err error
		if records, err = s.Next(context.Background(), records); err != nil {
			t.Fatal(err)
		}
	}
	giveBack, err := s.Lease()
	if err != nil {
		t.Fatal(err)
	}
	counters := s.Producer()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c := newChecker(t, s)
	for i := range records {
		c.record(&records[i]) // reads the payloads
	}
	giveBack()
	giveBack()
	if _, err := s.Lease(); !errors.Is(err, ErrClosed) {
		t.Errorf("a lease after Close: %v", err)
	}
	if _, err := s.Next(context.Background(), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("a read after Close: %v", err)
	}
	s.Release(2)
	if s.Producer() != counters || s.ClaimSeq() != 4 || s.ReleaseSeq() != 0 || s.Quarantined() != nil {
		t.Error("what was known at Close is gone")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestNextEndsWithItsContextAndWithClose(t *testing.T) {
	for _, mode := range []WaitMode{WaitPoll, WaitEvent} {
		o := listen(t, ListenerOptions{Wait: mode})
		newTestWriter(t, WriterOptions{Socket: o.path})
		s := accept(t, o.l)
		ctx, cancel := context.WithCancel(context.Background())
		result := make(chan error, 1)
		next := func(ctx context.Context) {
			_, err := s.Next(ctx, nil)
			result <- err
		}
		go next(ctx)
		time.Sleep(100 * time.Millisecond)
		cancel()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("after cancel: %v", err)
		}
		go next(context.Background())
		time.Sleep(100 * time.Millisecond)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-result; !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// With the mapping on the heap and many wake-ups, a lost one would leave reader
// and writer waiting for each other for a second each time.
func TestNoWakeUpIsLost(t *testing.T) {
	p := newHeapPair(t, WriterOptions{DescCount: 16, DataBytes: minDataBytes}, 0, 0)
	p.s.wait = WaitEvent
	ranges, layouts := smallStep(t, p.w)
	seen := make(chan struct{})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(seen)
		var records []Record
		for {
			var err error
			if records, err = p.s.Next(ctx, records[:0]); err != nil {
				return
			}
			for _, r := range records {
				p.s.Release(r.Seq + 1)
				if r.Kind == KindCapture {
					seen <- struct{}{}
				}
			}
		}
	})
	start := time.Now()
	const rounds = 3000
	for range rounds {
		begin(t, p.w, ranges, layouts).Commit()
		if _, ok := <-seen; !ok {
			t.Fatal("the reader waited for half a minute")
		}
	}
	armed := func() bool { return atomic.LoadUint32(&p.w.core.consumer.NeedWakeup) == 1 }
	for range 100 { // a late copy wakes, too
		s := begin(t, p.w, ranges, layouts)
		late := s.Detach(0)
		s.Commit()
		eventually(t, "the reader waits for the copy", armed)
		late.Commit()
		<-seen
	}
	cancel()
	wg.Wait()
	if naps := time.Since(start) / longestNap; naps > rounds/100 {
		t.Errorf("%d rounds took as long as %d lost wake-ups", rounds, naps)
	}
}

func TestAbortsReachTheEngineAndAnswersFindTheirAbort(t *testing.T) {
	o := listen(t, ListenerOptions{})
	block := make(chan struct{})
	var calls atomic.Int32
	w := newTestWriter(t, WriterOptions{Socket: o.path, OnAbort: func(a Abort) (AbortOutcome, uint32) {
		calls.Add(1)
		if a.Number == 99 {
			<-block
		}
		return AbortStopped, uint32(a.Number)
	}})
	s := accept(t, o.l)
	var wg sync.WaitGroup
	for n := range uint64(50) {
		wg.Go(func() {
			outcome, length, err := s.Abort(context.Background(), Abort{Epoch: w.Epoch(), Number: n})
			if err != nil || outcome != AbortStopped || length != uint32(n) {
				t.Errorf("abort %d: %s, %d, %v", n, outcome, length, err)
			}
		})
	}
	wg.Wait()
	expired := uint64(time.Now().Add(-time.Second).UnixNano())
	for name, a := range map[string]Abort{"another epoch": {Epoch: w.Epoch() + 2},
		"expired": {Epoch: w.Epoch(), ExpiresWallNS: expired}} {
		if outcome, _, err := s.Abort(context.Background(), a); outcome != AbortUnknown || err != nil {
			t.Errorf("%s: %s, %v", name, outcome, err)
		}
	}
	if n := calls.Load(); n != 50 {
		t.Errorf("the engine was asked %d times; want 50", n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := s.Abort(ctx, Abort{Epoch: w.Epoch(), Number: 99}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an engine that does not answer: %v", err)
	}
	close(block)
	outcome, length, err := s.Abort(context.Background(), Abort{Epoch: w.Epoch(), Number: 7})
	if outcome != AbortStopped || length != 7 || err != nil {
		t.Errorf("after the late answer: %s, %d, %v", outcome, length, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, _, err := s.Abort(context.Background(), Abort{}); !errors.Is(err, ErrEngineGone) {
		t.Errorf("an abort after Close: %v", err)
	}
}

func TestWhatADeadAgentScribbledDoesNotHarmTheNext(t *testing.T) {
	o := listen(t, ListenerOptions{})
	w := newTestWriter(t, WriterOptions{Socket: o.path})
	first := accept(t, o.l)
	ranges, layouts := smallStep(t, w)
	begin(t, w, ranges, layouts).Commit()
	atomic.StoreUint64(&w.core.consumer.ReleaseSeq, 40)
	atomic.StoreUint32(&w.core.consumer.NeedWakeup, 7)
	if got := w.Stats(); got.RefusedReleases != 1 {
		t.Fatalf("%+v", got)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := accept(t, o.l)
	if zone := w.core.consumer; atomic.LoadUint64(&zone.ReleaseSeq) != 0 || atomic.LoadUint32(&zone.NeedWakeup) > 1 {
		t.Errorf("the second agent inherits release word %d and wake word %d", zone.ReleaseSeq, zone.NeedWakeup)
	}
	for w.Stats().Claim != 40 {
		begin(t, w, ranges, layouts).Commit()
	}
	for second.Release(40); second.ReleaseSeq() != 40; second.Release(40) {
		if _, err := second.Next(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.Stats(); got.Release != 40 {
		t.Errorf("the word that was refused once is not accepted when it is right: released %d", got.Release)
	}
}

// An idle writer must not wake an idle reader: nothing is new.
func TestIdlePeersLeaveEachOtherAlone(t *testing.T) {
	o := listen(t, ListenerOptions{Wait: WaitEvent})
	w := newTestWriter(t, WriterOptions{Socket: o.path})
	s := accept(t, o.l)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := s.Next(ctx, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("read from an idle ring: %v", err)
		}
	}()
	armed := func() bool { return atomic.LoadUint32(&w.core.consumer.NeedWakeup) == 1 }
	eventually(t, "the reader blocks", armed)
	woken, was := 0, true
	for start := time.Now(); time.Since(start) < 300*time.Millisecond; time.Sleep(50 * time.Microsecond) {
		is := armed()
		if was && !is {
			woken++
		}
		was = is
	}
	cancel()
	<-done
	if woken > 5 { // each nap ends by itself after a second
		t.Errorf("the reader was woken %d times for nothing", woken)
	}
}
