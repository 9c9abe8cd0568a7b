package dot

import (
	"fmt"
	"unsafe"
)

// F32 is the dot product of two vectors of the same length.
func F32(a, b []float32) float32 {
	if len(a) != len(b) {
		panic(fmt.Sprintf("BUG: dot product of %d and %d elements", len(a), len(b)))
	}
	return dispatch(f32, unsafe.Pointer(unsafe.SliceData(a)), b)
}

// F32Bytes is F32 of a row of little-endian float32 at any address; the row
// holds 4*len(w) bytes.
func F32Bytes(row []byte, w []float32) float32 {
	mustHold(row, 4, w)
	return dispatch(f32, unsafe.Pointer(unsafe.SliceData(row)), w)
}

// BF16 is the dot product of a row of little-endian bfloat16, at any address,
// with w; the row holds 2*len(w) bytes.
func BF16(row []byte, w []float32) float32 {
	mustHold(row, 2, w)
	return dispatch(bf16, unsafe.Pointer(unsafe.SliceData(row)), w)
}

// BF16Words is BF16 of a row of words, as weights are kept.
func BF16Words(row []uint16, w []float32) float32 {
	if len(row) != len(w) {
		panic(fmt.Sprintf("BUG: dot product of %d and %d elements", len(row), len(w)))
	}
	return dispatch(bf16, unsafe.Pointer(unsafe.SliceData(row)), w)
}

// F16 is the dot product of a row of little-endian IEEE 754 binary16, at any
// address, with w; the row holds 2*len(w) bytes.
func F16(row []byte, w []float32) float32 {
	mustHold(row, 2, w)
	return dispatch(f16, unsafe.Pointer(unsafe.SliceData(row)), w)
}

func mustHold(row []byte, size int, w []float32) {
	if len(row) != size*len(w) {
		panic(fmt.Sprintf("BUG: dot product of a row of %d bytes, elements of %d bytes, with %d elements",
			len(row), size, len(w)))
	}
}

// element is the type of a row's elements.
type element int

const (
	f32 element = iota
	bf16
	f16
)

func (e element) size() int {
	if e == f32 {
		return 4
	}
	return 2
}
