package ring2

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

var errNotYet = errors.New("being written")

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
func (w *Writer) Close(ctx context.Context) error { return errNotYet }

// StepCapture is the open step of a writer, valid until Commit.
type StepCapture struct{ writer *Writer }

func (s *StepCapture) Step() uint64             { return 0 }
func (s *StepCapture) Captured(i int) bool      { return false }
func (s *StepCapture) Rows(i, entry int) int    { return 0 }
func (s *StepCapture) Span(i, entry int) []byte { return nil }
func (s *StepCapture) Abort(i int)              {}
func (s *StepCapture) Detach(i int) *Pending    { return nil }
func (s *StepCapture) Commit()                  {}

type stallRule struct{ stalls, stallNS, exhausted uint64 }

type journal struct{ bytes, unnamed uint64 }

type obituaryQueue struct{ sent uint64 }

type ringMemory struct{ ctl, data []byte }

func newRingMemory(descCount, dataBytes uint64) (*ringMemory, error) { return nil, errNotYet }
func openState(dir string, rank int, epoch uint64) (*journal, *obituaryQueue, error) {
	return nil, nil, errNotYet
}
func (w *Writer) closeState(remove bool)           {}
func (w *Writer) control(q queued) error           { return errNotYet }
func (w *Writer) countLater()                      {}
func (w *Writer) tick(ctx context.Context)         {}
func (w *Writer) stayAttached(ctx context.Context) {}
func monotonicNS() uint64                          { return 0 }

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
