package lakehouse

import (
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"sonde/safetensors"
)

var safetensorsTypes = map[string]string{"f32": "F32", "f16": "F16", "bf16": "BF16", "f8e4m3": "F8_E4M3",
	"f8e5m2": "F8_E5M2", "i32": "I32", "u8": "U8", "i64": "I64", "u16": "U16", "i8": "I8"}

// WriteSafetensors writes the tensors values, bit for bit in their dtype, and
// positions and passes, I32, one for each row. Of ragged rows, values holds all
// elements in a row, and offsets, I64, where each row begins, and the end.
func (t *Tensor) WriteSafetensors(w io.Writer) error {
	dtype, ok := safetensorsTypes[t.DType]
	if !ok {
		return fmt.Errorf("write safetensors: dtype %q is unknown", t.DType)
	}
	values := safetensors.Named{Name: "values", Tensor: safetensors.Tensor{DType: dtype, Shape: t.Shape, Data: t.Raw}}
	rows := []int{len(t.Positions)}
	out := []safetensors.Named{values,
		{Name: "positions", Tensor: safetensors.Tensor{DType: "I32", Shape: rows, Data: int32Bytes(t.Positions)}},
		{Name: "passes", Tensor: safetensors.Tensor{DType: "I32", Shape: rows, Data: int32Bytes(t.Passes)}}}
	if t.Ragged {
		size := elementBytes[t.DType]
		for _, n := range t.Shape[1:] {
			size *= n
		}
		offsets, at := binary.LittleEndian.AppendUint64(nil, 0), 0
		for _, n := range t.RowBytes {
			at += n / size
			offsets = binary.LittleEndian.AppendUint64(offsets, uint64(at))
		}
		out[0].Shape = append([]int{at}, t.Shape[1:]...)
		out = append(out, safetensors.Named{Name: "offsets", Tensor: safetensors.Tensor{DType: "I64",
			Shape: []int{len(t.Positions) + 1}, Data: offsets}})
	}
	return safetensors.Write(w, out, t.about())
}

func int32Bytes(v []int32) []byte {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, uint32(x))
	}
	return b
}

// about is the metadata of the exported files.
func (t *Tensor) about() map[string]string {
	return map[string]string{"request": t.Request, "sample": strconv.Itoa(t.Sample), "hook": t.Hook,
		"layer": strconv.Itoa(t.Layer), "shard": strconv.Itoa(t.Shard), "shard_count": strconv.Itoa(t.ShardCount),
		"epoch": fmt.Sprintf("%016x", t.Epoch), "number": strconv.FormatUint(t.Number, 10), "dtype": t.DType,
		"row_shape": t.rowShape(), "missing": t.missingText()}
}

func (t *Tensor) rowShape() string {
	shape := make([]string, len(t.Shape)-1)
	for i, n := range t.Shape[1:] {
		shape[i] = strconv.Itoa(n)
	}
	return strings.Join(shape, ",")
}

// missingText lists the gaps of a partial tensor.
func (t *Tensor) missingText() string {
	const most = 1000
	gaps := make([]string, 0, min(len(t.Missing), most))
	for i, g := range t.Missing {
		if i == most {
			gaps = append(gaps, fmt.Sprintf("and %d more", len(t.Missing)-most))
			break
		}
		gaps = append(gaps, g.String())
	}
	return strings.Join(gaps, "; ")
}
