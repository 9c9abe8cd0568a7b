package table

import (
	"fmt"
	"io"
	"unsafe"

	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/metadata"

	"sonde/schema"
)

// Where row groups end: a reader skips whole row groups by the statistics of
// request, hook and layer, and nothing smaller in most engines.
const (
	requestGroupBytes = 256 << 10 // at the end of a request, when the group has so much
	chainGroupBytes   = 4 << 20   // at the end of a hook and layer
	maxGroupBytes     = 16 << 20  // anywhere
	maxGroupRows      = 1 << 17
)

// zstdLevel 1 makes smaller files of byte-split floats than 3 does, and faster.
const zstdLevel = 1

// KeyValue is one entry of the key-value metadata of a file.
type KeyValue struct{ Key, Value string }

// WriteVectors writes rows as one Parquet file of the vectors table and reorders
// refs by request. It uses the low-level column writers of arrow-go: parquet-go,
// which writes the other tables, and pqarrow need two to three times as long for a
// list of floats, because they take it apart value by value.
func WriteVectors(w io.Writer, kv []KeyValue, refs []Ref) (err error) {
	defer recoverWrite(&err) // arrow-go reports errors of the disk by panicking in places
	sortByRequest(refs)
	root, err := vectorsNode()
	if err != nil {
		return fmt.Errorf("make the schema of vectors: %w", err)
	}
	meta := metadata.NewKeyValueMetadata()
	for _, e := range kv {
		if err := meta.Append(e.Key, e.Value); err != nil {
			return fmt.Errorf("add %s to a vectors file: %w", e.Key, err)
		}
	}
	f, err := file.NewParquetWriterWithError(onlyWriter{w}, root, file.WithWriterProps(vectorProperties()),
		file.WithWriteMetadata(meta))
	if err != nil {
		return fmt.Errorf("start a vectors file: %w", err)
	}
	g := &groupWriter{rows: make([]schema.VectorRow, 0, 1024)}
	for from := 0; from < len(refs); {
		to := g.take(refs[from:]) + from
		if err := g.write(f, refs[from:to]); err != nil {
			return fmt.Errorf("write rows %d to %d of a vectors file: %w", from, to, err)
		}
		from = to
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write the footer of a vectors file: %w", err)
	}
	return nil
}

// onlyWriter keeps arrow-go from closing the file, which is still to be synced.
type onlyWriter struct{ io.Writer }

func recoverWrite(err *error) {
	switch p := recover().(type) {
	case nil:
	case error:
		*err = fmt.Errorf("write Parquet: %w", p)
	default:
		panic(p)
	}
}

// vectorProperties choose data pages of version 1: arrow-go counts the nulls of a
// page of version 2 from its statistics, which vec and raw do not have, and Polars
// refuses a page whose count is wrong.
func vectorProperties() *parquet.WriterProperties {
	o := []parquet.WriterProperty{parquet.WithVersion(parquet.V2_LATEST), parquet.WithDataPageVersion(parquet.DataPageV1),
		parquet.WithDataPageSize(1 << 20), parquet.WithBatchSize(levelsPerBatch), parquet.WithCreatedBy("sonde"),
		parquet.WithCompression(compress.Codecs.Zstd), parquet.WithCompressionLevel(zstdLevel),
		parquet.WithMaxRowGroupLength(maxGroupRows), parquet.WithDictionaryDefault(true),
		parquet.WithDictionaryFor(vecLeaf, false), parquet.WithEncodingFor(vecLeaf, parquet.Encodings.ByteStreamSplit),
		parquet.WithStatsFor(vecLeaf, false), parquet.WithDictionaryFor(rawColumn, false),
		parquet.WithStatsFor(rawColumn, false)}
	for _, c := range vectorColumns {
		switch {
		case c.i64 != nil && !numberColumns[c.name], c.i32 != nil && !numberColumns[c.name]:
			o = append(o, parquet.WithDictionaryFor(c.name, false),
				parquet.WithEncodingFor(c.name, parquet.Encodings.DeltaBinaryPacked))
		case c.flag != nil:
			o = append(o, parquet.WithDictionaryFor(c.name, false))
		}
	}
	return parquet.NewWriterProperties(o...)
}

// groupWriter writes one row group after the other and keeps its memory.
type groupWriter struct {
	rows   []schema.VectorRow
	texts  []parquet.ByteArray
	i32s   []int32
	i64s   []int64
	flags  []bool
	floats []float32
	levels levels
}

// take decides how many of the refs make the next row group and decodes them.
func (g *groupWriter) take(refs []Ref) int {
	g.rows = g.rows[:0]
	bytes := 0
	for i, ref := range refs {
		r := ref.Message.Vector(ref.Index)
		if i > 0 {
			last := &refs[i-1].Message.Header
			h := &ref.Message.Header
			newRequest := r.Request != g.rows[i-1].Request
			newChain := newRequest || h.Hook != last.Hook || h.Layer != last.Layer
			if i == maxGroupRows || bytes+len(r.Vec) > maxGroupBytes || newRequest && bytes >= requestGroupBytes ||
				newChain && bytes >= chainGroupBytes {
				return i
			}
		}
		bytes += len(r.Vec)
		g.rows = append(g.rows, r)
	}
	return len(refs)
}

// write writes g.rows, which are those of refs, as one row group.
func (g *groupWriter) write(f *file.Writer, refs []Ref) error {
	rg, err := f.AppendRowGroupChecked()
	if err != nil {
		return err
	}
	for i := range vectorColumns {
		c := &vectorColumns[i]
		w, err := rg.NextColumn()
		if err == nil {
			err = g.column(w, c, refs)
		}
		if err != nil {
			return fmt.Errorf("column %s: %w", c.name, err)
		}
	}
	w, err := rg.NextColumn()
	if err == nil {
		err = g.vec(w.(*file.Float32ColumnChunkWriter), refs)
	}
	if err != nil {
		return fmt.Errorf("column %s: %w", vecColumn, err)
	}
	w, err = rg.NextColumn()
	if err == nil {
		err = g.raw(w.(*file.ByteArrayColumnChunkWriter), refs)
	}
	if err != nil {
		return fmt.Errorf("column %s: %w", rawColumn, err)
	}
	return rg.Close()
}

// gather fills buf with a value of each row.
func gather[T, V any](buf []V, g *groupWriter, refs []Ref, get func(*Message, *schema.VectorRow) T, to func(T) V) []V {
	buf = buf[:0]
	for i, ref := range refs {
		buf = append(buf, to(get(ref.Message, &g.rows[i])))
	}
	return buf
}

func same[T any](v T) T { return v }

func (g *groupWriter) column(w file.ColumnChunkWriter, c *vectorColumn, refs []Ref) (err error) {
	switch w := w.(type) {
	case *file.ByteArrayColumnChunkWriter:
		g.texts = gather(g.texts, g, refs, c.text, textBytes)
		_, err = w.WriteBatch(g.texts, nil, nil)
	case *file.Int32ColumnChunkWriter:
		g.i32s = gather(g.i32s, g, refs, c.i32, same)
		_, err = w.WriteBatch(g.i32s, nil, nil)
	case *file.Int64ColumnChunkWriter:
		g.i64s = gather(g.i64s, g, refs, c.i64, same)
		_, err = w.WriteBatch(g.i64s, nil, nil)
	case *file.BooleanColumnChunkWriter:
		g.flags = gather(g.flags, g, refs, c.flag, same)
		_, err = w.WriteBatch(g.flags, nil, nil)
	default:
		panic(fmt.Sprintf("BUG: column %s has a writer of type %T", c.name, w))
	}
	if err != nil {
		return err
	}
	return w.Close()
}

// textBytes views a string that nobody writes to.
func textBytes(s string) parquet.ByteArray {
	if s == "" {
		return parquet.ByteArray{} // nil would look like a missing bound in the statistics
	}
	return unsafe.Slice(unsafe.StringData(s), len(s))
}

// vec writes runs of rows of equal length at once, with levels that were made
// before.
func (g *groupWriter) vec(w *file.Float32ColumnChunkWriter, refs []Ref) error {
	for i := 0; i < len(refs); {
		dim := g.dim(refs, i)
		run := 1
		for i+run < len(refs) && (run+1)*max(dim, 1) <= levelsPerBatch && g.dim(refs, i+run) == dim {
			run++
		}
		g.floats = g.floats[:0]
		for k := i; k < i+run && dim > 0; k++ {
			g.floats = growFloats(g.floats, dim)
			refs[k].Message.codec.widen(g.floats[len(g.floats)-dim:], g.rows[k].Vec)
		}
		def, rep := g.levels.of(dim, run)
		if _, err := w.WriteBatch(g.floats, def, rep); err != nil {
			return err
		}
		i += run
	}
	return w.Close()
}

// dim is the length of row i's list, or null.
func (g *groupWriter) dim(refs []Ref, i int) int {
	if c := refs[i].Message.codec; c != nil {
		return len(g.rows[i].Vec) / c.bytes
	}
	return null
}

func growFloats(s []float32, n int) []float32 {
	if cap(s)-len(s) < n {
		s = append(make([]float32, 0, 2*(len(s)+n)), s...)
	}
	return s[:len(s)+n]
}

func (g *groupWriter) raw(w *file.ByteArrayColumnChunkWriter, refs []Ref) error {
	g.texts = g.texts[:0]
	def := make([]int16, len(refs))
	for i, ref := range refs {
		if ref.Message.codec == nil {
			g.texts = append(g.texts, parquet.ByteArray(g.rows[i].Vec))
			def[i] = 1
		}
	}
	if _, err := w.WriteBatch(g.texts, def, nil); err != nil {
		return err
	}
	return w.Close()
}
