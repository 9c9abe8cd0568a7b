package table

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"testing"

	arrow "github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/parquet-go/parquet-go"

	"sonde/schema"
)

// nullsOf counts the levels without a value of each column chunk, by reading them.
func nullsOf(t *testing.T, f *file.Reader, group, column int) (nulls int64) {
	t.Helper()
	c, err := f.RowGroup(group).Column(column)
	if err != nil {
		t.Fatal(err)
	}
	read := func(n int64, values int, err error) bool {
		if err != nil {
			t.Fatal(err)
		}
		nulls += n - int64(values)
		return n > 0
	}
	const batch = 1 << 12
	def, rep := make([]int16, batch), make([]int16, batch)
	switch c := c.(type) {
	case *file.Float32ColumnChunkReader:
		for values := make([]float32, batch); read(c.ReadBatch(batch, values, def, rep)); {
		}
	case *file.ByteArrayColumnChunkReader:
		for values := make([]arrow.ByteArray, batch); read(c.ReadBatch(batch, values, def, rep)); {
		}
	}
	return nulls
}

// pageNullsOf adds up what the headers of the pages of a column chunk say.
func pageNullsOf(t *testing.T, f *file.Reader, group, column int) (nulls int64) {
	t.Helper()
	pages, err := f.RowGroup(group).GetColumnPageReader(column)
	if err != nil {
		t.Fatal(err)
	}
	for pages.Next() {
		p, ok := pages.Page().(file.DataPage)
		if !ok {
			continue
		}
		if s := p.Statistics(); s.HasNullCount {
			nulls += s.NullCount
		} else {
			t.Errorf("a page of column %s counts no nulls", f.MetaData().Schema.Column(column).Path())
		}
	}
	if err := pages.Err(); err != nil {
		t.Fatal(err)
	}
	return nulls
}

// mixedRefs are rows with lists, empty lists and raw values, in runs and in turns, on
// several pages.
func mixedRefs(t *testing.T) (refs []Ref) {
	r := newRandom(t)
	for c := range 12 {
		dtype, shape := []string{"f32", "i32", "bf16"}[c%3], []int{1 + r.IntN(40)}
		h := testHeader("h", c, dtype, shape)
		h.Ragged = c%2 == 0
		var rows []schema.VectorRow
		for i := range 1 + r.IntN(2000) {
			n := shape[0]
			if h.Ragged {
				n *= r.IntN(3)
			}
			rows = append(rows, vectorRow(i, fmt.Sprint("r", i/300), make([]byte, n*map[string]int{"f32": 4, "i32": 4,
				"bf16": 2}[dtype])))
		}
		refs = append(refs, refsOf(vectorMessage(t, h, rows))...)
	}
	return append(refs, refsOf(vectorMessage(t, testHeader("big", 0, "i64", []int{1 << 18}),
		[]schema.VectorRow{vectorRow(0, "r1", make([]byte, 8<<18)), vectorRow(1, "r1", make([]byte, 8<<18))}))...)
}

// parquet-java takes a page whose nulls are not counted for one with wrong statistics.
func TestEachPageAndColumnOfAVectorsFileCountsItsNulls(t *testing.T) {
	for _, refs := range [][]Ref{mixedRefs(t), mixedRefs(t)[:1]} {
		b := writeVectors(t, refs)
		f, err := file.NewParquetReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		p, err := parquet.OpenFile(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		for g := range f.NumRowGroups() {
			for c := range f.MetaData().Schema.NumColumns() {
				name, want := f.MetaData().Schema.Column(c).Path(), nullsOf(t, f, g, c)
				chunk, err := f.MetaData().RowGroup(g).ColumnChunk(c)
				if err != nil {
					t.Fatal(err)
				}
				s, err := chunk.Statistics()
				if err != nil || s == nil || !s.HasNullCount() || s.NullCount() != want {
					t.Fatalf("row group %d: statistics of %s are %v (%v), and it has %d nulls", g, name, s, err, want)
				}
				if n := pageNullsOf(t, f, g, c); n != want {
					t.Errorf("row group %d: pages of %s count %d nulls, and it has %d", g, name, n, want)
				}
				if n := p.Metadata().RowGroups[g].Columns[c].MetaData.Statistics.NullCount; n != want {
					t.Errorf("row group %d: parquet-go finds %d nulls in %s, which has %d", g, n, name, want)
				}
				if (name == vecLeaf || name == rawColumn) && s.HasMinMax() {
					t.Errorf("column %s has bounds", name)
				}
			}
		}
	}
}

// NaN has no order, and the sign of a zero is none: a reader that believes in bounds of
// floats loses rows, or keeps those that the filter excludes.
func TestNoBoundsOfFloatsAndTrueBoundsOfAllElse(t *testing.T) {
	nan, minus := float32(math.NaN()), float32(math.Copysign(0, -1))
	long := strings.Repeat("x", 5000)
	requests := []string{"é", "", "a", long}
	var rows []schema.StatsRow
	for i, request := range requests {
		for k, v := range []float32{nan, minus, 0, 1, float32(math.Inf(-1))} {
			rows = append(rows, schema.StatsRow{Seq: uint64(i), Row: uint32(k), Request: request, L2: v, Std: minus,
				AbsMax: nan, Mean: []float32{nan, 5, -1, 0}[i], Position: int32(k - 2), CaptureNS: math.MinInt64 + int64(i)})
		}
	}
	h := plainHeader()
	msg, err := schema.EncodeStats(h, rows)
	f := writeTable(t, refsOf(decoded(t, msg, err)))
	p, err := parquet.OpenFile(f, f.Size())
	if err != nil {
		t.Fatal(err)
	}
	u32 := func(v int32) string { return string(binary.LittleEndian.AppendUint32(nil, uint32(v))) }
	u64 := func(v int64) string { return string(binary.LittleEndian.AppendUint64(nil, uint64(v))) }
	want := map[string][2]string{"request": {"", "é"}, "position": {u32(-2), u32(2)}, "hook": {"h", "h"},
		"capture_ns": {u64(math.MinInt64), u64(math.MinInt64 + 3)}}
	for _, rg := range p.Metadata().RowGroups {
		for _, c := range rg.Columns {
			s, name := c.MetaData.Statistics, c.MetaData.PathInSchema[0]
			if s.NullCount != 0 {
				t.Errorf("%s counts %d nulls", name, s.NullCount)
			}
			switch name {
			case "l2", "mean", "std", "absmax":
				if s.MinValue != nil || s.MaxValue != nil || s.Min != nil || s.Max != nil || c.ColumnIndexOffset != 0 {
					t.Errorf("%s has bounds: %+v, index at %d", name, s, c.ColumnIndexOffset)
				}
			}
			if w, ok := want[name]; ok && (string(s.MinValue) != w[0] || string(s.MaxValue) != w[1] || s.MinValue == nil) {
				t.Errorf("bounds of %s are %q and %q, want %q", name, s.MinValue, s.MaxValue, w)
			}
		}
	}
	checkPageIndex(t, p)
}

// checkPageIndex compares the index of pages of request with its values. Its bounds
// are cut: they must still hold.
func checkPageIndex(t *testing.T, p *parquet.File) {
	t.Helper()
	column, _ := p.Schema().Lookup("request")
	for _, rg := range p.RowGroups() {
		chunk := rg.ColumnChunks()[column.ColumnIndex]
		index, err := chunk.ColumnIndex()
		if err != nil {
			t.Fatal(err)
		}
		pages := chunk.Pages()
		for i := 0; ; i++ {
			page, err := pages.ReadPage()
			if err != nil {
				break // the end
			}
			low, high := index.MinValue(i).ByteArray(), index.MaxValue(i).ByteArray()
			if index.NullCount(i) != page.NumNulls() {
				t.Errorf("page %d counts %d nulls and has %d", i, index.NullCount(i), page.NumNulls())
			}
			values := make([]parquet.Value, page.NumValues())
			n, _ := page.Values().ReadValues(values) // io.EOF comes with the last
			for _, v := range values[:n] {
				if b := v.ByteArray(); bytes.Compare(b, low) < 0 || bytes.Compare(high, b) < 0 {
					t.Errorf("page %d has bounds %q and %.40q, and holds %.40q", i, low, high, b)
				}
			}
		}
		if err := pages.Close(); err != nil {
			t.Error(err)
		}
	}
}
