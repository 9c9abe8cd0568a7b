package lakehouse

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"sonde/safetensors"
)

func tensorOf(dtype string, rowShape []int, rows int) *Tensor {
	size := elementBytes[dtype]
	for _, n := range rowShape {
		size *= n
	}
	t := &Tensor{Request: "r", Hook: "h", Layer: 2, Epoch: 0xab, Number: 3, DType: dtype,
		Shape: append([]int{rows}, rowShape...), ShardCount: 1}
	for i := range rows {
		t.Positions, t.Passes, t.RowBytes = append(t.Positions, int32(5+i)), append(t.Passes, 1), append(t.RowBytes, size)
		for k := range size {
			t.Raw = append(t.Raw, byte(i*31+k*7))
		}
	}
	return t
}

// readNPY checks the header as NumPy demands it and returns type, shape and data.
func readNPY(t *testing.T, file []byte) (descr, shape string, data []byte) {
	t.Helper()
	if !bytes.HasPrefix(file, []byte("\x93NUMPY\x01\x00")) {
		t.Fatal("no magic")
	}
	n := 10 + int(binary.LittleEndian.Uint16(file[8:]))
	head := string(file[10:n])
	if n%64 != 0 || !strings.HasSuffix(head, "\n") || !strings.Contains(head, "'fortran_order': False") {
		t.Errorf("header of %d bytes: %q", n, head)
	}
	_, rest, _ := strings.Cut(head, "'descr': '")
	descr, rest, _ = strings.Cut(rest, "'")
	_, rest, _ = strings.Cut(rest, "'shape': ")
	shape, _, _ = strings.Cut(rest, ", }")
	return descr, shape, file[n:]
}

func TestNPYHoldsEveryDTypeExactly(t *testing.T) {
	for dtype, want := range map[string]string{"f32": "<f4", "f16": "<f2", "bf16": "<f4", "f8e4m3": "<f4", "f8e5m2": "<f4",
		"i32": "<i4", "u8": "|u1", "i64": "<i8", "u16": "<u2", "i8": "|i1"} {
		tensor := tensorOf(dtype, []int{3, 2}, 4)
		var file bytes.Buffer
		if err := tensor.WriteNPY(&file); err != nil {
			t.Fatal(err)
		}
		descr, shape, data := readNPY(t, file.Bytes())
		if descr != want || shape != "(4, 3, 2,)" {
			t.Errorf("%s: type %s, shape %s", dtype, descr, shape)
		}
		if dtype == "bf16" {
			for i := range len(data) / 4 {
				bits := binary.LittleEndian.Uint32(data[4*i:])
				if bits != uint32(binary.LittleEndian.Uint16(tensor.Raw[2*i:]))<<16 {
					t.Fatalf("element %d is %v", i, math.Float32frombits(bits))
				}
			}
		} else if want != "<f4" && !bytes.Equal(data, tensor.Raw) {
			t.Errorf("%s: other bytes", dtype)
		}
	}
}

func TestNPYOfScalarsAndOfNothing(t *testing.T) {
	for rows, want := range map[int]string{0: "(0,)", 2: "(2,)"} {
		var file bytes.Buffer
		if err := tensorOf("i32", nil, rows).WriteNPY(&file); err != nil {
			t.Fatal(err)
		}
		if _, shape, data := readNPY(t, file.Bytes()); shape != want || len(data) != 4*rows {
			t.Errorf("%d rows: shape %s, %d bytes", rows, shape, len(data))
		}
	}
}

// ragged has rows of 1, 0 and 3 pairs.
func ragged(dtype string) *Tensor {
	t := tensorOf(dtype, []int{2}, 4)
	pair := 2 * elementBytes[dtype]
	t.Ragged, t.Shape, t.Positions, t.Passes = true, []int{3, 2}, t.Positions[:3], t.Passes[:3]
	t.RowBytes = []int{pair, 0, 3 * pair}
	return t
}

func TestRaggedTensorsAreNoNPYUnlessTheirRowsAreEqual(t *testing.T) {
	if err := ragged("f32").WriteNPY(&bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "safetensors") {
		t.Errorf("%v", err)
	}
	equal := ragged("f32")
	equal.RowBytes, equal.Raw = []int{8, 8, 8}, equal.Raw[:24]
	var file bytes.Buffer
	if err := equal.WriteNPY(&file); err != nil {
		t.Fatal(err)
	}
	if _, shape, _ := readNPY(t, file.Bytes()); shape != "(3, 1, 2,)" {
		t.Errorf("shape %s", shape)
	}
}

func TestArrowHoldsTheRowsBitForBit(t *testing.T) {
	for _, dtype := range []string{"f32", "f16", "bf16", "f8e4m3", "f8e5m2", "i32", "u8", "i64", "u16", "i8"} {
		for _, tensor := range []*Tensor{tensorOf(dtype, []int{3, 2}, 4), tensorOf(dtype, nil, 2), ragged(dtype)} {
			var file bytes.Buffer
			if err := tensor.WriteArrow(&file); err != nil {
				t.Fatal(err)
			}
			r, err := ipc.NewReader(&file)
			if err != nil {
				t.Fatal(err)
			}
			if !r.Next() {
				t.Fatalf("%s: no batch: %v", dtype, r.Err())
			}
			batch := r.RecordBatch()
			positions := batch.Column(0).(*array.Int32).Int32Values()
			if !slices.Equal(positions, tensor.Positions) {
				t.Errorf("%s: positions %v", dtype, positions)
			}
			vec := batch.Column(2)
			if got := arrowBytes(vec); !bytes.Equal(got, tensor.Raw) {
				t.Errorf("%s as %s: other bytes", dtype, vec.DataType())
			}
			meta := r.Schema().Field(2).Metadata
			if v, _ := meta.GetValue("dtype"); v != dtype {
				t.Errorf("metadata dtype is %q", v)
			}
			r.Release()
		}
	}
}

func arrowBytes(a arrow.Array) []byte {
	switch a := a.(type) {
	case *array.FixedSizeBinary:
		return a.Data().Buffers()[1].Bytes()[:a.Len()*a.DataType().(*arrow.FixedSizeBinaryType).ByteWidth]
	case *array.LargeBinary:
		return a.ValueBytes()
	case *array.FixedSizeList:
		return valueBytes(a.ListValues())
	case *array.LargeList:
		return valueBytes(a.ListValues())
	}
	return nil
}

func valueBytes(a arrow.Array) []byte {
	width := a.DataType().(arrow.FixedWidthDataType).BitWidth() / 8
	return a.Data().Buffers()[1].Bytes()[:a.Len()*width]
}

func TestSafetensorsHoldTheRowsBitForBit(t *testing.T) {
	for dtype, want := range safetensorsTypes {
		for _, tensor := range []*Tensor{tensorOf(dtype, []int{3, 2}, 4), ragged(dtype)} {
			tensor.Missing = []Gap{{1, 3, "lost"}}
			path := t.TempDir() + "/t.safetensors"
			writeFile(t, path, tensor)
			f, err := safetensors.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			values, err := f.Tensor("values")
			if err != nil {
				t.Fatal(err)
			}
			shape := tensor.Shape
			if tensor.Ragged {
				shape = []int{4, 2}
				offsets, err := f.Tensor("offsets")
				if err != nil || !bytes.Equal(offsets.Data, le64(0, 1, 1, 4)) {
					t.Errorf("offsets %v, %v", offsets, err)
				}
			}
			if values.DType != want || !slices.Equal(values.Shape, shape) || !bytes.Equal(values.Data, tensor.Raw) {
				t.Errorf("%s: %s %v", dtype, values.DType, values.Shape)
			}
			positions, err := f.Tensor("positions")
			if err != nil || !bytes.Equal(positions.Data, int32Bytes(tensor.Positions)) {
				t.Errorf("positions %v, %v", positions, err)
			}
			if m := f.Metadata(); m["missing"] != "[1, 3): lost" || m["request"] != "r" || m["epoch"] != "00000000000000ab" ||
				m["number"] != strconv.Itoa(3) {
				t.Errorf("metadata %v", m)
			}
		}
	}
}

func le64(v ...uint64) []byte {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, x)
	}
	return b
}

func writeFile(t *testing.T, path string, tensor *Tensor) {
	t.Helper()
	var file bytes.Buffer
	if err := tensor.WriteSafetensors(&file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, file.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}
