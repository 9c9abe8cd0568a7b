package schema

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// template is a message of one chain without its body: the two metadata parts
// as arrow-go writes them. Between two messages of a chain only a few numbers and
// two strings differ, so a message is made by patching them and copying the
// columns behind, with no allocation. arrow-go alone would build schema, arrays
// and FlatBuffers anew for each message.
type template struct {
	head     []byte // framed schema part
	prevAt   int    // value of sonde.prev in head: u32 length, then text
	spansAt  int    // value of sonde.spans in head
	spansCap int    // bytes that fit there

	batch     []byte // framed record batch part
	rowsAt    int    // RecordBatch.length
	bodyAt    int    // Message.bodyLength
	nodesAt   int    // first FieldNode {i64 length, i64 null count}
	nodes     int
	buffersAt int // first Buffer {i64 offset, i64 length}
	buffers   int
}

// prevWidth is the longest cursor: two numbers of 20 and 10 digits.
const prevWidth = 31

// newTemplate builds a template whose spans may have spansCap bytes of text.
func newTemplate(h Header, fields []arrow.Field, spansCap int) (*template, error) {
	h.Prev, h.Spans = Cursor{}, nil
	values, err := h.metadataValues()
	if err != nil {
		return nil, err
	}
	values[len(values)-2] = strings.Repeat("0", prevWidth)
	values[len(values)-1] = strings.Repeat(" ", spansCap)
	md := arrow.NewMetadata(metadataKeys, values)
	schema := arrow.NewSchema(fields, &md)
	t := &template{spansCap: spansCap}
	head := ipc.GetSchemaPayload(schema, memory.DefaultAllocator)
	defer head.Release()
	var framed sliceWriter
	if _, err := head.WritePayload(&framed); err != nil {
		return nil, fmt.Errorf("encode the schema of %s: %w", h.Kind, err)
	}
	t.head = framed
	if len(t.head) > MaxMetadataBytes {
		return nil, fmt.Errorf("a message of %s has %d bytes of metadata; at most %d", h.Kind, len(t.head), MaxMetadataBytes)
	}
	b := newBatchBuilder(fields)
	b.zeroRow()
	batch := array.NewRecordBatch(schema, b.arrays(), 1)
	defer batch.Release()
	body, err := ipc.GetRecordBatchPayload(batch)
	if err != nil {
		return nil, fmt.Errorf("encode a batch of %s: %w", h.Kind, err)
	}
	defer body.Release()
	framed = nil
	if _, err := body.WritePayload(&framed); err != nil {
		return nil, fmt.Errorf("encode a batch of %s: %w", h.Kind, err)
	}
	t.batch = framed[: 8+binary.LittleEndian.Uint32(framed[4:]) : 8+binary.LittleEndian.Uint32(framed[4:])]
	t.locate()
	return t, nil
}

// locate finds the places to patch. Both parts were just written by arrow-go.
func (t *template) locate() {
	head := flat(t.head)
	root := head.follow(8)
	first, count := head.vector(head.table(root, slotMessageHeader), slotSchemaMetadata, 4)
	for i := range count {
		pair := head.follow(first + 4*i)
		value := head.table(pair, slotKeyValueValue)
		switch head.text(pair, slotKeyValueKey) {
		case keyPrev:
			t.prevAt = value
		case keySpans:
			t.spansAt = value
		}
	}
	batch := flat(t.batch)
	root = batch.follow(8)
	table := batch.table(root, slotMessageHeader)
	t.bodyAt, t.rowsAt = batch.slot(root, slotMessageBodyLength), batch.slot(table, slotBatchLength)
	t.nodesAt, t.nodes = batch.vector(table, slotBatchNodes, 16)
	t.buffersAt, t.buffers = batch.vector(table, slotBatchBuf, 16)
	if t.prevAt*t.spansAt*t.bodyAt*t.rowsAt*t.nodes*t.buffers == 0 {
		panic("BUG: arrow-go wrote a message without one of the places to patch")
	}
}

// patchText replaces a string whose slot is large enough.
func patchText(b []byte, at int, text []byte) {
	binary.LittleEndian.PutUint32(b[at:], uint32(len(text)))
	copy(b[at+4:], text)
	b[at+4+len(text)] = 0
}

// write appends the message of b's rows to dst, which should have room.
func (t *template) write(dst []byte, h *Header, spans []byte, b *batchBuilder) ([]byte, error) {
	var prev [prevWidth]byte
	patchText(t.head, t.prevAt, h.Prev.append(prev[:0]))
	patchText(t.head, t.spansAt, spans)
	binary.LittleEndian.PutUint64(t.batch[t.rowsAt:], uint64(b.rows))
	w := bodyWriter{t: t}
	for i := range b.columns {
		w.measure(&b.columns[i], b.rows)
	}
	if w.node != t.nodes || w.buffer != t.buffers {
		panic(fmt.Sprintf("BUG: %d nodes and %d buffers for a template of %d and %d", w.node, w.buffer, t.nodes, t.buffers))
	}
	binary.LittleEndian.PutUint64(t.batch[t.bodyAt:], uint64(w.offset))
	size := len(t.head) + len(t.batch) + w.offset + len(endOfStream)
	if size > MaxMessageBytes {
		return nil, fmt.Errorf("a message of %s with %d rows has %d bytes; at most %d: close batches earlier", h.Kind,
			b.rows, size, MaxMessageBytes)
	}
	if cap(dst)-len(dst) < size {
		dst = append(make([]byte, 0, len(dst)+size), dst...)
	}
	dst = append(append(dst, t.head...), t.batch...)
	for i := range b.columns {
		dst = b.columns[i].write(dst)
	}
	return append(dst, endOfStream...), nil
}

// bodyWriter patches the nodes and buffers of the record batch part.
type bodyWriter struct {
	t            *template
	node, buffer int
	offset       int // in the body
}

func (w *bodyWriter) addNode(rows int) {
	at := w.t.nodesAt + 16*w.node
	w.node++
	if w.node <= w.t.nodes {
		binary.LittleEndian.PutUint64(w.t.batch[at:], uint64(rows))
	}
}

func (w *bodyWriter) addBuffer(size int) {
	at := w.t.buffersAt + 16*w.buffer
	w.buffer++
	if w.buffer <= w.t.buffers {
		binary.LittleEndian.PutUint64(w.t.batch[at:], uint64(w.offset))
		binary.LittleEndian.PutUint64(w.t.batch[at+8:], uint64(size))
	}
	w.offset += padded(size)
}

// measure visits a column as arrow-go does: depth first, validity (empty: there
// are no nulls), then its buffers.
func (w *bodyWriter) measure(c *columnBuffer, rows int) {
	w.addNode(rows)
	w.addBuffer(0)
	switch c.typ.ID() {
	case arrow.MAP:
		w.addBuffer(len(c.offsets))
		w.addNode(c.entries)
		w.addBuffer(0)
		w.measure(&c.inner[0], c.entries)
		w.measure(&c.inner[1], c.entries)
	case arrow.STRING, arrow.LARGE_BINARY:
		w.addBuffer(len(c.offsets))
		w.addBuffer(len(c.data) + c.aliasedBytes)
	default:
		w.addBuffer(len(c.fixed) + c.aliasedBytes)
	}
}

// write appends the buffers in the order that measure counted them.
func (c *columnBuffer) write(dst []byte) []byte {
	dst = appendPadded(dst, c.offsets)
	if c.aliasedBytes > 0 {
		for _, v := range c.aliased {
			dst = append(dst, v...)
		}
		dst = append(dst, zeros[:padded(c.aliasedBytes)-c.aliasedBytes]...)
	}
	dst = appendPadded(appendPadded(dst, c.fixed), c.data)
	for i := range c.inner {
		dst = c.inner[i].write(dst)
	}
	return dst
}

func padded(n int) int { return (n + 7) &^ 7 }

var zeros [8]byte

func appendPadded(dst, b []byte) []byte {
	dst = append(dst, b...)
	return append(dst, zeros[:padded(len(b))-len(b)]...)
}

var endOfStream = []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}

type sliceWriter []byte

func (s *sliceWriter) Write(p []byte) (int, error) { *s = append(*s, p...); return len(p), nil }
