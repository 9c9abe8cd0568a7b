package dot

import (
	"fmt"
	"unsafe"
)

// F32Rows sets dst[t] to the dot product of q with the row that starts at
// rows[t*stride]: the scores of an attention head over keys that lie among those
// of other heads.
func F32Rows(dst, q, rows []float32, stride int) {
	mustHoldRows(len(dst), len(q), rows, stride)
	rowsF32(dst, q, rows, stride)
}

// AddRows adds to dst, for each t in order, weights[t] times the row of len(dst)
// elements that starts at rows[t*stride].
func AddRows(dst, weights, rows []float32, stride int) {
	mustHoldRows(len(weights), len(dst), rows, stride)
	addRows(dst, weights, rows, stride)
}

func mustHoldRows(count, n int, rows []float32, stride int) {
	if stride < 0 || count > 0 && len(rows) < (count-1)*stride+n {
		panic(fmt.Sprintf("BUG: %d elements do not hold %d rows of %d, %d apart", len(rows), count, n, stride))
	}
}

func plainRows(dst, q, rows []float32, stride int) {
	for t := range dst {
		dst[t] = plain(f32, unsafe.Pointer(unsafe.SliceData(rows[t*stride:])), q)
	}
}

func plainAddRows(dst, weights, rows []float32, stride int) {
	for t, a := range weights {
		for i, v := range rows[t*stride : t*stride+len(dst)] {
			dst[i] += a * v
		}
	}
}
