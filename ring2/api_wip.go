package ring2

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

var errNotYet = errors.New("being written")

// WriterOptions configures a writer.
type WriterOptions struct {
	Socket          string // of the agent; it may appear later
	EngineInstance  string // at most 63 bytes
	Rank, RankCount int
	DescCount       int // power of two, 0: 4096
	DataBytes       int // power of two, 0: 64 MiB
	Mode            Mode
	StepStallBudget time.Duration                      // of Complete, 0: 50 ms
	StallLimit      int                                // exhausted steps in a row before Complete stops waiting, 0: 8
	CopyTimeout     time.Duration                      // a detached copy that takes longer is aborted, 0: 5 s
	StateDir        string                             // for the journal, "": none
	OnAbort         func(Abort) (AbortOutcome, uint32) // outcome and final length; nil: unknown
	Logger          *slog.Logger
}

// WriterStats are counters of a writer. Rows are rows of the ledger.
type WriterStats struct {
	CapturedRows     uint64              // offered, dropped ones included
	DroppedRows      [ReasonCount]uint64 // by Reason
	AbortedRows      uint64
	Steps            uint64
	Claim            uint64
	Release          uint64
	Stalls           uint64 // steps that waited
	StallNS          uint64
	ExhaustedSteps   uint64 // steps that used up their budget
	RefusedReleases  uint64 // release words that decreased or passed the claim
	PendingControl   int    // control records waiting for room
	ControlLost      uint64 // control records that the full queue refused
	UnnamedRows      uint64 // dropped rows that MISSING had no room to name
	StuckCopies      uint64 // detached copies aborted after CopyTimeout
	QuarantinedBytes uint64 // of stuck copies' spans, now
	JournalBytes     uint64
	JournalUnnamed   uint64 // records that the full journal did not take
	Attached         bool
	Attaches         uint64
}

// Writer owns a ring.
type Writer struct{}

// NewWriter makes a ring. It works with no agent present.
func NewWriter(o WriterOptions) (*Writer, error)                     { return nil, errNotYet }
func (w *Writer) SetModel(m Model) error                             { return errNotYet }
func (w *Writer) DefineLayout(entries []LayoutEntry) (uint32, error) { return 0, errNotYet }
func (w *Writer) OpenRequest(r RequestOpen) error                    { return errNotYet }
func (w *Writer) EndRequest(r RequestEnd) error                      { return errNotYet }

// RaggedBytes gives the size of a ragged entry of a step before its claim.
type RaggedBytes struct {
	Layout int // index in the step's layouts
	Entry  int
	Bytes  int // of all rows, without the offsets
}

// BeginStep claims a STEP and its CAPTUREs. ragged gives the sizes of ragged entries.
func (w *Writer) BeginStep(ranges []StepRange, layouts []uint32, ragged ...RaggedBytes) (*StepCapture, error) {
	return nil, errNotYet
}
func (w *Writer) Amend(a Amend) error             { return errNotYet }
func (w *Writer) Epoch() uint64                   { return 0 }
func (w *Writer) Stats() WriterStats              { return WriterStats{} }
func (w *Writer) Close(ctx context.Context) error { return errNotYet }

// StepCapture is the open step of a writer, valid until Commit.
type StepCapture struct{}

func (s *StepCapture) Step() uint64             { return 0 }
func (s *StepCapture) Captured(i int) bool      { return false }
func (s *StepCapture) Rows(i, entry int) int    { return 0 }
func (s *StepCapture) Span(i, entry int) []byte { return nil }
func (s *StepCapture) Abort(i int)              {}
func (s *StepCapture) Detach(i int) *Pending    { return nil }
func (s *StepCapture) Commit()                  {}

// Pending is a capture whose copy goes on after the step's Commit.
type Pending struct{}

func (p *Pending) Span(entry int) []byte { return nil }
func (p *Pending) Commit()               {}
func (p *Pending) Abort()                {}

// WaitMode says how a session waits for records.
type WaitMode uint8

// The modes.
const (
	WaitPoll  WaitMode = 0 // poll at 1 ms while busy, block when idle
	WaitEvent WaitMode = 1 // be woken for each step
)

// ListenerOptions configures a listener.
type ListenerOptions struct {
	Name             string // of the agent, for logs of the engine
	Wait             WaitMode
	QuarantineDir    string        // for dumps of corrupt rings, "": none
	HandshakeTimeout time.Duration // 0: 5 s
	MaxRingBytes     int           // of both memfds, 0: 16 GiB
	Logger           *slog.Logger
}

// Listener accepts ranks.
type Listener struct{}

func Listen(path string, o ListenerOptions) (*Listener, error)   { return nil, errNotYet }
func (l *Listener) Accept(ctx context.Context) (*Session, error) { return nil, errNotYet }
func (l *Listener) Close() error                                 { return nil }

// Config is what the engine said about itself and its ring.
type Config struct {
	ABIMajor, ABIMinor uint16
	DescCount          uint64
	DataBytes          uint64
	Epoch              uint64
	Features           uint64
	ReserveDescs       uint64
	ReserveBytes       uint64
	ProducerPID        uint32
	Rank, RankCount    uint32
	Mode               Mode
	StepStallBudget    time.Duration
	WallMinusMonoNS    uint64 // add to a CaptureNS for wall-clock nanoseconds
	EngineInstance     string
}

// ProducerCounters are the writer's own counters, readable after its death.
type ProducerCounters struct {
	CapturedRows uint64
	DroppedRows  [ReasonCount]uint64
	AbortedRows  uint64
	Steps        uint64
	BeatNS       uint64
	Closing      bool
}

// Session is the agent's end of one ring.
type Session struct{}

func (s *Session) Config() Config     { return Config{} }
func (s *Session) Snapshot() []Record { return nil }

// Next appends at least one record to dst, blocking until there is one. io.EOF
// comes after the engine died and every committed record was read.
func (s *Session) Next(ctx context.Context, dst []Record) ([]Record, error) { return dst, errNotYet }

// Release gives everything below seq back to the writer. Between step
// boundaries it is clamped to the boundary before.
func (s *Session) Release(seq uint64)         {}
func (s *Session) ReleaseSeq() uint64         { return 0 }
func (s *Session) ClaimSeq() uint64           { return 0 }
func (s *Session) Producer() ProducerCounters { return ProducerCounters{} }

// Abort asks the engine to stop a request: outcome and final length.
func (s *Session) Abort(ctx context.Context, a Abort) (AbortOutcome, uint32, error) {
	return 0, 0, errNotYet
}
func (s *Session) Lost() []uint64     { return nil }
func (s *Session) Quarantined() error { return nil }

// Lease keeps the mapping until the returned function is called, also over Close.
func (s *Session) Lease() (func(), error) { return nil, errNotYet }
func (s *Session) Close() error           { return nil }

// EntryRows are the rows of one layout entry in a capture.
type EntryRows struct {
	Entry    int
	Rows     int
	RowBytes int    // 0 when ragged
	Data     []byte // all rows
	Offsets  []byte // ragged: rows+1 little-endian u64 into Data
}

// Row is row i.
func (e EntryRows) Row(i int) []byte { return nil }

// SplitCapture expands a capture into its entries; every size is checked.
func SplitCapture(l *Layout, step *Step, layoutIndex int, payload []byte) ([]EntryRows, error) {
	return nil, errNotYet
}

func (e LayoutEntry) RowBytes() int { return 0 }

func AppendModel(b []byte, m Model) []byte             { return b }
func ParseModel(b []byte) (Model, error)               { return Model{}, errNotYet }
func AppendLayout(b []byte, l Layout) []byte           { return b }
func ParseLayout(b []byte) (Layout, error)             { return Layout{}, errNotYet }
func AppendRequestOpen(b []byte, r RequestOpen) []byte { return b }
func ParseRequestOpen(b []byte) (RequestOpen, error)   { return RequestOpen{}, errNotYet }
func AppendStep(b []byte, s Step) []byte               { return b }
func ParseStep(b []byte) (Step, error)                 { return Step{}, errNotYet }
func AppendAmend(b []byte, a Amend) []byte             { return b }
func ParseAmend(b []byte) (Amend, error)               { return Amend{}, errNotYet }
func AppendMissing(b []byte, m Missing) []byte         { return b }
func ParseMissing(b []byte) (Missing, error)           { return Missing{}, errNotYet }
func AppendRequestEnd(b []byte, r RequestEnd) []byte   { return b }
func ParseRequestEnd(b []byte) (RequestEnd, error)     { return RequestEnd{}, errNotYet }
func AppendObituary(b []byte, o Obituary) []byte       { return b }
func ParseObituary(b []byte) (Obituary, error)         { return Obituary{}, errNotYet }
