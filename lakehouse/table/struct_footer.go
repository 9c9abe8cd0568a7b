package table

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
)

// tailWriter passes a file of parquet-go on, but keeps what is written once hold was
// called: indexes and footer, which are amended before they go out.
type tailWriter struct {
	w    io.Writer
	at   int64 // in the file
	held bool
	tail bytes.Buffer
}

// Write implements io.Writer.
func (t *tailWriter) Write(b []byte) (int, error) {
	if t.held {
		return t.tail.Write(b)
	}
	n, err := t.w.Write(b)
	t.at += int64(n)
	return n, err
}

// hold is called when all row groups are written.
func (t *tailWriter) hold() { t.held = true }

// finish writes the tail without bounds of floats. parquet-go takes NaN for a bound
// where all is NaN and passes over it elsewhere, and leaves the sign of a zero:
// readers then skip rows, or take NaN in, by the order that each of them has. Its
// own option to leave them out makes 0 the bound of each page.
func (t *tailWriter) finish() error {
	tail := t.tail.Bytes()
	end := len(tail) - 4 - len(magic)
	if end < 0 || string(tail[end+4:]) != magic {
		panic("BUG: the writer ended without a footer")
	}
	start := end - int(binary.LittleEndian.Uint32(tail[end:]))
	if start < 0 {
		panic("BUG: the footer began before the last row group ended")
	}
	var meta format.FileMetaData
	protocol := &thrift.CompactProtocol{}
	if err := thrift.Unmarshal(protocol, tail[start:end], &meta); err != nil {
		return fmt.Errorf("read back the footer: %w", err)
	}
	out := t.dropFloatBounds(&meta, tail[:start])
	footer, err := thrift.Marshal(protocol, &meta)
	if err != nil {
		return fmt.Errorf("encode the footer: %w", err)
	}
	out = binary.LittleEndian.AppendUint32(append(out, footer...), uint32(len(footer)))
	if _, err := t.w.Write(append(out, magic...)); err != nil {
		return fmt.Errorf("write the footer: %w", err)
	}
	return nil
}

// dropFloatBounds takes the bounds of floats out of the metadata and out of the
// indexes, which it returns. It leaves no holes: parquet-go reads all indexes at
// once, as if they touched.
func (t *tailWriter) dropFloatBounds(meta *format.FileMetaData, indexes []byte) []byte {
	var out []byte
	from, dropped := int64(0), int64(0) // of indexes
	chunks := func(do func(c *format.ColumnChunk)) {
		for i := range meta.RowGroups {
			for j := range meta.RowGroups[i].Columns {
				do(&meta.RowGroups[i].Columns[j])
			}
		}
	}
	chunks(func(c *format.ColumnChunk) {
		if kind := c.MetaData.Type; kind != format.Float && kind != format.Double {
			c.ColumnIndexOffset -= dropped
			return
		}
		at := c.ColumnIndexOffset - t.at
		if at < from || at > int64(len(indexes)) {
			panic("BUG: the column indexes are not in the order of the columns")
		}
		out, from = append(out, indexes[from:at]...), at+int64(c.ColumnIndexLength)
		dropped += int64(c.ColumnIndexLength)
		c.ColumnIndexOffset, c.ColumnIndexLength = 0, 0
		c.MetaData.Statistics = format.Statistics{NullCount: c.MetaData.Statistics.NullCount}
	})
	chunks(func(c *format.ColumnChunk) { c.OffsetIndexOffset -= dropped }) // they follow
	return append(out, indexes[from:]...)
}
