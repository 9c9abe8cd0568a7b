package schema

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
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
	h, _, _, err = decodeHeader(msg)
	return h, err
}

// Decode reads a message, which may come from anywhere: kinds, types, lengths
// and offsets are checked here, so that reading rows cannot fail.
func Decode(msg []byte) (b *Batch, err error) {
	defer recoverDecode(&err)
	h, head, rest, err := decodeHeader(msg)
	if err != nil {
		return nil, err
	}
	want, err := h.fieldsOf()
	if err != nil {
		return nil, err
	}
	if err := head.checkFields(want); err != nil {
		return nil, fmt.Errorf("message of %s: %w", h.Kind, err)
	}
	body, _, err := nextPart(rest, messageBatch)
	if err != nil {
		return nil, fmt.Errorf("message of %s has no readable batch: %w", h.Kind, err)
	}
	b, err = newBatch(h, body, want)
	if err == nil {
		err = b.checkSpans()
	}
	if err != nil {
		return nil, fmt.Errorf("message of %s: %w", h.Kind, err)
	}
	return b, nil
}

func decodeHeader(msg []byte) (h Header, head part, rest []byte, err error) {
	if len(msg) > MaxMessageBytes {
		return h, head, nil, fmt.Errorf("message has %d bytes; at most %d", len(msg), MaxMessageBytes)
	}
	if head, rest, err = nextPart(msg, messageSchema); err != nil {
		return h, head, nil, err
	}
	pairs, err := head.pairs()
	if err != nil {
		return h, head, nil, err
	}
	h, err = headerOf(pairs)
	return h, head, rest, err
}

// recoverDecode turns a failed bounds check on hostile bytes into an error: the
// message is input, not a state of this program.
func recoverDecode(err *error) {
	switch p := recover().(type) {
	case nil:
	case error:
		*err = fmt.Errorf("message is no valid Arrow stream: %w", p)
	default:
		panic(p)
	}
}

// bodyReader walks nodes and buffers as bodyWriter does.
type bodyReader struct {
	part
	nodesAt, nodes     int
	buffersAt, buffers int
}

func newBatch(h Header, p part, want []arrow.Field) (*Batch, error) {
	if p.slot(p.table, slotBatchCompression) != 0 {
		return nil, errors.New("its body is compressed, which the format excludes")
	}
	var rows int64
	if at := p.slot(p.table, slotBatchLength); at != 0 {
		rows = p.i64(at)
	}
	if rows < 1 || rows > MaxRows {
		return nil, fmt.Errorf("it has %d rows; it must have 1 to %d", rows, MaxRows)
	}
	r := bodyReader{part: p}
	r.nodesAt, r.nodes = p.vector(p.table, slotBatchNodes, 16)
	r.buffersAt, r.buffers = p.vector(p.table, slotBatchBuf, 16)
	b := &Batch{Header: h, rows: int(rows), cols: make([]columnView, len(want))}
	for i, f := range want {
		view, err := r.column(f.Type, b.rows)
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", f.Name, err)
		}
		b.cols[i] = view
	}
	return b, nil
}

// node takes the next node, which must have so many rows and no nulls; rows < 0
// asks for any number.
func (r *bodyReader) node(rows int) (int, error) {
	if r.nodes == 0 {
		return 0, errShape
	}
	n, nulls := r.i64(r.nodesAt), r.i64(r.nodesAt+8)
	r.nodesAt, r.nodes = r.nodesAt+16, r.nodes-1
	if rows < 0 && n >= 0 && n <= MaxMessageBytes/8 {
		rows = int(n)
	}
	if n != int64(rows) || nulls != 0 {
		return 0, fmt.Errorf("%d rows with %d nulls; %d rows without nulls expected", n, nulls, rows)
	}
	return rows, nil
}

// buffer takes the next buffer.
func (r *bodyReader) buffer() ([]byte, error) {
	if r.buffers == 0 {
		return nil, errShape
	}
	at, n := r.i64(r.buffersAt), r.i64(r.buffersAt+8)
	r.buffersAt, r.buffers = r.buffersAt+16, r.buffers-1
	if at < 0 || n < 0 || at > int64(len(r.body)) || n > int64(len(r.body))-at {
		return nil, fmt.Errorf("buffer of %d bytes at %d of a body of %d", n, at, len(r.body))
	}
	return r.body[at : at+n : at+n], nil
}

// column takes the nodes and buffers of one column.
func (r *bodyReader) column(typ arrow.DataType, rows int) (v columnView, err error) {
	if _, err = r.node(rows); err != nil {
		return v, err
	}
	if _, err = r.buffer(); err != nil { // validity: unused, there are no nulls
		return v, err
	}
	first, err := r.buffer()
	if err != nil {
		return v, err
	}
	switch t := typ.(type) {
	case *arrow.MapType:
		return r.mapColumn(first, rows)
	case *arrow.StringType:
		v = columnView{width: 4, offsets: first}
	case *arrow.LargeBinaryType:
		v = columnView{width: 8, offsets: first}
	case *arrow.BooleanType:
		if len(first) < (rows+7)/8 {
			return v, fmt.Errorf("%d bytes of bits for %d rows", len(first), rows)
		}
		return columnView{fixed: first}, nil
	case arrow.FixedWidthDataType:
		width := t.BitWidth() / 8
		if len(first)/width < rows {
			return v, fmt.Errorf("%d bytes for %d rows of %d", len(first), rows, width)
		}
		return columnView{width: width, fixed: first}, nil
	}
	if v.data, err = r.buffer(); err != nil {
		return v, err
	}
	return v, v.checkOffsets(rows, uint64(len(v.data)))
}

func (r *bodyReader) mapColumn(offsets []byte, rows int) (v columnView, err error) {
	entries, err := r.node(-1)
	if err != nil {
		return v, err
	}
	if _, err = r.buffer(); err != nil { // validity of the entries
		return v, err
	}
	v = columnView{width: 4, offsets: offsets, inner: make([]columnView, 2)}
	for i := range v.inner {
		if v.inner[i], err = r.column(text, entries); err != nil {
			return v, fmt.Errorf("entries: %w", err)
		}
	}
	return v, v.checkOffsets(rows, uint64(entries))
}

// checkSpans compares the identities in the columns with the header's spans.
func (b *Batch) checkSpans() error {
	i := 0
	for _, s := range b.Header.Spans {
		for k := range s.Rows {
			if i >= b.rows || b.cols[0].u64(i) != s.Seq || b.cols[1].u32(i) != s.First+k {
				return fmt.Errorf("spans and rows differ at row %d", i)
			}
			i++
		}
	}
	if i != b.rows {
		return fmt.Errorf("%d rows and %d in the spans", b.rows, i)
	}
	return nil
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
