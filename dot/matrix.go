package dot

import (
	"fmt"
	"unsafe"
)

// Group is how many rows of a Matrix are computed together: bounds of Mul are
// multiples of it.
const Group = 4

// Matrix is a matrix of bfloat16 weights that multiplies float32 vectors.
type Matrix struct {
	rows, cols int
	words      []uint16
}

// NewMatrix makes a matrix, at least 1 by 1, of words, row by row. It keeps words.
func NewMatrix(words []uint16, rows, cols int) *Matrix {
	if rows < 1 || cols < 1 || len(words) != rows*cols {
		panic(fmt.Sprintf("BUG: %d weights are no matrix of %d by %d", len(words), rows, cols))
	}
	return &Matrix{rows: rows, cols: cols, words: words}
}

// Rows is the length of what Mul writes for an input.
func (m *Matrix) Rows() int { return m.rows }

// Cols is the length of an input.
func (m *Matrix) Cols() int { return m.cols }

// Mul computes the matrix's rows from, inclusive, to, exclusive, for n inputs:
// dst[j*Rows()+i] is row i times x[j*Cols():][:Cols()]. Several goroutines may
// share the rows of one product between them: from is a multiple of Group, and
// to one or the last row. Each element has the same bits whatever n, from and to
// are. Weights are read from memory once for 16 inputs, which stay in the
// processor's nearest cache meanwhile.
func (m *Matrix) Mul(dst, x []float32, n, from, to int) {
	if from < 0 || to > m.rows || from%Group != 0 || to%Group != 0 && to != m.rows ||
		len(dst) < n*m.rows || len(x) < n*m.cols {
		panic(fmt.Sprintf("BUG: rows %d to %d of a matrix of %d by %d times %d inputs, %d elements into %d",
			from, to, m.rows, m.cols, n, len(x), len(dst)))
	}
	for n > 0 {
		few := min(n, 16)
		for i := from; i < to; i += Group {
			rows := min(Group, to-i)
			mulRows(dst[i:], m.rows, m.words[i*m.cols:(i+rows)*m.cols], x, m.cols, few)
		}
		if n -= few; n > 0 {
			dst, x = dst[few*m.rows:], x[few*m.cols:]
		}
	}
}

// plainMulRows sets dst[j*stride+i] to row i of words times input j.
func plainMulRows(dst []float32, stride int, words []uint16, x []float32, k, n int) {
	for i := range len(words) / k {
		row := unsafe.Pointer(unsafe.SliceData(words[i*k:]))
		for j := range n {
			dst[j*stride+i] = plain(bf16, row, x[j*k:(j+1)*k])
		}
	}
}
