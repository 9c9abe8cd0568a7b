package schema

import "fmt"

// Len is the number of rows.
func (b *Batch) Len() int { return b.rows }

// row starts reading row i. Asking for another kind than the header's is a bug
// of the caller.
func (b *Batch) row(kind Kind, i int) rowReader {
	if b.Header.Kind != kind {
		panic(fmt.Sprintf("BUG: row of %s read from a batch of %s", kind, b.Header.Kind))
	}
	return rowReader{cols: b.cols, i: i}
}

// Vector is row i of a batch of vectors. Request and Vec alias the message.
func (b *Batch) Vector(i int) VectorRow {
	r := b.row(KindVectors, i)
	return VectorRow{Seq: r.u64(), Row: r.u32(), Number: r.u64(), Request: r.text(), Sample: r.i32(), Position: r.i32(),
		Pass: r.i32(), Phase: r.u8(), CaptureNS: r.i64(), Vec: r.bytes()}
}

// Stats is row i of a batch of stats.
func (b *Batch) Stats(i int) StatsRow {
	r := b.row(KindStats, i)
	return StatsRow{Seq: r.u64(), Row: r.u32(), Number: r.u64(), Request: r.text(), Sample: r.i32(), Position: r.i32(),
		Pass: r.i32(), Phase: r.u8(), CaptureNS: r.i64(), Dim: r.i32(), L2: r.f32(), Mean: r.f32(), Std: r.f32(),
		AbsMax: r.f32(), ArgMax: r.i32(), Zeros: r.i32(), NonFinite: r.i32()}
}

// RequestAt is row i of a batch of requests.
func (b *Batch) RequestAt(i int) RequestRow {
	r := b.row(KindRequests, i)
	return RequestRow{Seq: r.u64(), Row: r.u32(), Event: r.text(), Number: r.u64(), Request: r.text(), EngineID: r.text(),
		Sample: r.i32(), Tenant: r.text(), Adapter: r.text(), TraceParent: r.text(), Labels: r.labels(), OptIn: r.flag(),
		PromptTokens: r.i32(), MaxTokens: r.i32(), GeneratedTokens: r.i32(), CachedTokens: r.i32(), Passes: r.i32(),
		Reason: r.text(), WallNS: r.i64()}
}

// Ledger is row i of a batch of facts.
func (b *Batch) Ledger(i int) LedgerRow {
	r := b.row(KindLedger, i)
	return LedgerRow{Seq: r.u64(), Row: r.u32(), Fact: r.text(), Number: r.u64(), Request: r.text(), Sample: r.i32(),
		Pass: r.i32(), Phase: r.u8(), Position: r.i32(), Count: r.i32(), Stride: r.i32(), Step: r.u64(), Layout: r.u32(),
		Entries: r.text(), Rows: r.u64(), FilteredRows: r.u64(), Outcome: r.text(), Reason: r.text(), CaptureSeq: r.u64(),
		FirstRow: r.u32(), Hook: r.text(), Layer: r.i32(), Detail: r.text()}
}

// Detection is row i of a batch of detections.
func (b *Batch) Detection(i int) DetectionRow {
	r := b.row(KindDetections, i)
	return DetectionRow{Seq: r.u64(), Row: r.u32(), ID: r.text(), Detector: r.text(), Version: r.text(), Digest: r.text(),
		Level: r.text(), Mode: r.text(), EngineEpoch: r.u64(), Number: r.u64(), Request: r.text(), Sample: r.i32(),
		Position: r.i32(), Score: r.f32(), Threshold: r.f32(), TokensSeen: r.i32(), Coverage: r.f32(), CaptureNS: r.i64(),
		VerdictNS: r.i64(), Action: r.text(), Outcome: r.text(), FinalLength: r.i32()}
}
