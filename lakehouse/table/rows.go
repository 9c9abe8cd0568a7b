// Package table holds the rows of the lake's six tables and their Parquet files:
// requests, tokens, vectors, vector_stats, detections and ledger. FORMAT.md, one
// folder up, documents every column. The package knows neither the commit log nor
// a bus; files are written to an io.Writer and read from an io.ReaderAt.
package table

import "sonde/schema"

// Name is the name of a table, and of its folder in the lake.
type Name string

// The tables.
const (
	Requests    Name = "requests"
	Tokens      Name = "tokens"
	Vectors     Name = "vectors"
	VectorStats Name = "vector_stats"
	Detections  Name = "detections"
	Ledger      Name = "ledger"
)

// Names lists the tables.
var Names = []Name{Requests, Tokens, Vectors, VectorStats, Detections, Ledger}

// TokenHook is the hook whose rows are token ids. With dtype i32 and one element
// per row they are stored in Tokens instead of Vectors.
const TokenHook = "token_ids"

// Origin says who computed a row: the header of the message that carried it.
type Origin struct {
	Epoch         uint64 // random per start of a writer
	Engine        string // engine instance, shared by its ranks
	Rank          int
	Tenant        string
	Model         string
	Revision      string
	WeightsDigest string
	Quantisation  string
	EngineVersion string
	PolicyVersion string // digest of the policy that chose the row
}

// Place says what a row is about: one token of one sample of one request at one
// hook.
type Place struct {
	Hook       string
	Layer      int // -1: none
	Shard      int // part of a tensor that is split over ranks
	ShardCount int // 0 or 1: whole
	Seq        uint64
	Row        uint32 // with Epoch, Hook, Layer, Shard and Seq the identity of the row
	Number     uint64 // sequence number, unique in the epoch
	Request    string // external request id
	Sample     int32
	Position   int32 // absolute, in tokens
	Pass       int32 // 0 for the first computation of this position
	Phase      uint8
	CaptureNS  int64 // wall clock of the step, ns since 1970
}

// Vector is one token at one hook, bit for bit.
type Vector struct {
	Origin
	Place
	DType  string // as in schema.Header
	Shape  []int  // of the row; for ragged rows of one element of the row
	Ragged bool
	Raw    []byte // the row as captured, little-endian
}

// Token is one token id, with the place of its row at the hook token_ids.
type Token struct {
	Origin
	Place
	TokenID int32
}

// Stats holds figures of one row instead of the row; schema.StatsRow explains
// them.
type Stats struct {
	Origin
	Place
	DType     string // of the row that the figures are about
	Shape     []int
	Dim       int32
	L2        float32
	Mean      float32
	Std       float32
	AbsMax    float32
	ArgMax    int32
	Zeros     int32
	NonFinite int32
}

// RequestEvent is a request that opened or ended. Row.Tenant repeats Tenant.
type RequestEvent struct {
	Origin
	Row schema.RequestRow
}

// Fact is one fact of the ledger with the chain that carried it.
type Fact struct {
	Origin
	ChainHook  string // schema.Hookless, or the hook of the refused message that the fact is about
	ChainLayer int
	ChainShard int
	Row        schema.LedgerRow
}

// Detection is one verdict with the header of its message; Epoch is that of the
// detector run.
type Detection struct {
	Origin
	Row schema.DetectionRow
}
