package table

import (
	"fmt"
	"io"
	"math"

	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/metadata"
)

// ReadVectors calls f with the rows of a vectors file that match q, in the order
// of the file, and stops at its first error. With keysOnly the vectors themselves
// are not read and Raw is nil. The file may hold anything: what is no vectors file
// is an error. f gets each row in the memory of the one before; its texts and Raw
// may be kept.
func ReadVectors(r io.ReaderAt, size int64, q *Query, keysOnly bool, f func(*Vector) error) (err error) {
	defer recoverRead(&err)
	pf, err := openVectors(r, size)
	if err != nil {
		return err
	}
	defer pf.Close() // reads nothing more
	columns, err := locateColumns(pf)
	if err != nil {
		return err
	}
	for i := range pf.NumRowGroups() {
		rg := pf.RowGroup(i)
		b := arrowBounds{rg.MetaData(), columns}
		if !q.mayHold(b, "epoch") {
			continue
		}
		g := &groupReader{rg: rg, columns: columns, rows: rg.NumRows()}
		if err := g.read(q, keysOnly, f); err != nil {
			if own, ok := err.(*callbackError); ok {
				return own.error
			}
			return fmt.Errorf("row group %d: %w", i, err)
		}
	}
	return nil
}

// callbackError marks an error of the caller's function, which is passed on as it is.
type callbackError struct{ error }

// recoverRead turns a panic of the Parquet libraries on hostile bytes into an
// error.
func recoverRead(err *error) {
	switch p := recover().(type) {
	case nil:
	case error:
		*err = fmt.Errorf("read Parquet: %w", p)
	case string:
		if len(p) > 4 && p[:4] == "BUG:" {
			panic(p)
		}
		*err = fmt.Errorf("read Parquet: %s", p)
	default:
		*err = fmt.Errorf("read Parquet: %v", p)
	}
}

func openVectors(r io.ReaderAt, size int64) (*file.Reader, error) {
	pf, err := file.NewParquetReader(io.NewSectionReader(r, 0, size), file.WithReadProps(vectorReadProperties()))
	if err != nil {
		return nil, fmt.Errorf("open as Parquet: %w", err)
	}
	return pf, nil
}

// vectorReadProperties stream the pages of a column chunk, so that a footer that
// claims a huge chunk makes no huge buffer.
func vectorReadProperties() *parquet.ReaderProperties {
	p := parquet.NewReaderProperties(nil)
	p.BufferedStreamEnabled = true
	return p
}

// locateColumns finds our columns by name. Files of later versions may have more.
func locateColumns(pf *file.Reader) (map[string]int, error) {
	sc := pf.MetaData().Schema
	columns := map[string]int{}
	want := map[string]parquet.Type{vecLeaf: parquet.Types.Float, rawColumn: parquet.Types.ByteArray}
	for _, c := range vectorColumns {
		switch {
		case c.text != nil:
			want[c.name] = parquet.Types.ByteArray
		case c.i32 != nil:
			want[c.name] = parquet.Types.Int32
		case c.i64 != nil:
			want[c.name] = parquet.Types.Int64
		default:
			want[c.name] = parquet.Types.Boolean
		}
	}
	levels := map[string][2]int16{vecLeaf: {defElement, 1}, rawColumn: {1, 0}}
	for name, typ := range want {
		i := sc.ColumnIndexByName(name)
		if i < 0 {
			return nil, fmt.Errorf("it has no column %s: no file of table vectors", name)
		}
		c := sc.Column(i)
		if c.PhysicalType() != typ || c.MaxDefinitionLevel() != levels[name][0] || c.MaxRepetitionLevel() != levels[name][1] {
			return nil, fmt.Errorf("its column %s has another type than in table vectors", name)
		}
		columns[name] = i
	}
	return columns, nil
}

// arrowBounds are the statistics in the footer.
type arrowBounds struct {
	rg      *metadata.RowGroupMetaData
	columns map[string]int
}

func (b arrowBounds) statistics(column string) metadata.TypedStatistics {
	i, ok := b.columns[column]
	if !ok {
		return nil
	}
	chunk, err := b.rg.ColumnChunk(i)
	if err != nil {
		return nil
	}
	if s, err := chunk.Statistics(); err == nil && s != nil && s.HasMinMax() {
		return s
	}
	return nil
}

func (b arrowBounds) text(column string) (low, high string, ok bool) {
	s, ok := b.statistics(column).(*metadata.ByteArrayStatistics)
	if !ok {
		return "", "", false
	}
	return string(s.Min()), string(s.Max()), true
}

func (b arrowBounds) number(column string) (low, high int64, ok bool) {
	switch s := b.statistics(column).(type) {
	case *metadata.Int32Statistics:
		return int64(s.Min()), int64(s.Max()), true
	case *metadata.Int64Statistics:
		return s.Min(), s.Max(), true
	}
	return 0, 0, false
}

// groupReader reads one row group.
type groupReader struct {
	rg      *file.RowGroupReader
	columns map[string]int
	rows    int64
	texts   map[string][]string
	numbers map[string][]int64
	flags   []bool
	epochs  map[string]uint64
	shapes  map[string][]int
}

// maxReadRows bounds the rows of a row group of a foreign file; ours are smaller.
const maxReadRows = 1 << 24

func (g *groupReader) read(q *Query, keysOnly bool, f func(*Vector) error) error {
	if g.rows < 0 || g.rows > maxReadRows {
		return fmt.Errorf("it has %d rows; at most %d", g.rows, maxReadRows)
	}
	if err := g.readKeys(); err != nil {
		return err
	}
	match := make([]bool, g.rows)
	any := false
	var v Vector
	for i := range match {
		if err := g.keys(i, &v); err != nil {
			return err
		}
		match[i] = q.row(&v.Origin, &v.Place)
		any = any || match[i]
	}
	if !any {
		return nil
	}
	var values *vectorValues
	if !keysOnly {
		var err error
		if values, err = g.readValues(match); err != nil {
			return err
		}
	}
	for i := range match {
		if !match[i] {
			continue
		}
		if err := g.keys(i, &v); err != nil {
			return err
		}
		v.Raw = nil
		if values != nil {
			raw, err := values.row(i, &v)
			if err != nil {
				return fmt.Errorf("row %d: %w", i, err)
			}
			v.Raw = raw
		}
		if err := f(&v); err != nil {
			return &callbackError{err}
		}
	}
	return nil
}

func (g *groupReader) readKeys() error {
	g.texts, g.numbers = map[string][]string{}, map[string][]int64{}
	g.epochs, g.shapes = map[string]uint64{}, map[string][]int{}
	for _, c := range vectorColumns {
		cr, err := g.rg.Column(g.columns[c.name])
		if err != nil {
			return fmt.Errorf("column %s: %w", c.name, err)
		}
		switch cr := cr.(type) {
		case *file.ByteArrayColumnChunkReader:
			g.texts[c.name], err = readTexts(cr, g.rows)
		case *file.Int32ColumnChunkReader:
			g.numbers[c.name], err = readNumbers(cr.ReadBatch, g.rows)
		case *file.Int64ColumnChunkReader:
			g.numbers[c.name], err = readNumbers(cr.ReadBatch, g.rows)
		case *file.BooleanColumnChunkReader:
			g.flags, err = readAll(cr.ReadBatch, g.rows)
		}
		if err == nil {
			err = cr.Err()
		}
		if err != nil {
			return fmt.Errorf("column %s: %w", c.name, err)
		}
	}
	return nil
}

type readBatch[T any] func(n int64, values []T, def, rep []int16) (int64, int, error)

// readAll reads exactly so many values of a required column. Memory grows with
// what is there, not with what the footer claims.
func readAll[T any](read readBatch[T], rows int64) ([]T, error) {
	var out []T
	buf := make([]T, min(rows, levelsPerBatch))
	for int64(len(out)) < rows {
		n, _, err := read(min(int64(len(buf)), rows-int64(len(out))), buf, nil, nil)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("it ends after %d of %d values", len(out), rows)
		}
		out = append(out, buf[:n]...)
	}
	return out, nil
}

func readNumbers[T int32 | int64](read readBatch[T], rows int64) ([]int64, error) {
	values, err := readAll(read, rows)
	if err != nil {
		return nil, err
	}
	out := make([]int64, len(values))
	for i, v := range values {
		out[i] = int64(v)
	}
	return out, nil
}

// readTexts keeps one string per distinct text: most columns repeat few.
func readTexts(cr *file.ByteArrayColumnChunkReader, rows int64) ([]string, error) {
	known := map[string]string{}
	var out []string
	buf := make([]parquet.ByteArray, min(rows, 1024))
	for int64(len(out)) < rows {
		n, _, err := cr.ReadBatch(min(int64(len(buf)), rows-int64(len(out))), buf, nil, nil)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, fmt.Errorf("it ends after %d of %d values", len(out), rows)
		}
		for _, b := range buf[:n] {
			s, ok := known[string(b)]
			if !ok {
				s = string(b)
				known[s] = s
			}
			out = append(out, s)
		}
	}
	return out, nil
}

// keys fills v with row i, but for Raw.
func (g *groupReader) keys(i int, v *Vector) error {
	text := func(c string) string { return g.texts[c][i] }
	number := func(c string) int64 { return g.numbers[c][i] }
	epoch, ok := g.epochs[text("epoch")]
	if !ok {
		var err error
		if epoch, err = parseEpoch(text("epoch")); err != nil {
			return err
		}
		g.epochs[text("epoch")] = epoch
	}
	shape, ok := g.shapes[text("shape")]
	if !ok {
		var err error
		if shape, err = parseShape(text("shape")); err != nil {
			return err
		}
		g.shapes[text("shape")] = shape
	}
	if row := number("row"); row < 0 || row > math.MaxUint32 {
		return fmt.Errorf("row number %d is out of range", row)
	}
	v.Origin = Origin{Epoch: epoch, Engine: text("engine"), Rank: int(number("rank")), Tenant: text("tenant"),
		Model: text("model"), Revision: text("revision"), WeightsDigest: text("weights_digest"),
		Quantisation: text("quantisation"), EngineVersion: text("engine_version"), PolicyVersion: text("policy_version")}
	v.Place = Place{Hook: text("hook"), Layer: int(number("layer")), Shard: int(number("shard")),
		ShardCount: int(number("shard_count")), Seq: uint64(number("seq")), Row: uint32(number("row")),
		Number: uint64(number("number")), Request: text("request"), Sample: int32(number("sample")),
		Position: int32(number("position")), Pass: int32(number("pass")), Phase: uint8(number("phase")),
		CaptureNS: number("capture_ns")}
	v.DType, v.Shape, v.Ragged = text("dtype"), shape, g.flags[i]
	return nil
}
