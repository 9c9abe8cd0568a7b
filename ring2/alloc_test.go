package ring2

import (
	"context"
	"fmt"
	"testing"
)

// smallStep is a step of one range for a writer with one dense layout.
func smallStep(t testing.TB, w *Writer) (ranges []StepRange, layouts []uint32) {
	t.Helper()
	id, err := w.DefineLayout(denseLayout)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.OpenRequest(RequestOpen{Number: 1}); err != nil {
		t.Fatal(err)
	}
	return []StepRange{{Number: 1, Count: 3, Sampled: true, LayoutMask: 1}}, []uint32{id}
}

func TestCapturingAndReadingMakeNoGarbage(t *testing.T) {
	p := newHeapPair(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes, StateDir: t.TempDir()}, 0, 0)
	ranges, layouts := smallStep(t, p.w)
	ctx, records := context.Background(), make([]Record, 0, 8)
	var step Step
	once := func() {
		s, err := p.w.BeginStep(ranges, layouts)
		if err != nil {
			t.Fatal(err)
		}
		for e := range denseLayout {
			clear(s.Span(0, e))
		}
		s.Commit()
		if records, err = p.s.Next(ctx, records[:0]); err != nil || len(records) < 2 {
			t.Fatalf("read %d records: %v", len(records), err)
		}
		last := records[len(records)-2:]
		if err := ParseStepInto(&step, last[0].Payload); err != nil {
			t.Fatal(err)
		}
		p.s.Release(last[1].Seq + 1)
	}
	once()
	if n := testing.AllocsPerRun(200, once); n != 0 {
		t.Errorf("one step of two records makes %v allocations from capture to release; want none", n)
	}
}

func TestAFullRingDropsWithoutGarbage(t *testing.T) {
	p := newHeapPair(t, WriterOptions{DescCount: 16, DataBytes: minDataBytes}, 0, 0)
	ranges, layouts := smallStep(t, p.w)
	once := func() {
		s, err := p.w.BeginStep(ranges, layouts)
		if err != nil {
			t.Fatal(err)
		}
		s.Commit()
		ranges[0].Position += ranges[0].Count
	}
	for range 64 {
		once()
	}
	if n := testing.AllocsPerRun(200, once); n != 0 {
		t.Errorf("a dropped step makes %v allocations; want none", n)
	}
}

// The copy of a span is the bare baseline: what Ring² adds to it is the
// difference.
func BenchmarkStep(b *testing.B) {
	for _, floats := range []uint32{1 << 10, 1 << 16, 1 << 20} {
		source := make([]byte, 4*floats)
		b.Run(fmt.Sprintf("copy/%d", 4*floats), func(b *testing.B) {
			target := make([]byte, 64<<20) // as large as the ring, and touched before, as the ring is
			for at := range target {
				target[at] = 1
			}
			at := 0
			b.SetBytes(int64(len(source)))
			for b.Loop() {
				copy(target[at:], source)
				if at += len(source); at == len(target) {
					at = 0
				}
			}
		})
		b.Run(fmt.Sprintf("ring/%d", 4*floats), func(b *testing.B) { benchmarkRing(b, floats, source) })
	}
}

func benchmarkRing(b *testing.B, floats uint32, source []byte) {
	w, err := NewWriter(WriterOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = w.Close(context.Background()) }()
	r, err := ringOn(w.memory.ctl, w.memory.ctl[abiConsumerOff:], w.memory.data, w.config.DescCount)
	if err != nil {
		b.Fatal(err)
	}
	core := newReaderCore(r, 0)
	for at := range w.memory.data {
		w.memory.data[at] = 1
	}
	id, err := w.DefineLayout([]LayoutEntry{{Hook: "h", DType: F32, Shape: []uint32{floats}}})
	if err != nil {
		b.Fatal(err)
	}
	ranges, layouts := []StepRange{{Number: 1, Count: 1, LayoutMask: 1}}, []uint32{id}
	b.SetBytes(int64(len(source)))
	b.ReportAllocs()
	for b.Loop() {
		s, err := w.BeginStep(ranges, layouts)
		if err != nil {
			b.Fatal(err)
		}
		copy(s.Span(0, 0), source)
		s.Commit()
		var rec Record
		for ok := true; ok; {
			if ok, err = core.poll(&rec); err != nil {
				b.Fatal(err)
			}
		}
		core.setRelease(core.next)
	}
}
