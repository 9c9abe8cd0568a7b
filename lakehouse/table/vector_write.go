package table

import (
	"fmt"
	"io"

	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/file"

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
// refs by request. The pages of most columns are made here, see planes and
// dictionaryColumn; the others go through the low-level writers of arrow-go.
func WriteVectors(w io.Writer, kv []KeyValue, refs []Ref) (err error) {
	defer recoverWrite(&err) // arrow-go reports errors of the disk by panicking in places
	sortByRequest(refs)
	f, err := newVectorFile(w, kv)
	if err != nil {
		return fmt.Errorf("start a vectors file: %w", err)
	}
	g := &groupWriter{rows: make([]schema.VectorRow, 0, 1024), texts: textDictionary(), i32s: int32Dictionary(),
		i64s: int64Dictionary(), planes: newPlanes()}
	for from := 0; from < len(refs); {
		to := g.take(refs[from:]) + from
		if err := g.write(f, refs[from:to]); err != nil {
			return fmt.Errorf("write rows %d to %d of a vectors file: %w", from, to, err)
		}
		from = to
	}
	if err := f.close(); err != nil {
		return fmt.Errorf("write the footer of a vectors file: %w", err)
	}
	return nil
}

func recoverWrite(err *error) {
	switch p := recover().(type) {
	case nil:
	case error:
		*err = fmt.Errorf("write Parquet: %w", p)
	default:
		panic(p)
	}
}

// vectorProperties choose data pages of version 1, which are compressed as a whole
// like those that are made here.
func vectorProperties() *parquet.WriterProperties {
	o := []parquet.WriterProperty{parquet.WithVersion(parquet.V2_LATEST), parquet.WithDataPageVersion(parquet.DataPageV1),
		parquet.WithDataPageSize(1 << 20), parquet.WithBatchSize(levelsPerBatch), parquet.WithCreatedBy("sonde"),
		parquet.WithCompression(compress.Codecs.Zstd), parquet.WithCompressionLevel(zstdLevel),
		parquet.WithMaxRowGroupLength(maxGroupRows), parquet.WithDictionaryDefault(true),
		parquet.WithDictionaryFor(vecLeaf, false), parquet.WithEncodingFor(vecLeaf, parquet.Encodings.ByteStreamSplit),
		parquet.WithDictionaryFor(rawColumn, false)}
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
	texts  *dictionaryColumn[string]
	i32s   *dictionaryColumn[int32]
	i64s   *dictionaryColumn[int64]
	vecs   []vecRow
	planes *planes
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
func (g *groupWriter) write(f *vectorFile, refs []Ref) error {
	f.beginGroup()
	for i := range vectorColumns {
		c := &vectorColumns[i]
		if err := g.column(f, c, refs); err != nil {
			return fmt.Errorf("column %s: %w", c.name, err)
		}
	}
	g.vecs = g.vecs[:0]
	for i, ref := range refs {
		g.vecs = append(g.vecs, vecRow{ref.Message.codec, g.rows[i].Vec})
	}
	err := f.pages(parquet.Encodings.ByteStreamSplit, func(file.PageWriter) []page { return g.planes.pages(g.vecs) })
	if err != nil {
		return fmt.Errorf("column %s: %w", vecColumn, err)
	}
	err = f.pages(parquet.Encodings.Plain, func(w file.PageWriter) []page { return rawPages(w, g.vecs) })
	if err != nil {
		return fmt.Errorf("column %s: %w", rawColumn, err)
	}
	return f.endGroup(len(refs))
}

func (g *groupWriter) column(f *vectorFile, c *vectorColumn, refs []Ref) error {
	switch {
	case c.text != nil:
		g.texts.collect(len(refs), func(i int) string { return c.text(refs[i].Message, &g.rows[i]) })
		return g.texts.write(f, len(refs))
	case c.i32 != nil && numberColumns[c.name]:
		g.i32s.collect(len(refs), func(i int) int32 { return c.i32(refs[i].Message, &g.rows[i]) })
		return g.i32s.write(f, len(refs))
	case c.i64 != nil && numberColumns[c.name]:
		g.i64s.collect(len(refs), func(i int) int64 { return c.i64(refs[i].Message, &g.rows[i]) })
		return g.i64s.write(f, len(refs))
	}
	w, err := f.column()
	if err != nil {
		return err
	}
	switch w := w.(type) {
	case *file.Int32ColumnChunkWriter:
		_, err = w.WriteBatch(gather(refs, g.rows, c.i32), nil, nil)
	case *file.Int64ColumnChunkWriter:
		_, err = w.WriteBatch(gather(refs, g.rows, c.i64), nil, nil)
	case *file.BooleanColumnChunkWriter:
		_, err = w.WriteBatch(gather(refs, g.rows, c.flag), nil, nil)
	default:
		panic(fmt.Sprintf("BUG: column %s has a writer of type %T", c.name, w))
	}
	if err != nil {
		return err
	}
	return w.Close()
}

// gather lists a value of each row.
func gather[T any](refs []Ref, rows []schema.VectorRow, get func(*Message, *schema.VectorRow) T) []T {
	out := make([]T, len(refs))
	for i, ref := range refs {
		out[i] = get(ref.Message, &rows[i])
	}
	return out
}
