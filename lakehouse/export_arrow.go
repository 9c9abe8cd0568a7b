package lakehouse

import (
	"fmt"
	"io"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// arrowTypes are the dtypes that Arrow has. bf16 and fp8 travel as bytes, with
// their name in the field's metadata: nothing converts them.
var arrowTypes = map[string]arrow.DataType{"f32": arrow.PrimitiveTypes.Float32, "f16": arrow.FixedWidthTypes.Float16,
	"i32": arrow.PrimitiveTypes.Int32, "u8": arrow.PrimitiveTypes.Uint8, "i64": arrow.PrimitiveTypes.Int64,
	"u16": arrow.PrimitiveTypes.Uint16, "i8": arrow.PrimitiveTypes.Int8}

// WriteArrow writes the rows as an Arrow IPC stream of one batch with the columns
// position, pass and vec. vec is a fixed_size_list of the dtype, for bf16 and fp8
// fixed_size_binary; a list or large_binary where rows are ragged. dtype and shape
// of a row are in the metadata of its field.
func (t *Tensor) WriteArrow(w io.Writer) error {
	vec, err := t.arrowVec()
	if err != nil {
		return fmt.Errorf("write arrow: %w", err)
	}
	defer vec.Release()
	meta := arrow.NewMetadata([]string{"dtype", "shape"}, []string{t.DType, t.rowShape()})
	about := arrow.MetadataFrom(t.about())
	schema := arrow.NewSchema([]arrow.Field{{Name: "position", Type: arrow.PrimitiveTypes.Int32},
		{Name: "pass", Type: arrow.PrimitiveTypes.Int32}, {Name: "vec", Type: vec.DataType(), Metadata: meta}}, &about)
	rows := len(t.Positions)
	batch := array.NewRecordBatch(schema, []arrow.Array{int32Array(t.Positions), int32Array(t.Passes), vec}, int64(rows))
	defer batch.Release()
	out := ipc.NewWriter(w, ipc.WithSchema(schema))
	if err := out.Write(batch); err != nil {
		return fmt.Errorf("write arrow: %w", err)
	}
	if err := out.Close(); err != nil {
		return fmt.Errorf("write arrow: %w", err)
	}
	return nil
}

func int32Array(v []int32) arrow.Array {
	return array.MakeFromData(array.NewData(arrow.PrimitiveTypes.Int32, len(v), []*memory.Buffer{nil,
		memory.NewBufferBytes(arrow.Int32Traits.CastToBytes(v))}, nil, 0, 0))
}

// arrowVec views Raw as an Arrow array.
func (t *Tensor) arrowVec() (arrow.Array, error) {
	size := elementBytes[t.DType]
	if size == 0 {
		return nil, fmt.Errorf("dtype %q is unknown", t.DType)
	}
	rows, raw := len(t.Positions), memory.NewBufferBytes(t.Raw)
	typ := arrowTypes[t.DType]
	if !t.Ragged {
		elements := 1
		for _, n := range t.Shape[1:] {
			elements *= n
		}
		if typ == nil {
			return array.MakeFromData(array.NewData(&arrow.FixedSizeBinaryType{ByteWidth: elements * size}, rows,
				[]*memory.Buffer{nil, raw}, nil, 0, 0)), nil
		}
		values := array.NewData(typ, rows*elements, []*memory.Buffer{nil, raw}, nil, 0, 0)
		return array.MakeFromData(array.NewData(arrow.FixedSizeListOfNonNullable(int32(elements), typ), rows,
			[]*memory.Buffer{nil}, []arrow.ArrayData{values}, 0, 0)), nil
	}
	unit := size // of an offset
	if typ == nil {
		unit = 1
	}
	offsets := make([]int64, 1, rows+1)
	for _, n := range t.RowBytes {
		offsets = append(offsets, offsets[len(offsets)-1]+int64(n/unit))
	}
	where := memory.NewBufferBytes(arrow.Int64Traits.CastToBytes(offsets))
	if typ == nil {
		return array.MakeFromData(array.NewData(arrow.BinaryTypes.LargeBinary, rows, []*memory.Buffer{nil, where, raw}, nil,
			0, 0)), nil
	}
	values := array.NewData(typ, len(t.Raw)/size, []*memory.Buffer{nil, raw}, nil, 0, 0)
	return array.MakeFromData(array.NewData(arrow.LargeListOfNonNullable(typ), rows, []*memory.Buffer{nil, where},
		[]arrow.ArrayData{values}, 0, 0)), nil
}
