package lakehouse

import (
	"fmt"
	"testing"
	"time"

	"sonde/schema"
)

// largeLake has the ledger of 1,000,000 tokens: 10,000 requests of 100 tokens, eight
// at a time, of which one has rows. Facts that name no request are spread over it.
func largeLake(b *testing.B) *Lake {
	build := newBuilder(b)
	const requests, length, together = 10_000, 100, 8
	for first := 1; first <= requests; first += together {
		var facts []schema.LedgerRow
		for p := range length {
			for n := first; n < first+together; n++ {
				f := expected(p, 1)
				f.Seq, f.Number, f.Request = uint64(first*length+p+100), uint64(n), fmt.Sprint("r", n)
				f.CaptureSeq = f.Seq + 1
				facts = append(facts, f)
			}
		}
		for i := range facts {
			facts[i].Layer, facts[i].Row = -1, uint32(i%together)
		}
		build.add(schema.EncodeLedger(header(1), facts))
		if first%2000 == 1 {
			build.facts(1, schema.LedgerRow{Seq: uint64(first*length + 1000), Fact: schema.FactLost, CaptureSeq: 5})
			build.commit()
		}
	}
	build.facts(1, layout())
	row := schema.VectorRow{Seq: 1, Number: 5001, Request: "r5001", Vec: []byte{1, 2}}
	build.vectors(1, "h", 2, "u8", []int{2}, row)
	return build.lake()
}

// BenchmarkATensorAgainstTheWholeLedger prints how much less time a tensor takes than
// all facts of its epoch, which it used to read.
func BenchmarkATensorAgainstTheWholeLedger(b *testing.B) {
	l := largeLake(b)
	epoch := uint64(1)
	var tensor, ledger time.Duration
	for b.Loop() {
		start := time.Now()
		t, err := l.Tensor(b.Context(), TensorQuery{Request: "r5001", Hook: "h", Layer: 2, AllowPartial: true})
		if err != nil || len(t.Positions) != 1 || len(t.Missing) != 1 || t.Missing[0].To != 100 {
			b.Fatalf("%+v, %v", t, err)
		}
		tensor += time.Since(start)
		start = time.Now()
		if err := l.Ledger(b.Context(), Query{Epoch: &epoch}, func(*Fact) error { return nil }); err != nil {
			b.Fatal(err)
		}
		ledger += time.Since(start)
	}
	b.ReportMetric(float64(ledger)/float64(tensor), "ledger/tensor")
	b.Logf("a tensor takes %v, all facts %v", tensor/time.Duration(b.N), ledger/time.Duration(b.N))
}
