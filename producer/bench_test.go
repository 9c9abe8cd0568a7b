package producer

import (
	"context"
	"fmt"
	"testing"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/ring2"
)

// instantBus acknowledges at once and keeps nothing.
type instantBus struct{ *bustest.Bus }

func (instantBus) Publish(_ context.Context, _ bus.Message, done func(uint64, error)) error {
	done(1, nil)
	return nil
}

// BenchmarkAgainstMemcpy is the way of a step of 64 requests from its records to
// acknowledged messages, beside one copy of its payload: a row is copied once, into
// its message.
func BenchmarkAgainstMemcpy(b *testing.B) {
	for _, width := range []uint32{64, 2048} {
		var entries []ring2.LayoutEntry
		for i := range 32 {
			entries = append(entries, ring2.LayoutEntry{Hook: "resid_post", Layer: i, DType: ring2.BF16, Shape: []uint32{width}})
		}
		s := newFakeSession()
		e := newEngine(s, entries)
		var st ring2.Step
		for i := range uint64(64) {
			e.open(i, "acme", 10)
			st.Ranges = append(st.Ranges, decode(i, 20))
		}
		st.Layouts = capture7(0)
		capture := e.capture(&st)
		b.Run(fmt.Sprintf("memcpy/width=%d", width), func(b *testing.B) {
			b.SetBytes(int64(len(capture.Payload)))
			to := make([]byte, len(capture.Payload))
			for b.Loop() {
				copy(to, capture.Payload)
			}
		})
		b.Run(fmt.Sprintf("agent/width=%d", width), func(b *testing.B) {
			a, err := New(Options{Bus: instantBus{bustest.New()}, Policy: everything(), Logger: quiet()})
			if err != nil {
				b.Fatal(err)
			}
			r := newRank(a, s, quiet())
			r.ctx = context.Background()
			if err := r.records(batchOfRecords{records: s.records}); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(capture.Payload)))
			seq := uint64(len(s.records))
			var step []byte
			for b.Loop() {
				st.Layouts[0].CaptureSeq = seq + 1
				step = ring2.AppendStep(step[:0], st)
				capture.Seq = seq + 1
				if err := r.records(batchOfRecords{records: []ring2.Record{{Seq: seq, Kind: ring2.KindStep, Payload: step},
					capture}}); err != nil {
					b.Fatal(err)
				}
				r.takeAcks()
				seq += 2
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64/32, "ns/row")
		})
	}
}
