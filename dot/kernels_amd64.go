package dot

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

func best() level {
	x := &cpu.X86
	switch {
	case x.HasAVX512F && x.HasAVX2 && x.HasFMA && x.HasF16C:
		return levelAVX512
	case x.HasAVX2 && x.HasFMA && x.HasF16C:
		return levelAVX2
	default:
		return levelGo
	}
}

// block is how many elements the assembly takes at a time. What is left over of
// a row is added one by one, in the same way at every level.
const block = 16

func dispatch(e element, row unsafe.Pointer, w []float32) float32 {
	if current == levelGo {
		return plain(e, row, w)
	}
	whole := len(w) &^ (block - 1)
	var sum float32
	if whole > 0 {
		sum = assembly(e, row, unsafe.SliceData(w), whole)
	}
	if whole == len(w) {
		return sum
	}
	rest := unsafe.Slice((*byte)(row), len(w)*e.size())[whole*e.size():]
	for i, v := range w[whole:] {
		sum += at(e, rest, i) * v
	}
	return sum
}

// assembly is the dot product of n elements, n a positive multiple of block.
func assembly(e element, row unsafe.Pointer, w *float32, n int) float32 {
	switch {
	case e == f32 && current == levelAVX512:
		return dotF32AVX512(row, w, n)
	case e == f32:
		return dotF32AVX2(row, w, n)
	case e == bf16 && current == levelAVX512:
		return dotBF16AVX512(row, w, n)
	case e == bf16:
		return dotBF16AVX2(row, w, n)
	case current == levelAVX512:
		return dotF16AVX512(row, w, n)
	default:
		return dotF16AVX2(row, w, n)
	}
}

// vector says whether the assembly takes rows of n elements.
func vector(n int) bool { return current != levelGo && n > 0 && n%block == 0 }

// mulRows computes the rows of words, at most Group of k each, for n inputs of k
// elements: dst[j*stride+i] is row i times input j.
func mulRows(dst []float32, stride int, words []uint16, x []float32, k, n int) {
	if !vector(k) || len(words) != Group*k {
		plainMulRows(dst, stride, words, x, k, n)
		return
	}
	w := unsafe.SliceData(words)
	j := 0
	if current == levelAVX512 {
		for ; j+4 <= n; j += 4 {
			mul4x4AVX512(w, &x[j*k], &dst[j*stride], stride, k)
		}
	}
	for ; j < n; j++ {
		if current == levelAVX512 {
			mul4x1AVX512(w, &x[j*k], &dst[j*stride], k)
		} else {
			mul4x1AVX2(w, &x[j*k], &dst[j*stride], k)
		}
	}
}

func rowsF32(dst, q, rows []float32, stride int) {
	switch {
	case len(dst) == 0:
	case !vector(len(q)):
		plainRows(dst, q, rows, stride)
	case current == levelAVX512:
		rowsF32AVX512(&dst[0], &q[0], &rows[0], stride, len(q), len(dst))
	default:
		rowsF32AVX2(&dst[0], &q[0], &rows[0], stride, len(q), len(dst))
	}
}

func addRows(dst, weights, rows []float32, stride int) {
	switch {
	case len(weights) == 0:
	case !vector(len(dst)):
		plainAddRows(dst, weights, rows, stride)
	case current == levelAVX512:
		addRowsAVX512(&dst[0], &weights[0], &rows[0], stride, len(dst), len(weights))
	default:
		addRowsAVX2(&dst[0], &weights[0], &rows[0], stride, len(dst), len(weights))
	}
}

//go:noescape
func dotF32AVX512(row unsafe.Pointer, w *float32, n int) float32

//go:noescape
func dotBF16AVX512(row unsafe.Pointer, w *float32, n int) float32

//go:noescape
func dotF16AVX512(row unsafe.Pointer, w *float32, n int) float32

//go:noescape
func mul4x4AVX512(w *uint16, x *float32, dst *float32, stride, k int)

//go:noescape
func mul4x1AVX512(w *uint16, x *float32, dst *float32, k int)

//go:noescape
func rowsF32AVX512(dst, q, rows *float32, stride, n, count int)

//go:noescape
func addRowsAVX512(dst, weights, rows *float32, stride, n, count int)

//go:noescape
func dotF32AVX2(row unsafe.Pointer, w *float32, n int) float32

//go:noescape
func dotBF16AVX2(row unsafe.Pointer, w *float32, n int) float32

//go:noescape
func dotF16AVX2(row unsafe.Pointer, w *float32, n int) float32

//go:noescape
func mul4x1AVX2(w *uint16, x *float32, dst *float32, k int)

//go:noescape
func rowsF32AVX2(dst, q, rows *float32, stride, n, count int)

//go:noescape
func addRowsAVX2(dst, weights, rows *float32, stride, n, count int)
