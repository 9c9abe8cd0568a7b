package table

import "encoding/binary"

// levelsPerBatch bounds the values that are read at once, but for a row that is
// longer.
const levelsPerBatch = 1 << 16

// null is the length of a list that is not there.
const null = -1

// Definition levels of an optional list of required elements, and their width in
// bits. Repetition levels are 0 for the first element of a row and 1 for the others.
const (
	defNull    = 0
	defEmpty   = 1
	defElement = 2
)

// appendLevels appends the repetition and the definition levels of a page of
// version 1: each a length and runs of equal levels. Runs are made from the rows:
// looking at the levels one by one would cost more than compressing the values.
func appendLevels(dst []byte, rows []vecRow) []byte {
	start := len(dst)
	w := runWriter{dst: append(dst, 0, 0, 0, 0)}
	for i := range rows {
		w.add(0, 1)
		w.add(1, max(rows[i].dim(), 1)-1)
	}
	dst = w.end()
	binary.LittleEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	start = len(dst)
	w = runWriter{dst: append(dst, 0, 0, 0, 0)}
	for i := range rows {
		switch d := rows[i].dim(); d {
		case null:
			w.add(defNull, 1)
		case 0:
			w.add(defEmpty, 1)
		default:
			w.add(defElement, d)
		}
	}
	dst = w.end()
	binary.LittleEndian.PutUint32(dst[start:], uint32(len(dst)-start-4))
	return dst
}

// runWriter writes the RLE runs of Parquet's hybrid encoding, for levels of at most
// 8 bits.
type runWriter struct {
	dst   []byte
	level byte
	count int
}

func (w *runWriter) add(level byte, count int) {
	if level != w.level && count > 0 {
		w.flush()
		w.level = level
	}
	w.count += count
}

func (w *runWriter) flush() {
	if w.count > 0 {
		w.dst = append(binary.AppendUvarint(w.dst, uint64(w.count)<<1), w.level)
		w.count = 0
	}
}

func (w *runWriter) end() []byte {
	w.flush()
	return w.dst
}
