package schema

import (
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// VectorEncoder collects the rows of one chain and makes messages of them. It
// is used by one goroutine and reuses its memory from message to message.
type VectorEncoder struct {
	h        Header
	fields   []arrow.Field
	rowBytes int
	b        *batchBuilder
}

// NewVectorEncoder takes the fixed parts of the header: all but Prev and Spans.
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
	return &VectorEncoder{h: h, fields: fields, rowBytes: rowBytes, b: newBatchBuilder(fields)}, nil
}

// Append copies a row in. Rows come in ascending (Seq, Row).
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

// Encode makes one message of the held rows. The message is the caller's; the
// header is that of the message. Call Reset before the next row.
func (e *VectorEncoder) Encode(prev Cursor) ([]byte, Header, error) {
	h := e.h
	h.Prev = prev
	h.Spans = append([]Span(nil), e.h.Spans...)
	msg, err := encodeMessage(&h, e.fields, e.b)
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
func EncodeLedger(h Header, rows []LedgerRow) ([]byte, error) {
	return encodeRows(hookless(h), KindLedger, rows, func(b *batchBuilder, r *LedgerRow) (uint64, uint32) {
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
	return encodeMessage(&h, fields, b)
}

// encodeMessage writes schema and batch into one slice of the exact size.
func encodeMessage(h *Header, fields []arrow.Field, b *batchBuilder) ([]byte, error) {
	if b.rows == 0 || b.rows > MaxRows {
		return nil, fmt.Errorf("a message of %s has %d rows; it must have 1 to %d", h.Kind, b.rows, MaxRows)
	}
	md, err := h.metadata()
	if err != nil {
		return nil, err
	}
	schema := arrow.NewSchema(fields, &md)
	head := ipc.GetSchemaPayload(schema, memory.DefaultAllocator)
	defer head.Release()
	batch := array.NewRecordBatch(schema, b.arrays(), int64(b.rows))
	defer batch.Release()
	body, err := ipc.GetRecordBatchPayload(batch)
	if err != nil {
		return nil, fmt.Errorf("encode a message of %s: %w", h.Kind, err)
	}
	defer body.Release()
	var size counter
	if err := writePayloads(&size, &head, &body); err != nil {
		return nil, err
	}
	if int(size) > MaxMessageBytes {
		return nil, fmt.Errorf("a message of %s with %d rows has %d bytes; at most %d: close batches earlier", h.Kind,
			b.rows, int(size), MaxMessageBytes)
	}
	out := sliceWriter(make([]byte, 0, int(size)))
	err = writePayloads(&out, &head, &body)
	return out, err
}

var endOfStream = []byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}

type payloadWriter interface{ Write([]byte) (int, error) }

func writePayloads(w payloadWriter, head, body *ipc.Payload) error {
	if _, err := head.WritePayload(w); err != nil {
		return err
	}
	if _, err := body.WritePayload(w); err != nil {
		return err
	}
	_, err := w.Write(endOfStream)
	return err
}

type counter int

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

type sliceWriter []byte

func (s *sliceWriter) Write(p []byte) (int, error) { *s = append(*s, p...); return len(p), nil }
