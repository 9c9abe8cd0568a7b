package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/compress"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/schema"
	parquetgo "github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
)

// columns are Parquet files in memory, decoded: what a bare writer starts from.
type columns struct {
	root   *schema.GroupNode
	props  *parquet.WriterProperties
	groups []group
	rows   [][]vectorRow // by row group, for parquet-go
}

type group struct {
	rows   int
	chunks []chunk
}

// chunk is one column of one row group. One of the slices of values is set.
type chunk struct {
	def, rep []int16
	texts    []parquet.ByteArray
	i32s     []int32
	i64s     []int64
	flags    []bool
	floats   []float32
}

// readColumns decodes some files of the vectors table.
func readColumns(paths []string) (*columns, error) {
	c := &columns{}
	for _, path := range paths {
		f, err := file.OpenParquetFile(path, false)
		if err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		err = c.read(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		rows, err := readVectorRows(path, f)
		if err != nil {
			return nil, fmt.Errorf("read %s with parquet-go: %w", path, err)
		}
		c.rows = append(c.rows, rows...)
	}
	return c, nil
}

func (c *columns) read(f *file.Reader) error {
	for i := range f.NumRowGroups() {
		rg := f.RowGroup(i)
		g := group{rows: int(rg.NumRows())}
		for k := range rg.NumColumns() {
			r, err := rg.Column(k)
			if err != nil {
				return err
			}
			meta, err := rg.MetaData().ColumnChunk(k)
			if err != nil {
				return err
			}
			ch, err := readChunk(r, int(meta.NumValues()))
			if err != nil {
				return fmt.Errorf("column %s: %w", r.Descriptor().Path(), err)
			}
			g.chunks = append(g.chunks, ch)
		}
		c.groups = append(c.groups, g)
	}
	c.root = f.MetaData().Schema.Root()
	var err error
	c.props, err = propertiesOf(f)
	return err
}

// propertiesOf are the encodings and the codec of a file's columns.
func propertiesOf(f *file.Reader) (*parquet.WriterProperties, error) {
	o := []parquet.WriterProperty{parquet.WithVersion(parquet.V2_LATEST), parquet.WithDataPageVersion(parquet.DataPageV1),
		parquet.WithDataPageSize(1 << 20), parquet.WithBatchSize(1 << 16), parquet.WithCompression(compress.Codecs.Zstd),
		parquet.WithCompressionLevel(1), parquet.WithMaxRowGroupLength(1 << 20)}
	rg := f.RowGroup(0)
	for k := range rg.NumColumns() {
		meta, err := rg.MetaData().ColumnChunk(k)
		if err != nil {
			return nil, err
		}
		path := f.MetaData().Schema.Column(k).Path()
		stats, err := meta.StatsSet()
		if err != nil {
			return nil, err
		}
		o = append(o, parquet.WithStatsFor(path, stats), parquet.WithDictionaryFor(path, meta.HasDictionaryPage()))
		for _, e := range []parquet.Encoding{parquet.Encodings.ByteStreamSplit, parquet.Encodings.DeltaBinaryPacked} {
			if slices.Contains(meta.Encodings(), e) {
				o = append(o, parquet.WithEncodingFor(path, e))
			}
		}
	}
	return parquet.NewWriterProperties(o...), nil
}

func readChunk(r file.ColumnChunkReader, levels int) (c chunk, err error) {
	if r.Descriptor().MaxDefinitionLevel() > 0 {
		c.def = make([]int16, levels)
	}
	if r.Descriptor().MaxRepetitionLevel() > 0 {
		c.rep = make([]int16, levels)
	}
	switch r := r.(type) {
	case *file.ByteArrayColumnChunkReader:
		c.texts, err = readValues(r.ReadBatch, &c, levels)
		for i := range c.texts { // they alias memory of the reader
			c.texts[i] = slices.Clone(c.texts[i])
		}
	case *file.Int32ColumnChunkReader:
		c.i32s, err = readValues(r.ReadBatch, &c, levels)
	case *file.Int64ColumnChunkReader:
		c.i64s, err = readValues(r.ReadBatch, &c, levels)
	case *file.BooleanColumnChunkReader:
		c.flags, err = readValues(r.ReadBatch, &c, levels)
	case *file.Float32ColumnChunkReader:
		c.floats, err = readValues(r.ReadBatch, &c, levels)
	default:
		err = fmt.Errorf("no reader of type %T is expected", r)
	}
	return c, err
}

// readValues reads all levels and values of a column chunk.
func readValues[T any](read func(int64, []T, []int16, []int16) (int64, int, error), c *chunk, levels int) ([]T, error) {
	from := func(s []int16, at int) []int16 {
		if s == nil {
			return nil
		}
		return s[at:]
	}
	values, n := make([]T, levels), 0
	for at := 0; at < levels; {
		read, got, err := read(int64(levels-at), values[n:], from(c.def, at), from(c.rep, at))
		if err != nil {
			return nil, err
		}
		if read == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		at, n = at+int(read), n+got
	}
	return values[:n], nil
}

// synced writes a file and syncs it.
func synced(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err = write(f); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// writeArrow writes the columns with the low-level writers of arrow-go.
func (c *columns) writeArrow(path string) error {
	return synced(path, func(out io.Writer) error {
		w, err := file.NewParquetWriterWithError(struct{ io.Writer }{out}, c.root, file.WithWriterProps(c.props))
		if err != nil {
			return err
		}
		for i := range c.groups {
			rg, err := w.AppendRowGroupChecked()
			if err != nil {
				return err
			}
			for k := range c.groups[i].chunks {
				column, err := rg.NextColumn()
				if err != nil {
					return err
				}
				if err := c.groups[i].chunks[k].write(column); err != nil {
					return err
				}
			}
			if err := rg.Close(); err != nil {
				return err
			}
		}
		return w.Close()
	})
}

// batchLevels is how many levels are written at once.
const batchLevels = 1 << 16

func (c *chunk) write(w file.ColumnChunkWriter) (err error) {
	switch w := w.(type) {
	case *file.ByteArrayColumnChunkWriter:
		_, err = w.WriteBatch(c.texts, c.def, c.rep)
	case *file.Int32ColumnChunkWriter:
		_, err = w.WriteBatch(c.i32s, c.def, c.rep)
	case *file.Int64ColumnChunkWriter:
		_, err = w.WriteBatch(c.i64s, c.def, c.rep)
	case *file.BooleanColumnChunkWriter:
		_, err = w.WriteBatch(c.flags, c.def, c.rep)
	case *file.Float32ColumnChunkWriter:
		// No list is empty or null here, so that there is a value for each level.
		for at := 0; at < len(c.floats) && err == nil; at += batchLevels {
			to := min(at+batchLevels, len(c.floats))
			_, err = w.WriteBatch(c.floats[at:to], c.def[at:to], c.rep[at:to])
		}
	}
	if err != nil {
		return err
	}
	return w.Close()
}

// vectorRow is a row of the vectors table as parquet-go writes it.
type vectorRow struct {
	Tenant        string    `parquet:"tenant,dict"`
	Epoch         string    `parquet:"epoch,dict"`
	Engine        string    `parquet:"engine,dict"`
	Rank          int32     `parquet:"rank,dict"`
	Model         string    `parquet:"model,dict"`
	Revision      string    `parquet:"revision,dict"`
	WeightsDigest string    `parquet:"weights_digest,dict"`
	Quantisation  string    `parquet:"quantisation,dict"`
	EngineVersion string    `parquet:"engine_version,dict"`
	PolicyVersion string    `parquet:"policy_version,dict"`
	Hook          string    `parquet:"hook,dict"`
	Layer         int32     `parquet:"layer,dict"`
	Shard         int32     `parquet:"shard,dict"`
	ShardCount    int32     `parquet:"shard_count,dict"`
	Seq           int64     `parquet:"seq,delta"`
	Row           int64     `parquet:"row,delta"`
	Number        int64     `parquet:"number,dict"`
	Request       string    `parquet:"request,dict"`
	Sample        int32     `parquet:"sample,dict"`
	Position      int32     `parquet:"position,delta"`
	Pass          int32     `parquet:"pass,dict"`
	Phase         int32     `parquet:"phase,dict"`
	CaptureNS     int64     `parquet:"capture_ns,dict"`
	DType         string    `parquet:"dtype,dict"`
	Shape         string    `parquet:"shape,dict"`
	Ragged        bool      `parquet:"ragged"`
	Vec           []float32 `parquet:"vec,list" parquet-element:",split"`
	Raw           []byte    `parquet:"raw,optional"`
}

// readVectorRows reads a file into rows, by row group.
func readVectorRows(path string, f *file.Reader) ([][]vectorRow, error) {
	rows, err := parquetgo.ReadFile[vectorRow](path)
	if err != nil {
		return nil, err
	}
	var out [][]vectorRow
	for i := range f.NumRowGroups() {
		n := int(f.MetaData().RowGroup(i).NumRows())
		if n > len(rows) {
			return nil, io.ErrUnexpectedEOF
		}
		out, rows = append(out, rows[:n]), rows[n:]
	}
	return out, nil
}

// writeParquetGo writes the same rows with parquet-go.
func (c *columns) writeParquetGo(path string) error {
	return synced(path, func(out io.Writer) error {
		w := parquetgo.NewGenericWriter[vectorRow](out, parquetgo.Compression(&zstd.Codec{Level: zstd.SpeedFastest}),
			parquetgo.DataPageVersion(1), parquetgo.SkipPageBounds("vec", "list", "element"), parquetgo.SkipPageBounds("raw"))
		for _, rows := range c.rows {
			if _, err := w.Write(rows); err != nil {
				return err
			}
			if err := w.Flush(); err != nil {
				return err
			}
		}
		return w.Close()
	})
}
