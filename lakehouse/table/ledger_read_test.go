package table

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/parquet-go/parquet-go"

	"sonde/schema"
)

// scatteredFacts fill several row groups: sequences one after the other, some that
// come again much later, and here and there facts that name none.
func scatteredFacts(t *testing.T) []schema.LedgerRow {
	r := newRandom(t)
	facts := make([]schema.LedgerRow, 3*unorderedGroupRows+5000)
	for i := range facts {
		f := schema.LedgerRow{Seq: uint64(i), Fact: schema.FactExpected, Number: uint64(i / 1000), Count: 1, Layer: -1}
		f.Request = fmt.Sprint("r", f.Number)
		switch i {
		case 7, len(facts) - 3: // long after all others of its sequence
			f.Number = math.MaxUint64
		case len(facts) - 9:
			f.Fact, f.Hook, f.Layer, f.Number = schema.FactDropped, "h", 2, 3
		case 50_000:
			f.Fact, f.Number = schema.FactAmend, 12
		}
		if r.IntN(30_000) == 0 {
			f.Fact, f.Number, f.Request = []string{schema.FactLost, schema.FactAborted, schema.FactClosed,
				schema.FactLayout, schema.FactDeadLetter}[r.IntN(5)], 0, ""
		}
		facts[i] = f
	}
	return facts
}

// What is passed over is what explains a gap, or a row that the engine took back.
func TestEveryFactAboutASequenceIsFoundInALargeLedger(t *testing.T) {
	h := plainHeader()
	other := plainHeader()
	other.Epoch = 5
	var refs []Ref
	for part := range slices.Chunk(scatteredFacts(t), 10_000) {
		msg, err := schema.EncodeLedger(h, part)
		refs = append(refs, refsOf(decoded(t, msg, err))...)
	}
	msg, err := schema.EncodeLedger(other, []schema.LedgerRow{{Seq: 1, Fact: schema.FactClosed, Layer: -1}})
	file := writeTable(t, append(refs, refsOf(decoded(t, msg, err))...))
	var all []Fact
	err = ReadLedger(file, file.Size(), &Query{}, func(f *Fact) error { all = append(all, *f); return nil })
	if err != nil {
		t.Fatal(err)
	}
	for _, number := range []uint64{0, 3, 12, 50, math.MaxUint64} {
		var want, got []Fact
		for _, f := range all {
			named := slices.Contains([]string{schema.FactExpected, schema.FactAmend, schema.FactMissing,
				schema.FactDropped}, f.Row.Fact) && f.Row.Hook == ""
			if f.Epoch == h.Epoch && (!named || f.Row.Number == number) {
				want = append(want, f)
			}
		}
		err := ReadSequence(file, file.Size(), h.Epoch, number, func(f *Fact) error { got = append(got, *f); return nil })
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("sequence %d: %d facts of %d, %v", number, len(got), len(want), err)
		}
	}
}

func TestARowGroupWithoutTheSequenceIsNotDecoded(t *testing.T) {
	facts := make([]schema.LedgerRow, unorderedGroupRows+1)
	for i := range facts {
		facts[i] = schema.LedgerRow{Seq: uint64(i), Fact: schema.FactExpected, Number: uint64(2 + 2*(i/5000)), Layer: -1}
	}
	var refs []Ref
	for part := range slices.Chunk(facts, 10_000) {
		msg, err := schema.EncodeLedger(plainHeader(), part)
		refs = append(refs, refsOf(decoded(t, msg, err))...)
	}
	file := writeTable(t, refs)
	p, err := parquet.OpenFile(file, file.Size())
	if err != nil {
		t.Fatal(err)
	}
	for number, want := range map[uint64][2]bool{2: {true, false}, 3: {}, 6: {true, false}, 8: {true, true}, 9: {}} {
		for i, rg := range p.RowGroups() {
			if got, err := holdsSequence(p, rg, number); got != want[i] || err != nil {
				t.Errorf("row group %d holds sequence %d: %v, %v", i, number, got, err)
			}
		}
	}
}

// Another writer, or a dictionary that became too large, leaves pages without one.
func TestValuesAreAlsoFoundInPagesWithoutADictionary(t *testing.T) {
	type row struct {
		N int64 `parquet:"n,plain"`
	}
	var out bytes.Buffer
	w := parquet.NewGenericWriter[row](&out, parquet.PageBufferSize(1<<10))
	for i := range int64(5000) {
		if _, err := w.Write([]row{{i}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := parquet.OpenFile(bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[int64]bool{0: true, 2500: true, 4999: true, 5000: false} {
		got, err := anyValue(p.RowGroups()[0].ColumnChunks()[0], func(v parquet.Value) bool { return v.Int64() == value })
		if got != want || err != nil {
			t.Errorf("value %d is there: %v, %v", value, got, err)
		}
	}
}
