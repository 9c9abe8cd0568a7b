package ring2

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"
)

// load drives a writer with random steps.
type load struct {
	t       *testing.T
	w       *Writer
	rng     *rand.Rand
	layouts []*Layout
	ids     []uint32
	open    map[uint64]uint32 // number: next position
	number  uint64
	detach  chan *detached
}

// detached is a copy that somebody else finishes.
type detached struct {
	p      *Pending
	l      *Layout
	index  int
	ranges []StepRange
	abort  bool
}

func newLoad(t *testing.T, w *Writer, rng *rand.Rand) *load {
	t.Helper()
	d := &load{t: t, w: w, rng: rng, open: map[uint64]uint32{}, detach: make(chan *detached, 64)}
	if err := w.SetModel(Model{Name: "torture", Layers: 2, DModel: 6}); err != nil {
		t.Fatal(err)
	}
	for _, entries := range [][]LayoutEntry{denseLayout, raggedLayout} {
		id, err := w.DefineLayout(entries)
		if err != nil {
			t.Fatal(err)
		}
		d.ids, d.layouts = append(d.ids, id), append(d.layouts, w.layouts[id])
	}
	return d
}

// finish completes detached copies in another goroutine until the channel closes.
func (d *load) finish() {
	for c := range d.detach {
		for e := range c.l.Entries {
			fillEntry(c.p.Span(e), c.l, c.index, e, c.ranges)
		}
		if c.abort {
			c.p.Abort()
		} else {
			c.p.Commit()
		}
	}
}

func (d *load) step() {
	d.t.Helper()
	for len(d.open) < 1+d.rng.IntN(6) {
		d.number++
		if err := d.w.OpenRequest(RequestOpen{Number: d.number, ExternalID: "r", Tenant: "t"}); err != nil {
			d.t.Logf("open %d: %v", d.number, err)
			continue
		}
		d.open[d.number] = 0
	}
	var ranges []StepRange
	for number, position := range d.open {
		count := uint32(1 + d.rng.IntN(12))
		ranges = append(ranges, StepRange{Number: number, Position: position, Count: count, Pass: uint32(d.rng.IntN(2)),
			Sampled: d.rng.IntN(2) == 0, LayoutMask: uint64(d.rng.IntN(4))})
		d.open[number] = position + count
	}
	var sizes []RaggedBytes
	for i, l := range d.layouts {
		sizes = append(sizes, raggedBytes(l, i, ranges)...)
	}
	s, err := d.w.BeginStep(ranges, d.ids, sizes...)
	if err != nil {
		d.t.Fatal(err)
	}
	for i, l := range d.layouts {
		fate := d.rng.IntN(8)
		switch {
		case !s.Captured(i):
			if s.Span(i, 0) != nil || s.Detach(i) != nil {
				d.t.Fatal("a dropped layout has memory")
			}
		case fate == 0:
			s.Abort(i)
		case fate == 1:
			d.detach <- &detached{s.Detach(i), l, i, ranges, d.rng.IntN(3) == 0}
		default:
			for e := range l.Entries {
				fillEntry(s.Span(i, e), l, i, e, ranges)
			}
		}
	}
	s.Commit()
	if d.rng.IntN(4) == 0 {
		for number := range d.open {
			if err := d.w.EndRequest(RequestEnd{Number: number}); err != nil {
				d.t.Logf("end %d: %v", number, err)
			}
			delete(d.open, number)
			break
		}
	}
	if d.rng.IntN(16) == 0 {
		if err := d.w.Amend(Amend{Step: s.Step(), Ranges: []AmendRange{{Number: 1, Count: 1}}}); err != nil {
			d.t.Logf("amend: %v", err)
		}
	}
}

// run drives steps, says goodbye and ends the connection.
func (d *load) run(p *heapPair, steps int) WriterStats {
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.finish()
	}()
	for range steps {
		d.step()
		if d.rng.IntN(8) == 0 {
			time.Sleep(time.Duration(d.rng.IntN(2000)) * time.Microsecond) // let the reader catch up now and then
		}
	}
	close(d.detach)
	<-done
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d.w.o.Socket = "heap" // Close waits for the reader
	if err := d.w.Close(ctx); err != nil {
		d.t.Error(err)
	}
	_ = p.engine.Close()
	return d.w.Stats()
}

func TestEveryRowArrivesOnceWithItsBytesOrIsNamed(t *testing.T) {
	for _, size := range []WriterOptions{
		{DescCount: 8, DataBytes: minDataBytes},
		{DescCount: 32, DataBytes: minDataBytes},
		{DescCount: 64, DataBytes: minDataBytes, Mode: Complete, StepStallBudget: time.Second},
	} {
		rng := seeded(t)
		p := newHeapPair(t, size, 0, 0)
		stats := make(chan WriterStats, 1)
		d := newLoad(t, p.w, rng)
		go func() { stats <- d.run(p, 1500) }()
		c := newChecker(t, p.s)
		c.drain(p.s, true)
		got := <-stats
		t.Logf("%+v %v", got, c.kinds)
		c.balance(got)
		if !c.bye || !p.s.Producer().Closing || len(p.s.Lost()) > 0 {
			t.Errorf("clean end is not seen as one: bye %v, closing %v, lost %v", c.bye, p.s.Producer().Closing, p.s.Lost())
		}
		if size.Mode == Complete && got.DroppedRows != [ReasonCount]uint64{} {
			t.Errorf("complete mode dropped %v although its reader kept up", got.DroppedRows)
		}
		if got.PendingControl != 0 || got.ControlLost != 0 || got.RefusedReleases != 0 {
			t.Errorf("left over: %+v", got)
		}
	}
}

func TestNumbersMayWrapAroundAtTheEndOfTheirRange(t *testing.T) {
	rng := seeded(t)
	for _, start := range []uint64{^uint64(0) - 40, ^uint64(0), ^uint64(0) - 7, 1<<63 - 20} {
		p := newHeapPair(t, WriterOptions{DescCount: 16, DataBytes: minDataBytes}, start, ^uint64(3*minDataBytes-1))
		stats := make(chan WriterStats, 1)
		d := newLoad(t, p.w, rng)
		go func() { stats <- d.run(p, 400) }()
		c := newChecker(t, p.s)
		c.drain(p.s, true)
		c.balance(<-stats)
	}
}
