package lakehouse

import (
	"sonde/lakehouse/account"
	"sonde/lakehouse/table"
)

// Rows of the tables. A callback gets each row in the same memory as the one
// before: copy the struct to keep it. Texts, labels and Raw may be kept as they are.
type (
	// Vector is one token at one hook, bit for bit as captured.
	Vector = table.Vector
	// Token is one token id.
	Token = table.Token
	// VectorStats holds figures of a row instead of the row.
	VectorStats = table.Stats
	// Fact is one fact of the ledger.
	Fact = account.Fact
)

// Request is one sample of one request, which is one (Epoch, Number): what its
// open and its end event say together.
type Request struct {
	table.Origin
	Number          uint64 // unique in the epoch
	Request         string // external id
	EngineID        string // the engine's own id
	Sample          int32
	Adapter         string
	TraceParent     string
	Labels          map[string]string
	OptIn           bool
	PromptTokens    int32
	MaxTokens       int32
	GeneratedTokens int32  // 0 before the end
	CachedTokens    int32  // prompt tokens served from a prefix cache: never computed, never captured
	Passes          int32  // how often positions were computed anew, plus one; 0 before the end
	Reason          string // of the end; empty before it
	Opened, Ended   bool   // which events the lake has
	OpenNS, EndNS   int64  // wall clock, ns since 1970; 0: no such event
}
