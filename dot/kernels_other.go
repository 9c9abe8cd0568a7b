//go:build !amd64

package dot

import "unsafe"

func best() level { return levelGo }

func dispatch(e element, row unsafe.Pointer, w []float32) float32 { return plain(e, row, w) }

func mulRows(dst []float32, stride int, words []uint16, x []float32, k, n int) {
	plainMulRows(dst, stride, words, x, k, n)
}

func rowsF32(dst, q, rows []float32, stride int) { plainRows(dst, q, rows, stride) }

func addRows(dst, weights, rows []float32, stride int) { plainAddRows(dst, weights, rows, stride) }
