package table

import (
	"bytes"
	"encoding/binary"

	"github.com/apache/arrow-go/v18/parquet/file"
)

// rawPageBytes is the size at which a page of the raw column ends.
const rawPageBytes = 1 << 20

// rawPages divides the rows of a row group into pages of the raw column: definition
// levels, then the bytes of the rows that have no list, PLAIN.
func rawPages(pager file.PageWriter, rows []vecRow) []page {
	var out []page
	var values []byte
	for from := 0; from < len(rows); {
		to, nulls := from, 0
		values = values[:0]
		for to < len(rows) && len(values) < rawPageBytes {
			if r := &rows[to]; r.codec == nil {
				values = append(binary.LittleEndian.AppendUint32(values, uint32(len(r.raw))), r.raw...)
			} else {
				nulls++
			}
			to++
		}
		body := append(appendRawLevels(nil, rows[from:to]), values...)
		var buf bytes.Buffer
		data := pager.Compress(&buf, body)
		out = append(out, page{bytes.Clone(data), to - from, nulls, len(body)})
		from = to
	}
	return out
}

// appendRawLevels appends the definition levels of an optional value: 0 is null.
func appendRawLevels(dst []byte, rows []vecRow) []byte {
	w := runWriter{dst: append(dst, 0, 0, 0, 0)}
	for i := range rows {
		level := byte(0)
		if rows[i].codec == nil {
			level = 1
		}
		w.add(level, 1)
	}
	start := len(dst)
	dst = w.end()
	binary.LittleEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst
}
