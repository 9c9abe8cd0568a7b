package readers

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sonde/internal/notrun"
	"sonde/lakehouse/table"
	"sonde/schema"
)

// oddRequests are ids that a careless bound loses: empty, longer than bounds may be,
// with bytes that sort differently as text and as numbers.
var oddRequests = []string{"", "a", "b", strings.Repeat("x", 5000), strings.Repeat("x", 4096) + "é", "é", "a\x00b",
	"\U0001F600"}

var (
	nan      = float32(math.NaN())
	minus    = float32(math.Copysign(0, -1))
	infinite = float32(math.Inf(1))
)

// oddFiles writes files whose statistics are easy to get wrong.
func oddFiles(t *testing.T) (files []string) {
	dir := t.TempDir()
	put := func(name string, refs []table.Ref) {
		var out bytes.Buffer
		if err := table.Write(&out, nil, refs); err != nil {
			t.Fatal(err)
		}
		files = append(files, filepath.Join(dir, name+".parquet"))
		if err := os.WriteFile(files[len(files)-1], out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var lists, raws []table.Ref
	for i, request := range oddRequests {
		values := []float32{minus, nan, float32(i)}
		lists = append(lists, vectors(t, "h", i%3-1, "f32", []int{3}, []string{request, request}, values)...)
		raws = append(raws, vectors(t, "ids", -1, "i32", []int{3}, []string{request}, values)...)
	}
	put("one-list", lists[:1:1])
	put("one-raw", raws[:1:1])
	put("mixed", append(lists, raws...))
	many := make([]string, 70_000)
	for i := range many {
		many[i] = fmt.Sprintf("r%06d", i)
	}
	put("many", vectors(t, "h", 0, "f32", []int{1}, many, []float32{1}))
	figures := figuresOf(t)
	put("figures", figures)
	put("one-nan", figures[:1:1])
	put("one-zero", figures[1:2:2])
	return files
}

// vectors are rows of the values, one for each request.
func vectors(t *testing.T, hook string, layer int, dtype string, shape []int, requests []string,
	values []float32) []table.Ref {
	e, err := schema.NewVectorEncoder(schema.Header{Kind: schema.KindVectors, Engine: "e", Epoch: epoch, Hook: hook,
		Layer: layer, DType: dtype, Shape: shape})
	if err != nil {
		t.Fatal(err)
	}
	var bits []uint32
	for _, v := range values {
		bits = append(bits, math.Float32bits(v))
	}
	for i, request := range requests {
		row := schema.VectorRow{Seq: 1, Row: uint32(i), Request: request, CaptureNS: int64(i), Vec: bytesOf(bits)}
		if err := e.Append(row); err != nil {
			t.Fatal(err)
		}
	}
	data, _, err := e.Encode(schema.Cursor{})
	return refs(t, data, err)
}

// figuresOf are rows of vector_stats: all that floats can be, in one column next to
// each other and in others alone.
func figuresOf(t *testing.T) []table.Ref {
	var rows []schema.StatsRow
	for i, request := range oddRequests {
		for k, v := range []float32{nan, minus, 0, 1, infinite, -infinite} {
			rows = append(rows, schema.StatsRow{Seq: uint64(i), Row: uint32(k), Request: request, L2: v,
				Mean: []float32{nan, minus, 5, -1}[i%4], Std: minus, AbsMax: nan})
		}
	}
	h := schema.Header{Engine: "e", Epoch: epoch, Hook: "h", DType: "f32", Shape: []int{1}}
	data, err := schema.EncodeStats(h, rows)
	return refs(t, data, err)
}

func refs(t *testing.T, data []byte, err error) (out []table.Ref) {
	var b *schema.Batch
	if err == nil {
		b, err = schema.Decode(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := table.NewMessage(b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Len() {
		out = append(out, table.Ref{Message: m, Index: i})
	}
	return out
}

// A reader that skips row groups by a wrong bound loses rows without a word.
func TestFiltersOfOtherReadersFindTheRowsThatAWholeReadHas(t *testing.T) {
	python, err := filepath.Abs("../../.venv/bin/python")
	if err == nil {
		err = exec.Command(python, "-c", "import duckdb, polars, pyarrow").Run()
	}
	if err != nil {
		notrun.Mark(t, "DuckDB, Polars and pyarrow: .venv has not all of them; `make test-python` installs them")
	}
	program := filepath.Join("testdata", "python", "filters.py")
	out, err := exec.Command(python, append([]string{program}, oddFiles(t)...)...).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	t.Logf("%s", out)
}

func TestTheToolOfParquetJavaFindsNoWrongStatistics(t *testing.T) {
	classPath := javaLibraries(t)
	files := oddFiles(t)
	d := newDataset(t)
	for name := range d.of {
		files = append(files, d.files(name)...)
	}
	args := append([]string{"-cp", classPath, "org.apache.parquet.cli.Main", "check-stats"}, files...)
	if out := java(t, args...); strings.Count(out, "has no corrupt stats") != len(files) {
		t.Errorf("of %d files: %s", len(files), out)
	}
}
