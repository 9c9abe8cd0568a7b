package schema

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/endian"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// Batch is a decoded message. Its rows alias the message: keep the message
// unchanged as long as the batch is used. Every offset was checked.
type Batch struct {
	Header Header
	rows   int
	cols   []columnView
}

// columnView reads one checked column.
type columnView struct {
	width   int    // of fixed; 0 for bits and variable columns
	fixed   []byte // rows*width bytes, or bits
	offsets []byte // rows+1 offsets of 4 or 8 bytes
	data    []byte
	inner   []columnView // key and value of a map
}

// DecodeHeader reads the header of a message and leaves the body alone. The
// message may come from anywhere.
func DecodeHeader(msg []byte) (h Header, err error) {
	defer recoverDecode(&err)
	r, err := openStream(msg)
	if err != nil {
		return Header{}, err
	}
	return headerOf(r.Schema().Metadata())
}

// Decode reads a message, which may come from anywhere: kinds, types, lengths
// and offsets are checked here, so that reading rows cannot fail.
func Decode(msg []byte) (b *Batch, err error) {
	defer recoverDecode(&err)
	r, err := openStream(msg)
	if err != nil {
		return nil, err
	}
	h, err := headerOf(r.Schema().Metadata())
	if err != nil {
		return nil, err
	}
	if err := checkFields(&h, r.Schema()); err != nil {
		return nil, err
	}
	rec, err := r.Read()
	if err != nil {
		return nil, fmt.Errorf("message of %s has no readable batch: %w", h.Kind, err)
	}
	return newBatch(h, rec)
}

// recoverDecode turns a panic of the Arrow reader on hostile bytes into an
// error: the message is input, not a state of this program.
func recoverDecode(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("message is no valid Arrow stream: %v", p)
	}
}

func checkFields(h *Header, s *arrow.Schema) error {
	want, err := h.fieldsOf()
	if err != nil {
		return err
	}
	if s.Endianness() != endian.LittleEndian {
		return errors.New("message is big-endian; messages are little-endian")
	}
	// Columns behind the known ones belong to a later minor version.
	if s.NumFields() < len(want) {
		return fmt.Errorf("message of %s has %d columns; %d expected", h.Kind, s.NumFields(), len(want))
	}
	for i, f := range want {
		got := s.Field(i)
		if got.Name != f.Name || !arrow.TypeEqual(got.Type, f.Type) {
			return fmt.Errorf("message of %s: column %d is %q of %s; %q of %s expected", h.Kind, i, clip(got.Name),
				clip(got.Type.String()), f.Name, f.Type)
		}
	}
	return nil
}

func newBatch(h Header, rec arrow.RecordBatch) (*Batch, error) {
	rows := rec.NumRows()
	if rows < 1 || rows > MaxRows {
		return nil, fmt.Errorf("message of %s has %d rows; it must have 1 to %d", h.Kind, rows, MaxRows)
	}
	b := &Batch{Header: h, rows: int(rows), cols: make([]columnView, len(columnsOf[h.Kind]))}
	for i := range b.cols {
		view, err := viewOf(rec.Column(i).Data(), b.rows)
		if err != nil {
			return nil, fmt.Errorf("message of %s, column %s: %w", h.Kind, rec.ColumnName(i), err)
		}
		b.cols[i] = view
	}
	return b, b.checkSpans()
}

// checkSpans compares the identities in the columns with the header's spans.
func (b *Batch) checkSpans() error {
	i := 0
	for _, s := range b.Header.Spans {
		for k := range s.Rows {
			if i >= b.rows || b.cols[0].u64(i) != s.Seq || b.cols[1].u32(i) != s.First+k {
				return fmt.Errorf("message of %s: spans and rows differ at row %d", b.Header.Kind, i)
			}
			i++
		}
	}
	if i != b.rows {
		return fmt.Errorf("message of %s has %d rows and its spans %d", b.Header.Kind, b.rows, i)
	}
	return nil
}

func viewOf(d arrow.ArrayData, rows int) (columnView, error) {
	if d.Len() != rows || d.Offset() != 0 {
		return columnView{}, fmt.Errorf("%d rows from %d; %d from 0 expected", d.Len(), d.Offset(), rows)
	}
	if d.NullN() != 0 {
		return columnView{}, errors.New("it holds nulls; no column may")
	}
	switch t := d.DataType().(type) {
	case *arrow.MapType:
		return mapView(d, rows)
	case *arrow.StringType:
		return variableView(d, rows, 4)
	case *arrow.LargeBinaryType:
		return variableView(d, rows, 8)
	case *arrow.BooleanType:
		bits := bufferOf(d, 1)
		if len(bits) < (rows+7)/8 {
			return columnView{}, fmt.Errorf("%d bytes of bits for %d rows", len(bits), rows)
		}
		return columnView{fixed: bits}, nil
	case arrow.FixedWidthDataType:
		width := t.BitWidth() / 8
		fixed := bufferOf(d, 1)
		if len(fixed)/width < rows {
			return columnView{}, fmt.Errorf("%d bytes for %d rows of %d", len(fixed), rows, width)
		}
		return columnView{width: width, fixed: fixed[:rows*width]}, nil
	}
	return columnView{}, fmt.Errorf("type %s is not expected", d.DataType())
}

func bufferOf(d arrow.ArrayData, i int) []byte {
	if b := d.Buffers(); i < len(b) && b[i] != nil {
		return b[i].Bytes()
	}
	return nil
}

func variableView(d arrow.ArrayData, rows, width int) (columnView, error) {
	v := columnView{width: width, offsets: bufferOf(d, 1), data: bufferOf(d, 2)}
	return v, v.checkOffsets(rows, uint64(len(v.data)))
}

// checkOffsets makes sure that offsets ascend and end within limit.
func (c *columnView) checkOffsets(rows int, limit uint64) error {
	if len(c.offsets)/c.width < rows+1 {
		return fmt.Errorf("%d bytes of offsets for %d rows", len(c.offsets), rows)
	}
	last := uint64(0)
	for i := range rows + 1 {
		o := c.offset(i)
		if o < last || o > limit {
			return fmt.Errorf("offset %d of row %d is outside [%d, %d]", o, i, last, limit)
		}
		last = o
	}
	return nil
}

func mapView(d arrow.ArrayData, rows int) (columnView, error) {
	if len(d.Children()) != 1 || len(d.Children()[0].Children()) != 2 {
		return columnView{}, errors.New("a map must have keys and values")
	}
	entries := d.Children()[0]
	if entries.Len() > MaxMessageBytes/8 || entries.Offset() != 0 || entries.NullN() != 0 {
		return columnView{}, fmt.Errorf("%d entries from %d", entries.Len(), entries.Offset())
	}
	v := columnView{width: 4, offsets: bufferOf(d, 1), inner: make([]columnView, 2)}
	for i, child := range entries.Children() {
		view, err := viewOf(child, entries.Len())
		if err != nil {
			return columnView{}, fmt.Errorf("entries: %w", err)
		}
		v.inner[i] = view
	}
	return v, v.checkOffsets(rows, uint64(entries.Len()))
}

func (c *columnView) offset(i int) uint64 {
	if c.width == 8 {
		return binary.LittleEndian.Uint64(c.offsets[i*8:])
	}
	return uint64(binary.LittleEndian.Uint32(c.offsets[i*4:]))
}

func (c *columnView) u32(i int) uint32 { return binary.LittleEndian.Uint32(c.fixed[i*4:]) }
func (c *columnView) u64(i int) uint64 { return binary.LittleEndian.Uint64(c.fixed[i*8:]) }
func (c *columnView) bytes(i int) []byte {
	if c.offsets == nil {
		return c.fixed[i*c.width : (i+1)*c.width : (i+1)*c.width]
	}
	from, to := c.offset(i), c.offset(i+1)
	return c.data[from:to:to]
}

func (c *columnView) text(i int) string {
	b := c.bytes(i)
	return unsafe.String(unsafe.SliceData(b), len(b))
}

// rowReader reads the values of one row in the order of the columns.
type rowReader struct {
	cols []columnView
	i    int
	at   int
}

func (r *rowReader) next() *columnView { c := &r.cols[r.at]; r.at++; return c }
func (r *rowReader) u8() uint8         { return r.next().fixed[r.i] }
func (r *rowReader) u32() uint32       { return r.next().u32(r.i) }
func (r *rowReader) u64() uint64       { return r.next().u64(r.i) }
func (r *rowReader) i32() int32        { return int32(r.u32()) }
func (r *rowReader) i64() int64        { return int64(r.u64()) }
func (r *rowReader) f32() float32      { return math.Float32frombits(r.u32()) }
func (r *rowReader) text() string      { return r.next().text(r.i) }
func (r *rowReader) bytes() []byte     { return r.next().bytes(r.i) }
func (r *rowReader) flag() bool        { return r.next().fixed[r.i/8]>>(r.i%8)&1 == 1 }

func (r *rowReader) labels() map[string]string {
	c := r.next()
	from, to := c.offset(r.i), c.offset(r.i+1)
	if from == to {
		return nil
	}
	m := make(map[string]string, to-from)
	for k := from; k < to; k++ {
		m[c.inner[0].text(int(k))] = c.inner[1].text(int(k))
	}
	return m
}

// messageReader hands the parts of a message to the Arrow reader without
// copying the body.
type messageReader struct{ rest []byte }

func (m *messageReader) Retain()  {}
func (m *messageReader) Release() {}

var errTruncated = errors.New("message ends in the middle of a part")

// Message cuts the next part: continuation, length, metadata, body.
func (m *messageReader) Message() (*ipc.Message, error) {
	if len(m.rest) < 8 {
		return nil, errTruncated
	}
	size := binary.LittleEndian.Uint32(m.rest[4:])
	if binary.LittleEndian.Uint32(m.rest) != math.MaxUint32 || size < 8 || size > MaxMetadataBytes {
		return nil, fmt.Errorf("message part of %d bytes of metadata; want 8 to %d after a continuation mark", size,
			MaxMetadataBytes)
	}
	if uint64(len(m.rest)-8) < uint64(size) {
		return nil, errTruncated
	}
	meta, rest := m.rest[8:8+size], m.rest[8+size:]
	empty := memory.NewBufferBytes(nil)
	n := ipc.NewMessage(memory.NewBufferBytes(meta), empty).BodyLen()
	if n < 0 || n > int64(len(rest)) {
		return nil, errTruncated
	}
	m.rest = rest[n:]
	return ipc.NewMessage(memory.NewBufferBytes(meta), memory.NewBufferBytes(rest[:n:n])), nil
}

// refusingAllocator makes the Arrow reader fail where it wants memory of its
// own: a compressed body, which the format excludes.
type refusingAllocator struct{}

func (refusingAllocator) Allocate(size int) []byte {
	if size == 0 {
		return nil
	}
	panic("its body is compressed, which the format excludes")
}
func (r refusingAllocator) Reallocate(size int, _ []byte) []byte { return r.Allocate(size) }
func (refusingAllocator) Free([]byte)                            {}

func openStream(msg []byte) (*ipc.Reader, error) {
	if len(msg) > MaxMessageBytes {
		return nil, fmt.Errorf("message has %d bytes; at most %d", len(msg), MaxMessageBytes)
	}
	r, err := ipc.NewReaderFromMessageReader(&messageReader{rest: msg}, ipc.WithAllocator(refusingAllocator{}),
		ipc.WithEnsureNativeEndian(false))
	if err != nil {
		return nil, fmt.Errorf("message is no valid Arrow stream: %w", err)
	}
	return r, nil
}
