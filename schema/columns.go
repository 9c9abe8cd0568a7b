package schema

import (
	"encoding/binary"
	"fmt"
	"math"
	"sort"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// column is one column of a kind. The type of the vec column depends on the
// header and is set per message.
type column struct {
	name string
	typ  arrow.DataType
}

var (
	u8, u32, u64 = arrow.PrimitiveTypes.Uint8, arrow.PrimitiveTypes.Uint32, arrow.PrimitiveTypes.Uint64
	i32, i64     = arrow.PrimitiveTypes.Int32, arrow.PrimitiveTypes.Int64
	f32          = arrow.PrimitiveTypes.Float32
	text         = arrow.DataType(arrow.BinaryTypes.String)
	boolean      = arrow.DataType(arrow.FixedWidthTypes.Boolean)
	labels       = arrow.DataType(labelsType())
)

func labelsType() *arrow.MapType {
	t := arrow.MapOfFields(arrow.Field{Name: "key", Type: arrow.BinaryTypes.String},
		arrow.Field{Name: "value", Type: arrow.BinaryTypes.String})
	t.KeysSorted = true
	return t
}

var tokenColumns = []column{{"seq", u64}, {"row", u32}, {"number", u64}, {"request", text}, {"sample", i32},
	{"position", i32}, {"pass", i32}, {"phase", u8}, {"capture_ns", i64}}

const vecColumn = "vec"

var columnsOf = map[Kind][]column{
	KindVectors: append(tokenColumns[:len(tokenColumns):len(tokenColumns)], column{vecColumn, nil}),
	KindStats: append(tokenColumns[:len(tokenColumns):len(tokenColumns)], column{"dim", i32}, column{"l2", f32},
		column{"mean", f32}, column{"std", f32}, column{"absmax", f32}, column{"argmax", i32}, column{"zeros", i32},
		column{"nonfinite", i32}),
	KindRequests: {{"seq", u64}, {"row", u32}, {"event", text}, {"number", u64}, {"request", text}, {"engine_id", text},
		{"sample", i32}, {"tenant", text}, {"adapter", text}, {"trace_parent", text}, {"labels", labels}, {"opt_in", boolean},
		{"prompt_tokens", i32}, {"max_tokens", i32}, {"generated_tokens", i32}, {"cached_tokens", i32}, {"passes", i32},
		{"reason", text}, {"wall_ns", i64}},
	KindLedger: {{"seq", u64}, {"row", u32}, {"fact", text}, {"number", u64}, {"request", text}, {"sample", i32},
		{"pass", i32}, {"phase", u8}, {"position", i32}, {"count", i32}, {"stride", i32}, {"step", u64}, {"layout", u32},
		{"entries", text}, {"rows", u64}, {"filtered_rows", u64}, {"outcome", text}, {"reason", text},
		{"capture_seq", u64}, {"first_row", u32}, {"hook", text}, {"layer", i32}, {"detail", text}},
	KindDetections: {{"seq", u64}, {"row", u32}, {"id", text}, {"detector", text}, {"version", text}, {"digest", text},
		{"level", text}, {"mode", text}, {"engine_epoch", u64}, {"number", u64}, {"request", text}, {"sample", i32},
		{"position", i32}, {"score", f32}, {"threshold", f32}, {"tokens_seen", i32}, {"coverage", f32},
		{"capture_ns", i64}, {"verdict_ns", i64}, {"action", text}, {"outcome", text}, {"final_length", i32}},
}

var dtypeBytes = map[string]int{"f32": 4, "f16": 2, "bf16": 2, "f8e4m3": 1, "f8e5m2": 1, "i32": 4, "u8": 1, "i64": 8,
	"u16": 2, "i8": 1}

// RowBytes is the size of one row's vec: the product of Shape times the size of
// DType. For ragged rows it is the size of one element of the row.
func (h *Header) RowBytes() (int, error) {
	n, ok := dtypeBytes[h.DType]
	if !ok {
		return 0, fmt.Errorf("dtype %q is unknown; known are f32, f16, bf16, f8e4m3, f8e5m2, i32, u8, i64, u16, i8",
			clip(h.DType))
	}
	for _, d := range h.Shape {
		if d < 1 || d > MaxMessageBytes/n {
			return 0, fmt.Errorf("shape %v of dtype %s: a row must have 1 to %d bytes", h.Shape, h.DType, MaxMessageBytes)
		}
		n *= d
	}
	return n, nil
}

// vecType is the Arrow type of the vec column.
func (h *Header) vecType() (arrow.DataType, error) {
	n, err := h.RowBytes()
	if err != nil {
		return nil, err
	}
	if h.Ragged {
		return arrow.BinaryTypes.LargeBinary, nil
	}
	return &arrow.FixedSizeBinaryType{ByteWidth: n}, nil
}

// fieldsOf lists the Arrow fields of a message.
func (h *Header) fieldsOf() ([]arrow.Field, error) {
	columns := columnsOf[h.Kind]
	if columns == nil {
		return nil, fmt.Errorf("kind %q is unknown", clip(string(h.Kind)))
	}
	out := make([]arrow.Field, len(columns))
	for i, c := range columns {
		out[i] = arrow.Field{Name: c.name, Type: c.typ}
		if c.typ == nil {
			t, err := h.vecType()
			if err != nil {
				return nil, err
			}
			out[i].Type = t
		}
	}
	return out, nil
}

// columnBuffer collects one column. Which slices are used depends on the type.
type columnBuffer struct {
	typ     arrow.DataType
	fixed   []byte // fixed-width values, or bits
	offsets []byte // i32 (text, map) or i64 (large binary)
	data    []byte
	inner   []columnBuffer // key and value of a map
	entries int            // of a map

	aliased      [][]byte // rows of vec, wherever they lie: copied once, into the message
	aliasedBytes int
}

// batchBuilder collects rows column by column. Rows are put value by value in
// the order of the columns. Its memory is reused after reset.
type batchBuilder struct {
	columns []columnBuffer
	at      int // column that the next put goes to
	rows    int
}

func newBatchBuilder(fields []arrow.Field) *batchBuilder {
	b := &batchBuilder{columns: make([]columnBuffer, len(fields))}
	for i, f := range fields {
		b.columns[i].typ = f.Type
		if f.Type.ID() == arrow.MAP {
			b.columns[i].inner = []columnBuffer{{typ: text}, {typ: text}}
		}
	}
	return b
}

func (b *batchBuilder) reset() {
	b.rows, b.at = 0, 0
	for i := range b.columns {
		b.columns[i].reset()
	}
}

func (c *columnBuffer) reset() {
	c.fixed, c.offsets, c.data, c.entries = c.fixed[:0], c.offsets[:0], c.data[:0], 0
	clear(c.aliased) // the rows belong to somebody else's memory
	c.aliased, c.aliasedBytes = c.aliased[:0], 0
	for i := range c.inner {
		c.inner[i].reset()
	}
}

// endRow closes a row. Every column must have got its value.
func (b *batchBuilder) endRow() {
	if b.at != len(b.columns) {
		panic(fmt.Sprintf("BUG: row has %d of %d columns", b.at, len(b.columns)))
	}
	b.at = 0
	b.rows++
}

func (b *batchBuilder) next() *columnBuffer {
	c := &b.columns[b.at]
	b.at++
	return c
}

func (b *batchBuilder) u8(v uint8) { c := b.next(); c.fixed = append(c.fixed, v) }
func (b *batchBuilder) u32(v uint32) {
	c := b.next()
	c.fixed = binary.LittleEndian.AppendUint32(c.fixed, v)
}
func (b *batchBuilder) u64(v uint64) {
	c := b.next()
	c.fixed = binary.LittleEndian.AppendUint64(c.fixed, v)
}
func (b *batchBuilder) i32(v int32)   { b.u32(uint32(v)) }
func (b *batchBuilder) i64(v int64)   { b.u64(uint64(v)) }
func (b *batchBuilder) f32(v float32) { b.u32(math.Float32bits(v)) }
func (b *batchBuilder) text(v string) { b.next().text(v) }

func (b *batchBuilder) flag(v bool) {
	c := b.next()
	if b.rows%8 == 0 {
		c.fixed = append(c.fixed, 0)
	}
	if v {
		c.fixed[b.rows/8] |= 1 << (b.rows % 8)
	}
}

func (b *batchBuilder) labels(m map[string]string) {
	c := b.next()
	if len(c.offsets) == 0 {
		c.offsets = append(c.offsets, zeros[:4]...)
		for i := range c.inner {
			c.inner[i].offsets = append(c.inner[i].offsets, zeros[:4]...)
		}
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		c.inner[0].text(k)
		c.inner[1].text(m[k])
	}
	c.entries += len(keys)
	c.offsets = binary.LittleEndian.AppendUint32(c.offsets, uint32(c.entries))
}

// vec keeps v itself: it must not change before the message is written.
func (b *batchBuilder) vec(v []byte) {
	c := b.next()
	c.aliased = append(c.aliased, v)
	c.aliasedBytes += len(v)
	if c.typ.ID() == arrow.LARGE_BINARY {
		if len(c.offsets) == 0 {
			c.offsets = binary.LittleEndian.AppendUint64(c.offsets, 0)
		}
		c.offsets = binary.LittleEndian.AppendUint64(c.offsets, uint64(c.aliasedBytes))
	}
}

func (c *columnBuffer) text(v string) {
	if len(c.offsets) == 0 {
		c.offsets = binary.LittleEndian.AppendUint32(c.offsets, 0)
	}
	c.data = append(c.data, v...)
	c.offsets = binary.LittleEndian.AppendUint32(c.offsets, uint32(len(c.data)))
}

// bytes is what the columns hold so far.
func (b *batchBuilder) bytes() int {
	n := 0
	for i := range b.columns {
		n += b.columns[i].bytes()
	}
	return n
}

func (c *columnBuffer) bytes() int {
	n := len(c.fixed) + len(c.offsets) + len(c.data) + c.aliasedBytes
	for i := range c.inner {
		n += c.inner[i].bytes()
	}
	return n
}

// zeroRow puts one row of zeros of each column's type.
func (b *batchBuilder) zeroRow() {
	for i := range b.columns {
		c := &b.columns[i]
		switch t := c.typ.(type) {
		case *arrow.MapType:
			c.offsets = make([]byte, 8)
			c.inner[0].offsets, c.inner[1].offsets = make([]byte, 4), make([]byte, 4)
		case *arrow.StringType:
			c.offsets = make([]byte, 8)
		case *arrow.LargeBinaryType:
			c.offsets = make([]byte, 16)
		case arrow.FixedWidthDataType:
			c.fixed = make([]byte, (t.BitWidth()+7)/8)
		}
	}
	b.rows = 1
}

// arrays makes Arrow arrays that alias the builder's memory.
func (b *batchBuilder) arrays() []arrow.Array {
	out := make([]arrow.Array, len(b.columns))
	for i := range b.columns {
		out[i] = array.MakeFromData(b.columns[i].arrayData(b.rows))
	}
	return out
}

func (c *columnBuffer) arrayData(rows int) arrow.ArrayData {
	switch {
	case c.typ.ID() == arrow.MAP:
		entries := array.NewData(c.typ.(*arrow.MapType).Elem(), c.entries, []*memory.Buffer{nil},
			[]arrow.ArrayData{c.inner[0].arrayData(c.entries), c.inner[1].arrayData(c.entries)}, 0, 0)
		return array.NewData(c.typ, rows, []*memory.Buffer{nil, memory.NewBufferBytes(c.offsets)},
			[]arrow.ArrayData{entries}, 0, 0)
	case c.typ.ID() == arrow.STRING || c.typ.ID() == arrow.LARGE_BINARY:
		return array.NewData(c.typ, rows, []*memory.Buffer{nil, memory.NewBufferBytes(c.offsets),
			memory.NewBufferBytes(c.data)}, nil, 0, 0)
	}
	return array.NewData(c.typ, rows, []*memory.Buffer{nil, memory.NewBufferBytes(c.fixed)}, nil, 0, 0)
}
