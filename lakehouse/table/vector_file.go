package table

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/metadata"
	pq "github.com/apache/arrow-go/v18/parquet/schema"
)

// magic opens and closes a Parquet file.
const magic = "PAR1"

// vectorFile puts a Parquet file together from row groups, column by column. It
// stands where arrow-go's file writer would, which takes no finished pages.
type vectorFile struct {
	sink  countingWriter
	props *parquet.WriterProperties
	meta  *metadata.FileMetaDataBuilder

	group   *metadata.RowGroupMetaDataBuilder
	groups  int
	ordinal int // of the next column
	pager   file.PageWriter
}

// countingWriter knows how far it has written.
type countingWriter struct {
	w  io.Writer
	at int64
}

// Write implements io.Writer.
func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.at += int64(n)
	return n, err
}

// Tell is the position in the file.
func (c *countingWriter) Tell() int64 { return c.at }

func newVectorFile(w io.Writer, kv []KeyValue) (*vectorFile, error) {
	root, err := vectorsNode()
	if err != nil {
		return nil, fmt.Errorf("make the schema: %w", err)
	}
	f := &vectorFile{sink: countingWriter{w: w}, props: vectorProperties()}
	f.meta = metadata.NewFileMetadataBuilder(pq.NewSchema(root), f.props, metadata.NewKeyValueMetadata())
	for _, e := range kv {
		if err := f.meta.AppendKeyValueMetadata(e.Key, e.Value); err != nil {
			return nil, fmt.Errorf("add %s: %w", e.Key, err)
		}
	}
	_, err = io.WriteString(&f.sink, magic)
	return f, err
}

func (f *vectorFile) beginGroup() {
	f.group, f.ordinal = f.meta.AppendRowGroup(), 0
}

// next starts the pages of the next column.
func (f *vectorFile) next() (c *metadata.ColumnChunkMetaDataBuilder, err error) {
	c = f.group.NextColumnChunk()
	path, group, ordinal := c.Descr().Path(), int16(f.groups), int16(f.ordinal)
	f.ordinal++
	codec, level := f.props.CompressionFor(path), f.props.CompressionLevelFor(path)
	if f.pager == nil {
		f.pager, err = file.NewPageWriter(&f.sink, codec, level, c, group, ordinal, f.props.Allocator(), false, nil, nil)
	} else {
		err = f.pager.Reset(&f.sink, codec, level, c, group, ordinal, nil, nil)
	}
	return c, err
}

// column starts the next column; its writer is closed before the one after it.
func (f *vectorFile) column() (file.ColumnChunkWriter, error) {
	c, err := f.next()
	if err != nil {
		return nil, err
	}
	return file.NewColumnChunkWriter(c, f.pager, f.props), nil
}

// pages writes the next column, whose pages are finished. Of such a column only the
// nulls are counted: its floats have no order that holds for NaN, and nobody looks
// for raw bytes by their bounds.
func (f *vectorFile) pages(encoding parquet.Encoding, pages func(file.PageWriter) []page) error {
	c, err := f.next()
	if err != nil {
		return err
	}
	nulls := 0
	for _, p := range pages(f.pager) {
		nulls += p.nulls
		if err := f.dataPage(p, encoding); err != nil {
			return err
		}
	}
	c.SetStats(nullCount(nulls))
	return f.pager.Close(false, false)
}

// dataPage writes a compressed page with its count of nulls. Without that, arrow-go
// writes statistics that count nothing, which parquet-java takes for wrong.
func (f *vectorFile) dataPage(p page, encoding parquet.Encoding) error {
	d := file.NewDataPageV1WithStats(memory.NewBufferBytes(p.data), int32(p.values), encoding, parquet.Encodings.RLE,
		parquet.Encodings.RLE, int32(p.uncompressed), nullCount(p.nulls))
	_, err := f.pager.WriteDataPage(d)
	d.Release()
	return err
}

func nullCount(n int) metadata.EncodedStatistics {
	return metadata.EncodedStatistics{HasNullCount: true, NullCount: int64(n)}
}

func (f *vectorFile) endGroup(rows int) error {
	f.group.SetNumRows(rows)
	err := f.group.Finish(0, int16(f.groups))
	f.groups++
	return err
}

// close writes the footer. The underlying file stays open: it is still to be
// synced.
func (f *vectorFile) close() error {
	meta, err := f.meta.Finish()
	if err != nil {
		return err
	}
	n, err := meta.WriteTo(&f.sink, nil)
	if err != nil {
		return err
	}
	_, err = f.sink.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(n)), magic...))
	return err
}
