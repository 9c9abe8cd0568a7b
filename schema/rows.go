package schema

// Phase of a token, as in the STEP record.
const (
	PhasePrefill   uint8 = 0
	PhaseDecode    uint8 = 1
	PhaseRecompute uint8 = 2
)

// VectorRow is one token at one hook. In a decoded batch, Request and Vec alias
// the message.
type VectorRow struct {
	Seq       uint64 // CAPTURE record
	Row       uint32 // row in that capture
	Number    uint64 // sequence number, unique in the epoch
	Request   string // external request id
	Sample    int32
	Position  int32 // absolute position in the sequence, tokens
	Pass      int32 // 0 for the first computation of this position
	Phase     uint8
	CaptureNS int64  // wall clock when the capture was complete, ns since 1970
	Vec       []byte // one row, little-endian, dtype and shape in the header
}

// StatsRow holds figures of one row instead of the row.
type StatsRow struct {
	Seq       uint64
	Row       uint32
	Number    uint64
	Request   string
	Sample    int32
	Position  int32
	Pass      int32
	Phase     uint8
	CaptureNS int64
	Dim       int32   // elements of the row
	L2        float32 // square root of the sum of squares of the finite elements
	Mean      float32 // of the finite elements
	Std       float32 // population deviation of the finite elements
	AbsMax    float32 // largest magnitude of the finite elements
	ArgMax    int32   // first index of AbsMax; -1 when no element is finite
	Zeros     int32   // elements that are +0 or -0
	NonFinite int32   // elements that are NaN or infinite
}

// Events of a RequestRow.
const (
	EventOpen = "open"
	EventEnd  = "end"
)

// RequestRow is a request that opened or ended. Fields that the event does not
// know are zero.
type RequestRow struct {
	Seq             uint64
	Row             uint32
	Event           string
	Number          uint64
	Request         string
	EngineID        string // the engine's own id
	Sample          int32
	Tenant          string
	Adapter         string
	TraceParent     string
	Labels          map[string]string
	OptIn           bool
	PromptTokens    int32
	MaxTokens       int32
	GeneratedTokens int32
	CachedTokens    int32 // served from a prefix cache, never captured
	Passes          int32
	Reason          string // of the end: stop, length, abort, disconnect, error, detector
	WallNS          int64  // wall clock of the event, ns since 1970
}

// Facts of the ledger.
const (
	FactLayout     = "layout"
	FactExpected   = "expected"
	FactMissing    = "missing"
	FactAborted    = "aborted"
	FactLost       = "lost"
	FactDropped    = "dropped"
	FactDeadLetter = "dead_letter"
	FactAmend      = "amend"
	FactClosed     = "closed"
)

// Outcomes of an expected fact.
const (
	OutcomeCaptured = "captured"
	OutcomeDropped  = "dropped"
)

// LedgerRow is one fact. Positions are Position, Position+Stride, ... Count of
// them; the row of the k-th is FirstRow+k*Stride.
type LedgerRow struct {
	Seq          uint64
	Row          uint32
	Fact         string
	Number       uint64
	Request      string
	Sample       int32
	Pass         int32
	Phase        uint8
	Position     int32
	Count        int32
	Stride       int32
	Step         uint64
	Layout       uint32
	Entries      string // set of layout entries that the policy chose, like "0-3,7"
	Rows         uint64 // rows that the law counts: Count x entries
	FilteredRows uint64 // rows of this range that the policy did not choose
	Outcome      string // captured or dropped
	Reason       string // drop reason, amend verdict, or how the epoch closed
	CaptureSeq   uint64
	FirstRow     uint32
	Hook         string // only when the fact is about one entry
	Layer        int32
	Detail       string // JSON
}

// DetectionRow is one verdict.
type DetectionRow struct {
	Seq         uint64
	Row         uint32
	ID          string // deterministic alert id
	Detector    string
	Version     string
	Digest      string
	Level       string // warn, escalate, stop
	Mode        string // shadow, alert, enforce
	EngineEpoch uint64
	Number      uint64
	Request     string
	Sample      int32
	Position    int32
	Score       float32
	Threshold   float32
	TokensSeen  int32
	Coverage    float32 // share of the tokens so far that the detector saw, 0 to 1
	CaptureNS   int64
	VerdictNS   int64
	Action      string // none, abort
	Outcome     string // stopped, finished, unknown, error, ""
	FinalLength int32  // tokens, where the engine said
}
