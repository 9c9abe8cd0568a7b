package producer

import (
	"testing"

	"sonde/ring2"
)

// A step of many tokens takes no more memory than a step of few: from the record to
// the Arrow bytes, nothing is allocated for a token.
func TestNoMemoryIsTakenForEachToken(t *testing.T) {
	measure := func(tokens uint32) float64 {
		w := newWorld(t, Options{Policy: everything(), BatchBytes: 1 << 20})
		s := newFakeSession()
		e := newEngine(s, testEntries)
		e.open(1, "acme", 1<<20)
		r := newRank(w.agent, s, quiet())
		r.ctx = deadline(t)
		w.agent.ranks[r] = true
		st := ring2.Step{Ranges: []ring2.StepRange{prefill(1, tokens)}, Layouts: capture7(4)}
		capture := e.capture(&st)
		if err := r.records(batchOfRecords{records: s.records}); err != nil {
			t.Fatal(err)
		}
		seq := uint64(3)
		var step []byte
		one := func() {
			st.Layouts[0].CaptureSeq = seq + 1
			step = ring2.AppendStep(step[:0], st)
			capture.Seq = seq + 1
			records := [...]ring2.Record{{Seq: seq, Kind: ring2.KindStep, Payload: step}, capture}
			if err := r.records(batchOfRecords{records: records[:]}); err != nil {
				t.Fatal(err)
			}
			seq += 2
			r.own.flushAll()
			r.waitForAcks(0)
		}
		for range 20 {
			one()
		}
		return testing.AllocsPerRun(50, one)
	}
	few, many := measure(8), measure(1032)
	t.Logf("a step of 8 tokens allocates %v times, one of 1032 %v times", few, many)
	if perToken := (many - few) / 1024; perToken > 0.05 {
		t.Errorf("%v allocations for each token", perToken)
	}
}
