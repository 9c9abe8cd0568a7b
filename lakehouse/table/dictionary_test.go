package table

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/parquet/file"

	"sonde/schema"
)

// readHybrid reads indexes as the Parquet specification describes them.
func readHybrid(t *testing.T, b []byte, n int) (out []int) {
	t.Helper()
	width := int(b[0])
	for b = b[1:]; len(out) < n; {
		head, k := binary.Uvarint(b)
		if k <= 0 {
			t.Fatalf("%d of %d indexes, then % x", len(out), n, b)
		}
		b = b[k:]
		if head&1 == 0 {
			v := 0
			for i := range (width + 7) / 8 {
				v |= int(b[i]) << (8 * i)
			}
			b = b[(width+7)/8:]
			for range head >> 1 {
				out = append(out, v)
			}
			continue
		}
		packed := b[:int(head>>1)*width]
		b = b[len(packed):]
		for i := range int(head>>1) * 8 {
			v := 0
			for bit := range width {
				at := i*width + bit
				v |= int(packed[at/8]>>(at%8)&1) << bit
			}
			out = append(out, v)
		}
	}
	if len(b) > 0 || len(out)-n > 7 {
		t.Fatalf("%d bytes are left, and %d indexes too many", len(b), len(out)-n)
	}
	return out[:n]
}

// Runs of every length, at every place in a group of eight, and of every width.
func TestIndexesOfRunsAreThoseOfTheRows(t *testing.T) {
	r := newRandom(t)
	for range 2000 {
		values := 1 + r.IntN(1<<r.IntN(17))
		var runs []indexRun
		var want []int
		for range 1 + r.IntN(40) {
			run := indexRun{r.IntN(values), 1 + r.IntN([]int{1, 3, 8, 20, 300}[r.IntN(5)])}
			runs = append(runs, run)
			for range run.count {
				want = append(want, run.index)
			}
		}
		got := readHybrid(t, appendIndexes(nil, runs, values), len(want))
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("index %d is %d, want %d, of runs %v and %d values", i, got[i], want[i], runs, values)
			}
		}
	}
}

// Readers skip row groups by these bounds: a wrong one loses rows without a word.
func TestBoundsOfDictionaryColumnsAreThoseOfTheValues(t *testing.T) {
	long := strings.Repeat("x", 5000)
	var refs []Ref
	for i, request := range []string{"b", "", "a", long} {
		row := vectorRow(i, request, []byte{1, 2})
		row.Sample, row.CaptureNS = int32(i-2), []int64{math.MinInt64, 5, -1, math.MaxInt64}[i]
		m := vectorMessage(t, testHeader("h", i-1, "bf16", []int{1}), []schema.VectorRow{row})
		refs = append(refs, refsOf(m)...)
	}
	var out bytes.Buffer
	if err := WriteVectors(&out, nil, refs); err != nil {
		t.Fatal(err)
	}
	f, err := file.NewParquetReader(bytes.NewReader(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rg := f.MetaData().RowGroup(0)
	check := func(column string, low, high []byte) {
		t.Helper()
		c, err := rg.ColumnChunk(f.MetaData().Schema.ColumnIndexByName(column))
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.Statistics()
		if err != nil || s == nil {
			t.Fatalf("column %s has no statistics: %v", column, err)
		}
		if s.NullCount() != 0 || !bytes.Equal(s.EncodeMin(), low) || !bytes.Equal(s.EncodeMax(), high) {
			t.Errorf("bounds of %s are %q and %q, want %q and %q; %d nulls", column, s.EncodeMin(), s.EncodeMax(), low, high,
				s.NullCount())
		}
	}
	i32 := func(v int32) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(v)) }
	i64 := func(v int64) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(v)) }
	check("layer", i32(-1), i32(2))
	check("sample", i32(-2), i32(1))
	check("capture_ns", i64(math.MinInt64), i64(math.MaxInt64))
	check("hook", []byte("h"), []byte("h"))
	c, err := rg.ColumnChunk(f.MetaData().Schema.ColumnIndexByName("request"))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := c.Statistics(); err == nil && s != nil && s.HasMinMax() {
		t.Errorf("request has bounds of %d and %d bytes, although a value is too long", len(s.EncodeMin()),
			len(s.EncodeMax()))
	}
	seen := map[string]bool{}
	err = ReadVectors(bytes.NewReader(out.Bytes()), int64(out.Len()), &Query{Request: long}, false, func(v *Vector) error {
		seen[v.Request] = true
		return nil
	})
	if err != nil || !seen[long] {
		t.Errorf("the row of the long request is not found: %v", err)
	}
}
