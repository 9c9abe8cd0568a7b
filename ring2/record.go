package ring2

import "strconv"

// Kind says what a record holds. The codes are part of the ABI; a reader
// ignores kinds that it does not know.
type Kind uint16

// The kinds. All but KindCapture are control records.
const (
	KindModel        Kind = 1
	KindLayout       Kind = 2
	KindRequestOpen  Kind = 3
	KindStep         Kind = 4
	KindCapture      Kind = 5
	KindAmend        Kind = 6
	KindMissing      Kind = 7
	KindRequestEnd   Kind = 8
	KindObituary     Kind = 9
	KindBye          Kind = 10
	KindEndOfJournal Kind = 0 // only inside an obituary
)

var kindNames = [...]string{"end_of_journal", "model", "layout", "request_open", "step", "capture", "amend",
	"missing", "request_end", "obituary", "bye"}

func (k Kind) String() string { return name(kindNames[:], int(k), "kind") }

// Flags of a record.
const (
	FlagAborted    uint16 = 1 // the copy failed: the payload is not readable
	FlagPayloadCRC uint16 = 2 // the payload is covered by a checksum
)

// Record is one record as the reader sees it. Payload aliases the ring until
// Session.Release moves past Seq: copy what must outlive that.
type Record struct {
	Seq       uint64
	Kind      Kind
	Flags     uint16
	CaptureNS uint64 // CLOCK_MONOTONIC of the engine at the claim; of a CAPTURE, once it was complete
	Step      uint64 // of STEP and CAPTURE
	Layout    uint32 // of CAPTURE
	Rows      uint32 // of CAPTURE: token rows
	Payload   []byte // nil when aborted
}

// Aborted says that the copy into this record failed; its rows are lost.
func (r *Record) Aborted() bool { return r.Flags&FlagAborted != 0 }

// Reason says why rows were dropped. The codes are part of the ABI.
type Reason uint8

// The reasons. ReasonNone is the outcome of a capture that was not dropped.
const (
	ReasonNone        Reason = 0
	ReasonNoSlot      Reason = 1 // all descriptors in use
	ReasonNoSpace     Reason = 2 // not enough free payload bytes
	ReasonOversize    Reason = 3 // larger than the ring can ever hold
	ReasonControlFull Reason = 4 // not even the STEP record fitted; named by MISSING
	ReasonBudget      Reason = 5 // over the policy's byte budget
	ReasonSpoolFull   Reason = 6
	ReasonDisabled    Reason = 7 // capture is switched off
	ReasonCount              = 8
)

var reasonNames = [...]string{"none", "no_slot", "no_space", "oversize", "control_full", "budget", "spool_full",
	"disabled"}

func (r Reason) String() string { return name(reasonNames[:], int(r), "reason") }

// RowSelect says which rows of a range an entry holds.
type RowSelect uint8

// The selections.
const (
	SelectAll     RowSelect = 0 // every row of the range
	SelectSampled RowSelect = 1 // only the last row of ranges flagged sampled
)

// Phase of a range of tokens.
type Phase uint8

// The phases.
const (
	PhasePrefill   Phase = 0
	PhaseDecode    Phase = 1
	PhaseRecompute Phase = 2
)

var phaseNames = [...]string{"prefill", "decode", "recompute"}

func (p Phase) String() string { return name(phaseNames[:], int(p), "phase") }

// Verdict of an amendment.
type Verdict uint8

// The verdicts.
const (
	VerdictAccepted Verdict = 0
	VerdictRejected Verdict = 1
	VerdictPhantom  Verdict = 2 // computed after the end of the sequence
)

var verdictNames = [...]string{"accepted", "rejected", "phantom"}

func (v Verdict) String() string { return name(verdictNames[:], int(v), "verdict") }

// Finish says why a request ended.
type Finish uint8

// The finish reasons.
const (
	FinishStop       Finish = 0
	FinishLength     Finish = 1
	FinishAbort      Finish = 2
	FinishDisconnect Finish = 3
	FinishError      Finish = 4
	FinishDetector   Finish = 5
)

var finishNames = [...]string{"stop", "length", "abort", "disconnect", "error", "detector"}

func (f Finish) String() string { return name(finishNames[:], int(f), "finish") }

// Mode says what a full ring means.
type Mode uint32

// The modes.
const (
	BestEffort Mode = 0 // drop and count
	Complete   Mode = 1 // wait, up to the step stall budget, then drop and count
)

var modeNames = [...]string{"best_effort", "complete"}

func (m Mode) String() string { return name(modeNames[:], int(m), "mode") }

// Model is what the engine runs.
type Model struct {
	Name, Revision, WeightsDigest, Quantisation string
	Engine, EngineVersion                       string
	Layers, DModel, Vocab                       uint32
}

// LayoutEntry is one hook's part of a capture: Rows x Shape elements.
type LayoutEntry struct {
	Hook       string
	Layer      int // -1: no layer
	DType      DType
	Select     RowSelect
	Ragged     bool     // rows have their own lengths; Shape then describes one unit
	Shape      []uint32 // of one row; empty is a scalar
	Shard      uint16
	ShardCount uint16 // 0 and 1: not sharded
}

// Layout is the ordered list of what a capture holds.
type Layout struct {
	ID      uint32
	Entries []LayoutEntry
}

// Label is a key and a value that a client gave to its request.
type Label struct{ Key, Value string }

// RequestOpen announces one sequence: one sample of a request.
type RequestOpen struct {
	Number                       uint64 // unique in the epoch
	ExternalID, EngineID         string
	Sample                       uint32
	Tenant, Adapter, TraceParent string
	OptIn                        bool
	PromptTokens, MaxTokens      uint32
	OpenWallNS                   uint64
	Labels                       []Label
}

// StepLayout says what became of one layout of a step.
type StepLayout struct {
	Layout     uint32
	Outcome    Reason // ReasonNone: captured
	CaptureSeq uint64 // of the CAPTURE record, when captured
}

// StepRange is a run of consecutive tokens of one sequence computed in a step.
type StepRange struct {
	Number     uint64
	Position   uint32
	Count      uint32
	Pass       uint32
	Phase      Phase
	Sampled    bool   // the last row of the range was sampled from
	LayoutMask uint64 // bit i: the i-th layout of the step applies
}

// Step lists what a step computed and what became of its captures.
type Step struct {
	Step    uint64
	Layouts []StepLayout
	Ranges  []StepRange
}

// AmendRange says what became of tokens that were computed earlier.
type AmendRange struct {
	Number                uint64
	Position, Count, Pass uint32
	Verdict               Verdict
}

// Amend corrects an earlier step, as speculative decoding does.
type Amend struct {
	Step   uint64
	Ranges []AmendRange
}

// MissingRange names rows whose STEP record did not fit. Where ranges had to be
// merged, Position and Count are the hull and Rows is exact.
type MissingRange struct {
	Number                        uint64
	Position, Count, Pass, Layout uint32
	Reason                        Reason
	Rows                          uint64 // rows of the ledger: tokens x entries
	FirstStep, LastStep           uint64
}

// Missing names what could not be named in time.
type Missing struct{ Ranges []MissingRange }

// RequestEnd closes a sequence.
type RequestEnd struct {
	Number                        uint64
	PromptTokens, GeneratedTokens uint32
	CachedTokens, Passes          uint32
	Reason                        Finish
	EndWallNS                     uint64
}

// Flags of an obituary.
const (
	// ObituaryNeverPut flags a record that never got into the dead writer's ring.
	ObituaryNeverPut uint16 = 1
	// ObituaryFirst flags the first obituary of a telling. Each agent that attaches
	// before it released the end of a journal is told that journal from its start.
	ObituaryFirst uint16 = 2
)

// Obituary is a control record of a writer that died, told by its successor.
// Kind KindEndOfJournal is the last one of that epoch.
type Obituary struct {
	DeadEpoch uint64
	// Seq is that of the record in the dead ring. A flagged record has the one that
	// it would have had then; others may have it, too. The last one has the number
	// after that of the last record that the journal knows of.
	Seq     uint64
	Kind    Kind
	Flags   uint16
	Payload []byte // of the record; aliases the parsed buffer
}

// Abort asks the engine to stop a request. The engine refuses another epoch than
// its own and an abort that expired, so a redelivered one cannot hit a later
// request.
type Abort struct {
	ID            uint64 // chosen by Session.Abort when 0
	Epoch         uint64
	Number        uint64
	Sample        uint32
	EngineID      string
	Position      uint32
	ExpiresWallNS uint64
}

// AbortOutcome is the engine's answer.
type AbortOutcome uint8

// The outcomes.
const (
	AbortUnknown  AbortOutcome = 0 // no such request here, or the abort expired
	AbortStopped  AbortOutcome = 1
	AbortFinished AbortOutcome = 2 // it had ended before
)

var abortNames = [...]string{"unknown", "stopped", "finished"}

func (o AbortOutcome) String() string { return name(abortNames[:], int(o), "outcome") }

func name(names []string, code int, what string) string {
	if code < len(names) {
		return names[code]
	}
	return what + "(" + strconv.Itoa(code) + ")"
}
