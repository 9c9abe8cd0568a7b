package table

import (
	"errors"
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
)

// maxStructGroupRows bounds a row group of the tables whose rows are structs;
// structGroupRows is when one ends at the end of a request. Tables that are not
// ordered by request have smaller ones: what one request needs is found by group.
const (
	maxStructGroupRows = 1 << 16
	unorderedGroupRows = 1 << 14
	structGroupRows    = 1 << 12
	structBatchRows    = 256
)

// Write writes rows as one Parquet file of the table that they belong to. Rows of
// tokens and vector_stats are reordered by request, like vectors.
func Write(w io.Writer, kv []KeyValue, refs []Ref) error {
	switch name := refs[0].Message.table; name {
	case Vectors:
		return WriteVectors(w, kv, refs)
	case Tokens:
		sortByRequest(refs)
		return writeStructs(w, kv, refs, tokenColumnsOf, func(c *tokenColumns) string { return c.Request })
	case VectorStats:
		sortByRequest(refs)
		return writeStructs(w, kv, refs, statsColumnsOf, func(c *statsColumns) string { return c.Request })
	case Requests:
		return writeStructs(w, kv, refs, requestColumnsOf, nil)
	case Ledger:
		return writeStructs(w, kv, refs, factColumnsOf, nil)
	case Detections:
		return writeStructs(w, kv, refs, detectionColumnsOf, nil)
	default:
		panic(fmt.Sprintf("BUG: unknown table %q", name))
	}
}

// writeStructs cuts row groups at the ends of requests, where rows are ordered so.
func writeStructs[C any](w io.Writer, kv []KeyValue, refs []Ref, columns func(*Message, int) C,
	request func(*C) string) (err error) {
	defer recoverWrite(&err)
	most := int64(maxStructGroupRows)
	if request == nil {
		most = unorderedGroupRows
	}
	o := []parquet.WriterOption{parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}), parquet.DataPageVersion(2),
		parquet.CreatedBy("sonde", "1", ""), parquet.MaxRowsPerRowGroup(most)}
	for _, e := range kv {
		o = append(o, parquet.KeyValueMetadata(e.Key, e.Value))
	}
	out := &tailWriter{w: w}
	pw := parquet.NewGenericWriter[C](out, o...)
	buf := make([]C, 0, structBatchRows)
	inGroup, last := 0, ""
	flush := func() error {
		n, err := pw.Write(buf)
		inGroup += n
		buf = buf[:0]
		return err
	}
	for _, ref := range refs {
		c := columns(ref.Message, ref.Index)
		if request != nil {
			if r := request(&c); r != last && inGroup+len(buf) >= structGroupRows {
				if err := errors.Join(flush(), pw.Flush()); err != nil {
					return fmt.Errorf("write a row group: %w", err)
				}
				inGroup, last = 0, r
			} else {
				last = r
			}
		}
		if buf = append(buf, c); len(buf) == structBatchRows {
			if err := flush(); err != nil {
				return fmt.Errorf("write rows: %w", err)
			}
		}
	}
	if err := errors.Join(flush(), pw.Flush()); err != nil {
		return fmt.Errorf("write rows: %w", err)
	}
	out.hold()
	if err := pw.Close(); err != nil {
		return fmt.Errorf("write the footer: %w", err)
	}
	return out.finish()
}

// ReadTokens calls f with the rows of a tokens file that match q, as ReadVectors
// does.
func ReadTokens(r io.ReaderAt, size int64, q *Query, f func(*Token) error) error {
	return readStructs(r, size, q, "epoch", (*tokenColumns).row,
		func(t *Token) bool { return q.row(&t.Origin, &t.Place) }, f, nil)
}

// ReadStats is ReadTokens for vector_stats.
func ReadStats(r io.ReaderAt, size int64, q *Query, f func(*Stats) error) error {
	return readStructs(r, size, q, "epoch", (*statsColumns).row,
		func(s *Stats) bool { return q.row(&s.Origin, &s.Place) }, f, nil)
}

// ReadRequests is ReadTokens for requests.
func ReadRequests(r io.ReaderAt, size int64, q *Query, f func(*RequestEvent) error) error {
	p := Query{Request: q.Request, Sample: q.Sample, Tenant: q.Tenant, Epoch: q.Epoch, Seq: q.Seq}
	return readStructs(r, size, &p, "epoch", (*requestColumns).row, q.request, f, nil)
}

// ReadLedger is ReadTokens for ledger. Row groups are not skipped by hook or
// position: facts may be about many.
func ReadLedger(r io.ReaderAt, size int64, q *Query, f func(*Fact) error) error {
	p := Query{Request: q.Request, Sample: q.Sample, Pass: q.Pass, Tenant: q.Tenant, Epoch: q.Epoch, Seq: q.Seq}
	return readStructs(r, size, &p, "epoch", (*factColumns).row, q.fact, f, nil)
}

// ReadDetections is ReadTokens for detections.
func ReadDetections(r io.ReaderAt, size int64, q *Query, f func(*Detection) error) error {
	p := Query{Request: q.Request, Sample: q.Sample, Position: q.Position, Tenant: q.Tenant, Epoch: q.Epoch, Seq: q.Seq}
	return readStructs(r, size, &p, "engine_epoch", (*detectionColumns).row, q.detection, f, nil)
}

// readStructs reads the row groups that may hold rows of q by their statistics, and
// of them those that holds does not exclude; it may be nil.
func readStructs[C, R any](r io.ReaderAt, size int64, q *Query, epochColumn string, row func(*C) (R, error),
	match func(*R) bool, f func(*R) error, holds func(*parquet.File, parquet.RowGroup) (bool, error)) (err error) {
	defer recoverRead(&err) // parquet-go panics on some damaged files
	file, err := parquet.OpenFile(r, size, parquet.SkipBloomFilters(true), parquet.SkipPageIndex(true))
	if err != nil {
		return fmt.Errorf("open as Parquet: %w", err)
	}
	if err := checkSchema(parquet.SchemaOf(new(C)), file.Schema()); err != nil {
		return err
	}
	for i, rg := range file.RowGroups() {
		if !q.mayHold(newStructBounds(file, i), epochColumn) {
			continue
		}
		read := true
		if holds != nil {
			read, err = holds(file, rg)
		}
		if err == nil && read {
			err = readStructGroup(rg, row, match, f)
		}
		if own, ok := err.(*callbackError); ok {
			return own.error
		}
		if err != nil {
			return fmt.Errorf("row group %d: %w", i, err)
		}
	}
	return nil
}

// checkSchema demands that the file has our columns. It may have others.
func checkSchema(want, got *parquet.Schema) error {
	for _, path := range want.Columns() {
		w, _ := want.Lookup(path...)
		g, ok := got.Lookup(path...)
		if !ok || g.Node.Type().Kind() != w.Node.Type().Kind() {
			return fmt.Errorf("it has no column %v of type %s: no file of this table", path, w.Node.Type())
		}
	}
	return nil
}

func readStructGroup[C, R any](rg parquet.RowGroup, row func(*C) (R, error), match func(*R) bool,
	f func(*R) error) error {
	reader := parquet.NewGenericRowGroupReader[C](rg)
	defer reader.Close() // reads nothing more
	buf := make([]C, structBatchRows)
	for {
		n, err := reader.Read(buf)
		for i := range buf[:n] {
			out, err := row(&buf[i])
			if err != nil {
				return err
			}
			if !match(&out) {
				continue
			}
			if err := f(&out); err != nil {
				return &callbackError{err}
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case n == 0:
			return io.ErrNoProgress
		}
		clear(buf) // maps of a batch must not be filled by the next
	}
}

// structBounds are the statistics in the footer of a file of parquet-go.
type structBounds struct {
	columns map[string]*parquet.FileColumnChunk
}

func newStructBounds(file *parquet.File, group int) structBounds {
	b := structBounds{map[string]*parquet.FileColumnChunk{}}
	rg := file.RowGroups()[group]
	for i, path := range file.Schema().Columns() {
		if c, ok := rg.ColumnChunks()[i].(*parquet.FileColumnChunk); ok && len(path) == 1 {
			b.columns[path[0]] = c
		}
	}
	return b
}

func (b structBounds) of(column string) (low, high parquet.Value, ok bool) {
	c, ok := b.columns[column]
	if !ok {
		return low, high, false
	}
	return c.Bounds()
}

func (b structBounds) text(column string) (low, high string, ok bool) {
	l, h, ok := b.of(column)
	if !ok || l.Kind() != parquet.ByteArray {
		return "", "", false
	}
	return string(l.ByteArray()), string(h.ByteArray()), true
}

func (b structBounds) number(column string) (low, high int64, ok bool) {
	l, h, ok := b.of(column)
	switch {
	case !ok:
		return 0, 0, false
	case l.Kind() == parquet.Int32:
		return int64(l.Int32()), int64(h.Int32()), true
	case l.Kind() == parquet.Int64:
		return l.Int64(), h.Int64(), true
	}
	return 0, 0, false
}
