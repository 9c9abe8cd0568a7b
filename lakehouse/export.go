package lakehouse

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"sonde/lakehouse/table"
)

// elementBytes is the size of an element of each dtype.
var elementBytes = map[string]int{"f32": 4, "f16": 2, "bf16": 2, "f8e4m3": 1, "f8e5m2": 1, "i32": 4, "u8": 1, "i64": 8,
	"u16": 2, "i8": 1}

// npyTypes are the dtypes that NumPy has. It has neither bf16 nor fp8: they are
// written as float32, which holds them exactly.
var npyTypes = map[string]string{"f32": "<f4", "f16": "<f2", "i32": "<i4", "u8": "|u1", "i64": "<i8", "u16": "<u2",
	"i8": "|i1"}

// errRagged: the format has no tensors whose rows differ in length.
var errRagged = errors.New("rows differ in length, and an npy file holds one shape: ask for arrow or safetensors")

// WriteNPY writes the rows as one NumPy array of shape Shape. bf16 and fp8, which
// NumPy does not have, become float32, exactly. A ragged tensor is an error.
func (t *Tensor) WriteNPY(w io.Writer) error {
	if t.Ragged && !allEqual(t.RowBytes) {
		return errRagged
	}
	descr, raw := npyTypes[t.DType], t.Raw
	if descr == "" {
		values, ok := table.Widen(t.DType, t.Raw)
		if !ok {
			return fmt.Errorf("write npy: dtype %q is unknown", t.DType)
		}
		descr, raw = "<f4", make([]byte, 0, 4*len(values))
		for _, v := range values {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
		}
	}
	b := bufio.NewWriter(w)
	for _, part := range [][]byte{npyHeader(descr, t.fullShape()), raw} {
		if _, err := b.Write(part); err != nil {
			return fmt.Errorf("write npy: %w", err)
		}
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write npy: %w", err)
	}
	return nil
}

// fullShape is Shape, with the number of elements of a ragged row behind the rows.
func (t *Tensor) fullShape() []int {
	if !t.Ragged {
		return t.Shape
	}
	size := elementBytes[t.DType]
	for _, n := range t.Shape[1:] {
		size *= n
	}
	elements := 0
	if len(t.RowBytes) > 0 {
		elements = t.RowBytes[0] / size
	}
	return slices.Insert(slices.Clone(t.Shape), 1, elements)
}

func allEqual(n []int) bool {
	return !slices.ContainsFunc(n, func(v int) bool { return v != n[0] })
}

// npyHeader is the header of NPY format 1.0: magic, length, and a Python literal,
// padded so that the data starts at a multiple of 64 bytes.
func npyHeader(descr string, shape []int) []byte {
	dims := make([]string, len(shape))
	for i, n := range shape {
		dims[i] = strconv.Itoa(n) + ","
	}
	dict := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", descr, strings.Join(dims, " "))
	const before = 10 // magic, version, length
	dict += strings.Repeat(" ", (64-(before+len(dict)+1)%64)%64) + "\n"
	head := append([]byte("\x93NUMPY\x01\x00"), 0, 0)
	binary.LittleEndian.PutUint16(head[8:], uint16(len(dict)))
	return append(head, dict...)
}
