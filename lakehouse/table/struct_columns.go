package table

import (
	"fmt"
	"math"

	"sonde/schema"
)

// The rows of five tables as parquet-go writes them: their rows are structs of
// scalars, for which its columns by struct tag are the shortest way. Unsigned
// numbers are stored bit by bit in signed columns, and epochs as 16 hex digits,
// as in the vectors table. A field id belongs to one column name in all tables.

// OriginColumns open every table.
type OriginColumns struct {
	Tenant        string `parquet:"tenant,dict,id(1)"`
	Epoch         string `parquet:"epoch,dict,id(2)"`
	Engine        string `parquet:"engine,dict,id(3)"`
	Rank          int32  `parquet:"rank,dict,id(4)"`
	Model         string `parquet:"model,dict,id(5)"`
	Revision      string `parquet:"revision,dict,id(6)"`
	WeightsDigest string `parquet:"weights_digest,dict,id(7)"`
	Quantisation  string `parquet:"quantisation,dict,id(8)"`
	EngineVersion string `parquet:"engine_version,dict,id(9)"`
	PolicyVersion string `parquet:"policy_version,dict,id(10)"`
}

// PlaceColumns follow in tokens and vector_stats.
type PlaceColumns struct {
	Hook       string `parquet:"hook,dict,id(11)"`
	Layer      int32  `parquet:"layer,dict,id(12)"`
	Shard      int32  `parquet:"shard,dict,id(13)"`
	ShardCount int32  `parquet:"shard_count,dict,id(14)"`
	Seq        int64  `parquet:"seq,delta,id(15)"`
	Row        int64  `parquet:"row,delta,id(16)"`
	Number     int64  `parquet:"number,dict,id(17)"`
	Request    string `parquet:"request,dict,id(18)"`
	Sample     int32  `parquet:"sample,dict,id(19)"`
	Position   int32  `parquet:"position,delta,id(20)"`
	Pass       int32  `parquet:"pass,dict,id(21)"`
	Phase      int32  `parquet:"phase,dict,id(22)"`
	CaptureNS  int64  `parquet:"capture_ns,dict,id(23)"`
}

type tokenColumns struct {
	OriginColumns
	PlaceColumns
	TokenID int32 `parquet:"token_id,id(30)"`
}

type statsColumns struct {
	OriginColumns
	PlaceColumns
	DType     string  `parquet:"dtype,dict,id(24)"`
	Shape     string  `parquet:"shape,dict,id(25)"`
	Dim       int32   `parquet:"dim,dict,id(31)"`
	L2        float32 `parquet:"l2,split,id(32)"`
	Mean      float32 `parquet:"mean,split,id(33)"`
	Std       float32 `parquet:"std,split,id(34)"`
	AbsMax    float32 `parquet:"absmax,split,id(35)"`
	ArgMax    int32   `parquet:"argmax,id(36)"`
	Zeros     int32   `parquet:"zeros,dict,id(37)"`
	NonFinite int32   `parquet:"nonfinite,dict,id(38)"`
}

type requestColumns struct {
	OriginColumns
	Seq             int64             `parquet:"seq,delta,id(15)"`
	Row             int64             `parquet:"row,dict,id(16)"`
	Number          int64             `parquet:"number,delta,id(17)"`
	Request         string            `parquet:"request,dict,id(18)"`
	Sample          int32             `parquet:"sample,dict,id(19)"`
	Event           string            `parquet:"event,dict,id(40)"`
	EngineID        string            `parquet:"engine_id,plain,id(41)"`
	RowTenant       string            `parquet:"request_tenant,dict,id(42)"`
	Adapter         string            `parquet:"adapter,dict,id(43)"`
	TraceParent     string            `parquet:"trace_parent,plain,id(44)"`
	Labels          map[string]string `parquet:"labels,id(45)" parquet-key:",id(46)" parquet-value:",id(47)"`
	OptIn           bool              `parquet:"opt_in,id(48)"`
	PromptTokens    int32             `parquet:"prompt_tokens,id(49)"`
	MaxTokens       int32             `parquet:"max_tokens,id(50)"`
	GeneratedTokens int32             `parquet:"generated_tokens,id(51)"`
	CachedTokens    int32             `parquet:"cached_tokens,id(52)"`
	Passes          int32             `parquet:"passes,id(53)"`
	Reason          string            `parquet:"reason,dict,id(54)"`
	WallNS          int64             `parquet:"wall_ns,id(55)"`
}

type factColumns struct {
	OriginColumns
	ChainHook    string `parquet:"chain_hook,dict,id(60)"`
	ChainLayer   int32  `parquet:"chain_layer,dict,id(61)"`
	ChainShard   int32  `parquet:"chain_shard,dict,id(62)"`
	Seq          int64  `parquet:"seq,delta,id(15)"`
	Row          int64  `parquet:"row,delta,id(16)"`
	Fact         string `parquet:"fact,dict,id(63)"`
	Number       int64  `parquet:"number,dict,id(17)"`
	Request      string `parquet:"request,dict,id(18)"`
	Sample       int32  `parquet:"sample,dict,id(19)"`
	Pass         int32  `parquet:"pass,dict,id(21)"`
	Phase        int32  `parquet:"phase,dict,id(22)"`
	Position     int32  `parquet:"position,delta,id(20)"`
	Count        int32  `parquet:"count,dict,id(64)"`
	Stride       int32  `parquet:"stride,dict,id(65)"`
	Step         int64  `parquet:"step,delta,id(66)"`
	Layout       int64  `parquet:"layout,dict,id(67)"`
	Entries      string `parquet:"entries,dict,id(68)"`
	Rows         int64  `parquet:"rows,dict,id(69)"`
	FilteredRows int64  `parquet:"filtered_rows,dict,id(70)"`
	Outcome      string `parquet:"outcome,dict,id(71)"`
	Reason       string `parquet:"reason,dict,id(54)"`
	CaptureSeq   int64  `parquet:"capture_seq,delta,id(72)"`
	FirstRow     int64  `parquet:"first_row,delta,id(73)"`
	Hook         string `parquet:"hook,dict,id(11)"`
	Layer        int32  `parquet:"layer,dict,id(12)"`
	Detail       string `parquet:"detail,plain,id(74)"`
}

type detectionColumns struct {
	OriginColumns
	Seq         int64   `parquet:"seq,delta,id(15)"`
	Row         int64   `parquet:"row,dict,id(16)"`
	ID          string  `parquet:"id,plain,id(90)"`
	Detector    string  `parquet:"detector,dict,id(91)"`
	Version     string  `parquet:"version,dict,id(92)"`
	Digest      string  `parquet:"digest,dict,id(93)"`
	Level       string  `parquet:"level,dict,id(94)"`
	Mode        string  `parquet:"mode,dict,id(95)"`
	EngineEpoch string  `parquet:"engine_epoch,dict,id(96)"`
	Number      int64   `parquet:"number,dict,id(17)"`
	Request     string  `parquet:"request,dict,id(18)"`
	Sample      int32   `parquet:"sample,dict,id(19)"`
	Position    int32   `parquet:"position,id(20)"`
	Score       float32 `parquet:"score,id(97)"`
	Threshold   float32 `parquet:"threshold,id(98)"`
	TokensSeen  int32   `parquet:"tokens_seen,id(99)"`
	Coverage    float32 `parquet:"coverage,id(100)"`
	CaptureNS   int64   `parquet:"capture_ns,id(23)"`
	VerdictNS   int64   `parquet:"verdict_ns,id(101)"`
	Action      string  `parquet:"action,dict,id(102)"`
	Outcome     string  `parquet:"outcome,dict,id(71)"`
	FinalLength int32   `parquet:"final_length,id(103)"`
}

func originColumns(m *Message) OriginColumns {
	o := &m.origin
	return OriginColumns{o.Tenant, m.epoch, o.Engine, int32(o.Rank), o.Model, o.Revision, o.WeightsDigest, o.Quantisation,
		o.EngineVersion, o.PolicyVersion}
}

func (c *OriginColumns) origin() (Origin, error) {
	epoch, err := parseEpoch(c.Epoch)
	return Origin{epoch, c.Engine, int(c.Rank), c.Tenant, c.Model, c.Revision, c.WeightsDigest, c.Quantisation,
		c.EngineVersion, c.PolicyVersion}, err
}

func (c *PlaceColumns) place() (Place, error) {
	row, err := rowNumber(c.Row)
	return Place{Hook: c.Hook, Layer: int(c.Layer), Shard: int(c.Shard), ShardCount: int(c.ShardCount),
		Seq: uint64(c.Seq), Row: row, Number: uint64(c.Number), Request: c.Request, Sample: c.Sample,
		Position: c.Position, Pass: c.Pass, Phase: uint8(c.Phase), CaptureNS: c.CaptureNS}, err
}

func rowNumber(v int64) (uint32, error) {
	if v < 0 || v > math.MaxUint32 {
		return 0, fmt.Errorf("row number %d is out of range", v)
	}
	return uint32(v), nil
}

func tokenColumnsOf(m *Message, i int) tokenColumns {
	h, r := &m.Header, m.Vector(i)
	return tokenColumns{originColumns(m), PlaceColumns{h.Hook, int32(h.Layer), int32(h.Shard), int32(h.ShardCount),
		int64(r.Seq), int64(r.Row), int64(r.Number), r.Request, r.Sample, r.Position, r.Pass, int32(r.Phase), r.CaptureNS},
		int32(uint32(r.Vec[0]) | uint32(r.Vec[1])<<8 | uint32(r.Vec[2])<<16 | uint32(r.Vec[3])<<24)}
}

func statsColumnsOf(m *Message, i int) statsColumns {
	h, r := &m.Header, m.Stats(i)
	return statsColumns{originColumns(m), PlaceColumns{h.Hook, int32(h.Layer), int32(h.Shard), int32(h.ShardCount),
		int64(r.Seq), int64(r.Row), int64(r.Number), r.Request, r.Sample, r.Position, r.Pass, int32(r.Phase), r.CaptureNS},
		h.DType, m.shape, r.Dim, r.L2, r.Mean, r.Std, r.AbsMax, r.ArgMax, r.Zeros, r.NonFinite}
}

func requestColumnsOf(m *Message, i int) requestColumns {
	r := m.RequestAt(i)
	return requestColumns{originColumns(m), int64(r.Seq), int64(r.Row), int64(r.Number), r.Request, r.Sample, r.Event,
		r.EngineID, r.Tenant, r.Adapter, r.TraceParent, r.Labels, r.OptIn, r.PromptTokens, r.MaxTokens, r.GeneratedTokens,
		r.CachedTokens, r.Passes, r.Reason, r.WallNS}
}

func factColumnsOf(m *Message, i int) factColumns {
	h, r := &m.Header, m.Ledger(i)
	return factColumns{originColumns(m), h.Hook, int32(h.Layer), int32(h.Shard), int64(r.Seq), int64(r.Row), r.Fact,
		int64(r.Number), r.Request, r.Sample, r.Pass, int32(r.Phase), r.Position, r.Count, r.Stride, int64(r.Step),
		int64(r.Layout), r.Entries, int64(r.Rows), int64(r.FilteredRows), r.Outcome, r.Reason, int64(r.CaptureSeq),
		int64(r.FirstRow), r.Hook, r.Layer, r.Detail}
}

func detectionColumnsOf(m *Message, i int) detectionColumns {
	r := m.Detection(i)
	return detectionColumns{originColumns(m), int64(r.Seq), int64(r.Row), r.ID, r.Detector, r.Version, r.Digest, r.Level,
		r.Mode, epochText(r.EngineEpoch), int64(r.Number), r.Request, r.Sample, r.Position, r.Score, r.Threshold,
		r.TokensSeen, r.Coverage, r.CaptureNS, r.VerdictNS, r.Action, r.Outcome, r.FinalLength}
}

func (c *tokenColumns) row() (out Token, err error) {
	if out.Origin, err = c.origin(); err != nil {
		return out, err
	}
	out.Place, err = c.place()
	out.TokenID = c.TokenID
	return out, err
}

func (c *statsColumns) row() (out Stats, err error) {
	if out.Origin, err = c.origin(); err != nil {
		return out, err
	}
	if out.Place, err = c.place(); err != nil {
		return out, err
	}
	out.DType, out.Dim, out.L2, out.Mean, out.Std = c.DType, c.Dim, c.L2, c.Mean, c.Std
	out.AbsMax, out.ArgMax, out.Zeros, out.NonFinite = c.AbsMax, c.ArgMax, c.Zeros, c.NonFinite
	out.Shape, err = parseShape(c.Shape)
	return out, err
}

func (c *requestColumns) row() (out RequestEvent, err error) {
	if out.Origin, err = c.origin(); err != nil {
		return out, err
	}
	if len(c.Labels) == 0 {
		c.Labels = nil // what an event without labels had
	}
	row, err := rowNumber(c.Row)
	out.Row = schema.RequestRow{Seq: uint64(c.Seq), Row: row, Event: c.Event, Number: uint64(c.Number), Request: c.Request,
		EngineID: c.EngineID, Sample: c.Sample, Tenant: c.RowTenant, Adapter: c.Adapter, TraceParent: c.TraceParent,
		Labels: c.Labels, OptIn: c.OptIn, PromptTokens: c.PromptTokens, MaxTokens: c.MaxTokens,
		GeneratedTokens: c.GeneratedTokens, CachedTokens: c.CachedTokens, Passes: c.Passes, Reason: c.Reason,
		WallNS: c.WallNS}
	return out, err
}

func (c *factColumns) row() (out Fact, err error) {
	if out.Origin, err = c.origin(); err != nil {
		return out, err
	}
	row, err := rowNumber(c.Row)
	if err != nil {
		return out, err
	}
	first, err := rowNumber(c.FirstRow)
	if err != nil {
		return out, err
	}
	layout, err := rowNumber(c.Layout)
	out.ChainHook, out.ChainLayer, out.ChainShard = c.ChainHook, int(c.ChainLayer), int(c.ChainShard)
	out.Row = schema.LedgerRow{Seq: uint64(c.Seq), Row: row, Fact: c.Fact, Number: uint64(c.Number), Request: c.Request,
		Sample: c.Sample, Pass: c.Pass, Phase: uint8(c.Phase), Position: c.Position, Count: c.Count, Stride: c.Stride,
		Step: uint64(c.Step), Layout: layout, Entries: c.Entries, Rows: uint64(c.Rows),
		FilteredRows: uint64(c.FilteredRows), Outcome: c.Outcome, Reason: c.Reason, CaptureSeq: uint64(c.CaptureSeq),
		FirstRow: first, Hook: c.Hook, Layer: c.Layer, Detail: c.Detail}
	return out, err
}

func (c *detectionColumns) row() (out Detection, err error) {
	if out.Origin, err = c.origin(); err != nil {
		return out, err
	}
	row, err := rowNumber(c.Row)
	if err != nil {
		return out, err
	}
	epoch, err := parseEpoch(c.EngineEpoch)
	out.Row = schema.DetectionRow{Seq: uint64(c.Seq), Row: row, ID: c.ID, Detector: c.Detector, Version: c.Version,
		Digest: c.Digest, Level: c.Level, Mode: c.Mode, EngineEpoch: epoch, Number: uint64(c.Number),
		Request: c.Request, Sample: c.Sample, Position: c.Position, Score: c.Score, Threshold: c.Threshold,
		TokensSeen: c.TokensSeen, Coverage: c.Coverage, CaptureNS: c.CaptureNS, VerdictNS: c.VerdictNS,
		Action: c.Action, Outcome: c.Outcome, FinalLength: c.FinalLength}
	return out, err
}
