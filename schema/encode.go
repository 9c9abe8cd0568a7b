package schema

import (
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
)

// VectorEncoder collects the rows of one chain and makes messages of them. It
// is used by one goroutine and reuses its memory from message to message.
type VectorEncoder struct {
	h        Header
	fields   []arrow.Field
	rowBytes int
	b        *batchBuilder
	t        *template
	spans    []byte
}

// NewVectorEncoder takes the fixed parts of the header: all but Kind, Prev and
// Spans.
func NewVectorEncoder(h Header) (*VectorEncoder, error) {
	h.Kind, h.Prev, h.Spans = KindVectors, Cursor{}, nil
	rowBytes, err := h.RowBytes()
	if err != nil {
		return nil, err
	}
	fields, err := h.fieldsOf()
	if err != nil {
		return nil, err
	}
	const spansBytes = 256
	t, err := newTemplate(h, fields, spansBytes)
	if err != nil {
		return nil, err
	}
	return &VectorEncoder{h: h, fields: fields, rowBytes: rowBytes, b: newBatchBuilder(fields), t: t}, nil
}

// Append adds a row. Rows come in ascending (Seq, Row). r.Vec is not copied: it
// must not change before Encode or Reset.
func (e *VectorEncoder) Append(r VectorRow) error {
	if !e.h.Ragged && len(r.Vec) != e.rowBytes || e.h.Ragged && len(r.Vec)%e.rowBytes != 0 {
		return fmt.Errorf("row %d:%d of %s has %d bytes; its dtype %s and shape %v make %d", r.Seq, r.Row, e.h.Hook,
			len(r.Vec), e.h.DType, e.h.Shape, e.rowBytes)
	}
	e.b.token(r.Seq, r.Row, r.Number, r.Request, r.Sample, r.Position, r.Pass, r.Phase, r.CaptureNS)
	e.b.vec(r.Vec)
	e.b.endRow()
	e.h.AddRow(r.Seq, r.Row)
	return nil
}

// Rows is how many rows are held.
func (e *VectorEncoder) Rows() int { return e.b.rows }

// Bytes is the size of the held columns, about the size of the message.
func (e *VectorEncoder) Bytes() int { return e.b.bytes() }

// Encode makes one message of the held rows, which stay until Reset. The header
// is that of the message; its spans are valid until Reset.
func (e *VectorEncoder) Encode(prev Cursor) ([]byte, Header, error) { return e.EncodeTo(nil, prev) }

// EncodeTo is Encode into dst[:0], which is replaced when it is too small.
func (e *VectorEncoder) EncodeTo(dst []byte, prev Cursor) ([]byte, Header, error) {
	h := e.h
	h.Prev = prev
	if err := checkRows(h.Kind, e.b.rows); err != nil {
		return nil, h, err
	}
	e.spans = appendSpans(e.spans[:0], h.Spans)
	if len(e.spans) > e.t.spansCap {
		t, err := newTemplate(h, e.fields, 2*len(e.spans))
		if err != nil {
			return nil, h, err
		}
		e.t = t
	}
	msg, err := e.t.write(dst[:0], &h, e.spans, e.b)
	return msg, h, err
}

// Reset forgets the rows and keeps the memory.
func (e *VectorEncoder) Reset() {
	e.b.reset()
	e.h.Spans = e.h.Spans[:0]
}

func (b *batchBuilder) token(seq uint64, row uint32, number uint64, request string, sample, position, pass int32,
	phase uint8, captureNS int64) {
	b.u64(seq)
	b.u32(row)
	b.u64(number)
	b.text(request)
	b.i32(sample)
	b.i32(position)
	b.i32(pass)
	b.u8(phase)
	b.i64(captureNS)
}

// EncodeStats makes one message. h gives all but Kind and Spans, which follow
// from the rows; rows ascend by (Seq, Row).
func EncodeStats(h Header, rows []StatsRow) ([]byte, error) {
	return encodeRows(h, KindStats, rows, func(b *batchBuilder, r *StatsRow) (uint64, uint32) {
		b.token(r.Seq, r.Row, r.Number, r.Request, r.Sample, r.Position, r.Pass, r.Phase, r.CaptureNS)
		b.i32(r.Dim)
		b.f32(r.L2)
		b.f32(r.Mean)
		b.f32(r.Std)
		b.f32(r.AbsMax)
		b.i32(r.ArgMax)
		b.i32(r.Zeros)
		b.i32(r.NonFinite)
		return r.Seq, r.Row
	})
}

// EncodeRequests makes one message, as EncodeStats does. Hook and layer are set.
func EncodeRequests(h Header, rows []RequestRow) ([]byte, error) {
	return encodeRows(hookless(h), KindRequests, rows, func(b *batchBuilder, r *RequestRow) (uint64, uint32) {
		b.u64(r.Seq)
		b.u32(r.Row)
		b.text(r.Event)
		b.u64(r.Number)
		b.text(r.Request)
		b.text(r.EngineID)
		b.i32(r.Sample)
		b.text(r.Tenant)
		b.text(r.Adapter)
		b.text(r.TraceParent)
		b.labels(r.Labels)
		b.flag(r.OptIn)
		b.i32(r.PromptTokens)
		b.i32(r.MaxTokens)
		b.i32(r.GeneratedTokens)
		b.i32(r.CachedTokens)
		b.i32(r.Passes)
		b.text(r.Reason)
		b.i64(r.WallNS)
		return r.Seq, r.Row
	})
}

// EncodeLedger makes one message, as EncodeStats does. Hook and layer are set.
func EncodeLedger(h Header, rows []LedgerRow) ([]byte, error) { return encodeLedger(hookless(h), rows) }

// EncodeLedgerChain is EncodeLedger for the facts that travel in chains of their
// own: hook, layer and shard stay as they are.
func EncodeLedgerChain(h Header, rows []LedgerRow) ([]byte, error) {
	h.ShardCount, h.DType, h.Shape, h.Ragged = 0, "", nil, false
	return encodeLedger(h, rows)
}

func encodeLedger(h Header, rows []LedgerRow) ([]byte, error) {
	return encodeRows(h, KindLedger, rows, func(b *batchBuilder, r *LedgerRow) (uint64, uint32) {
		b.u64(r.Seq)
		b.u32(r.Row)
		b.text(r.Fact)
		b.u64(r.Number)
		b.text(r.Request)
		b.i32(r.Sample)
		b.i32(r.Pass)
		b.u8(r.Phase)
		b.i32(r.Position)
		b.i32(r.Count)
		b.i32(r.Stride)
		b.u64(r.Step)
		b.u32(r.Layout)
		b.text(r.Entries)
		b.u64(r.Rows)
		b.u64(r.FilteredRows)
		b.text(r.Outcome)
		b.text(r.Reason)
		b.u64(r.CaptureSeq)
		b.u32(r.FirstRow)
		b.text(r.Hook)
		b.i32(r.Layer)
		b.text(r.Detail)
		return r.Seq, r.Row
	})
}

// EncodeDetections makes one message, as EncodeStats does. Hook and layer are
// set.
func EncodeDetections(h Header, rows []DetectionRow) ([]byte, error) {
	return encodeRows(hookless(h), KindDetections, rows, func(b *batchBuilder, r *DetectionRow) (uint64, uint32) {
		b.u64(r.Seq)
		b.u32(r.Row)
		b.text(r.ID)
		b.text(r.Detector)
		b.text(r.Version)
		b.text(r.Digest)
		b.text(r.Level)
		b.text(r.Mode)
		b.u64(r.EngineEpoch)
		b.u64(r.Number)
		b.text(r.Request)
		b.i32(r.Sample)
		b.i32(r.Position)
		b.f32(r.Score)
		b.f32(r.Threshold)
		b.i32(r.TokensSeen)
		b.f32(r.Coverage)
		b.i64(r.CaptureNS)
		b.i64(r.VerdictNS)
		b.text(r.Action)
		b.text(r.Outcome)
		b.i32(r.FinalLength)
		return r.Seq, r.Row
	})
}

func hookless(h Header) Header {
	h.Hook, h.Layer, h.Shard, h.ShardCount, h.DType, h.Shape, h.Ragged = Hookless, -1, 0, 0, "", nil, false
	return h
}

func encodeRows[R any](h Header, kind Kind, rows []R, put func(*batchBuilder, *R) (uint64, uint32)) ([]byte, error) {
	h.Kind, h.Spans = kind, nil
	fields, err := h.fieldsOf()
	if err != nil {
		return nil, err
	}
	b := newBatchBuilder(fields)
	for i := range rows {
		seq, row := put(b, &rows[i])
		b.endRow()
		h.AddRow(seq, row)
	}
	return message(&h, fields, b)
}

// message writes h, which has its spans, and the rows of b into one slice.
func message(h *Header, fields []arrow.Field, b *batchBuilder) ([]byte, error) {
	if err := checkRows(h.Kind, b.rows); err != nil {
		return nil, err
	}
	spans := appendSpans(nil, h.Spans)
	t, err := newTemplate(*h, fields, len(spans))
	if err != nil {
		return nil, err
	}
	return t.write(nil, h, spans, b)
}

func checkRows(kind Kind, rows int) error {
	if rows == 0 || rows > MaxRows {
		return fmt.Errorf("a message of %s has %d rows; it must have 1 to %d", kind, rows, MaxRows)
	}
	return nil
}
