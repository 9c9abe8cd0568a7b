package ring2

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// WriterOptions configures a writer.
type WriterOptions struct {
	Socket          string // of the agent, which may appear later; "": never dial
	EngineInstance  string // at most 63 bytes, the same for all ranks
	Rank, RankCount int    // RankCount 0: 1
	DescCount       int    // power of two, 0: 4096
	DataBytes       int    // power of two, 0: 64 MiB
	Mode            Mode
	StepStallBudget time.Duration // longest wait of a step in mode Complete, 0: 50 ms
	StallLimit      int           // exhausted steps in a row before Complete stops waiting, 0: 8
	CopyTimeout     time.Duration // a detached copy that takes longer is aborted, 0: 5 s
	// StateDir is the folder of the journal, "" for none. It must outlive the
	// process, not the machine: tmpfs will do, and never makes a step wait for a
	// disk.
	StateDir string
	// OnAbort stops a request and returns the outcome and the final length in
	// tokens. It runs on the connection's goroutine. nil answers AbortUnknown.
	OnAbort func(Abort) (AbortOutcome, uint32)
	Logger  *slog.Logger // nil: slog.Default
}

func (o *WriterOptions) setDefaults() error {
	if o.RankCount == 0 {
		o.RankCount = 1
	}
	if o.DescCount == 0 {
		o.DescCount = 4096
	}
	if o.DataBytes == 0 {
		o.DataBytes = 64 << 20
	}
	if o.StepStallBudget == 0 {
		o.StepStallBudget = 50 * time.Millisecond
	}
	if o.StallLimit == 0 {
		o.StallLimit = 8
	}
	if o.CopyTimeout == 0 {
		o.CopyTimeout = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	switch {
	case o.DescCount < minDescCount || o.DescCount > maxDescCount || bits.OnesCount(uint(o.DescCount)) != 1:
		return fmt.Errorf("make ring: %d descriptors; use a power of two from %d to %d", o.DescCount, minDescCount,
			maxDescCount)
	case o.DataBytes < minDataBytes || o.DataBytes > maxDataBytes || bits.OnesCount(uint(o.DataBytes)) != 1:
		return fmt.Errorf("make ring: %d bytes of data; use a power of two from %d to %d", o.DataBytes, minDataBytes,
			maxDataBytes)
	case o.Rank < 0 || o.Rank >= o.RankCount || o.RankCount > maxRanks:
		return fmt.Errorf("make ring: rank %d of %d", o.Rank, o.RankCount)
	case len(o.EngineInstance) > 63:
		return fmt.Errorf("make ring: engine instance %q has %d bytes; at most 63", o.EngineInstance,
			len(o.EngineInstance))
	case o.Mode > Complete || o.StepStallBudget < 0 || o.StallLimit < 0 || o.CopyTimeout < 0:
		return fmt.Errorf("make ring: mode %d, stall budget %v, stall limit %d, copy timeout %v", o.Mode,
			o.StepStallBudget, o.StallLimit, o.CopyTimeout)
	}
	return nil
}

// WriterStats are counters of a writer. Rows are rows of the ledger: tokens x
// entries.
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
	RefusedReleases  uint64 // release words that decreased, passed the claim or stopped inside a step
	PendingControl   int    // control records and missing ranges that wait for room
	ControlLost      uint64 // control records that the full queue refused
	UnnamedRows      uint64 // dropped rows that MISSING had no room to name
	StuckCopies      uint64 // detached copies aborted after CopyTimeout
	QuarantinedBytes uint64 // spans of stuck copies now
	JournalBytes     uint64
	JournalUnnamed   uint64 // records that the full journal did not take
	ObituariesSent   uint64 // records of dead epochs put into the ring
	ObituariesUntold uint64 // records of dead epochs that are too large for this ring
	Attached         bool
	Attaches         uint64
}

// Writer owns a ring. One goroutine captures: BeginStep, and all of StepCapture.
// Everything else may be called from any, also while a step is open. Background
// goroutines flush what waits, sweep stuck copies and send snapshots.
type Writer struct {
	o      WriterOptions
	config Config
	memory *ringMemory

	mu       sync.Mutex
	core     *writerCore
	queue    controlQueue
	alive    aliveTable
	journal  *journal    // nil without a state folder
	dead     *deadQueue  // of the background goroutine; nil without a state folder
	retell   atomic.Bool // a reader attached: it is told the journals of dead writers from their start
	told     uint64      // obituaries put into the ring
	untold   uint64      // obituaries too large for it
	layouts  map[uint32]*Layout
	nextStep uint64
	step     StepCapture
	scratch  []byte // the record being encoded
	stall    stallRule
	closing  bool // nothing new is taken
	closed   bool // the memory may be gone

	rotateAfter  time.Time     // of the background goroutine
	abortedLater atomic.Uint64 // rows aborted by detached copies
	detached     atomic.Int64  // copies that have not completed
	attached     atomic.Bool
	attaches     atomic.Uint64
	stop         context.CancelFunc
	background   sync.WaitGroup
}

// allocRing makes the memory of a ring of so many descriptors and data bytes.
type allocRing func(descs, bytes uint64) (*ringMemory, error)

// NewWriter makes a ring and its journal. It works with no agent present: it
// dials in the background for ever.
func NewWriter(o WriterOptions) (*Writer, error) { return newWriter(o, newRingMemory, 0, 0) }

// newWriter makes a ring whose records and data count from where the caller says.
func newWriter(o WriterOptions, alloc allocRing, startSeq, startPos uint64) (*Writer, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	var seed [8]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("make ring: choose an epoch: %w", err)
	}
	epoch := order.Uint64(seed[:]) | 1
	c := Config{ABIMajor: abiABIMajor, ABIMinor: abiABIMinor, DescCount: uint64(o.DescCount),
		DataBytes: uint64(o.DataBytes), Epoch: epoch, ReserveDescs: max(2, uint64(o.DescCount)/8),
		ReserveBytes: uint64(o.DataBytes) / 16, ProducerPID: uint32(os.Getpid()), Rank: uint32(o.Rank),
		RankCount: uint32(o.RankCount), Mode: o.Mode, StepStallBudget: o.StepStallBudget,
		WallMinusMonoNS: uint64(time.Now().UnixNano()) - monotonicNS(), EngineInstance: o.EngineInstance}
	w := &Writer{o: o, config: c, layouts: map[uint32]*Layout{}}
	w.alive.requests = map[uint64]*aliveRecord{}
	w.step.writer = w
	if o.StateDir != "" {
		var err error
		if w.journal, w.dead, err = openState(o.StateDir, o.Rank, epoch, o.Logger); err != nil {
			return nil, err
		}
	}
	if err := w.makeRing(alloc, startSeq, startPos); err != nil {
		_ = w.journal.close(true) // the ring's error says more
		w.dead.close()
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	w.background.Go(func() { w.tick(ctx) })
	if o.Socket != "" {
		w.background.Go(func() { w.stayAttached(ctx) })
	}
	return w, nil
}

// makeRing lays the ring over its memory.
func (w *Writer) makeRing(alloc allocRing, startSeq, startPos uint64) error {
	memory, err := alloc(w.config.DescCount, w.config.DataBytes)
	if err != nil {
		return err
	}
	r, err := ringOn(memory.ctl, memory.ctl[abiConsumerOff:], memory.data, w.config.DescCount)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	w.memory = memory
	w.core = newWriterCore(r, w.config, monotonicNS, startSeq, startPos)
	return nil
}

// Epoch identifies this start of the writer.
func (w *Writer) Epoch() uint64 { return w.config.Epoch }

// Stats returns the counters.
func (w *Writer) Stats() WriterStats {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.core.refresh()
		w.countLater()
	}
	c := &w.core.counters
	s := WriterStats{CapturedRows: c.capturedRows, DroppedRows: c.droppedRows, AbortedRows: c.abortedRows,
		Steps: c.steps, Claim: w.core.claim, Release: w.core.release, Stalls: w.stall.stalls,
		StallNS: w.stall.stallNS, ExhaustedSteps: w.stall.exhausted, RefusedReleases: c.refusedReleases,
		PendingControl: w.queue.records(), ControlLost: w.queue.lost, UnnamedRows: w.queue.missing.unnamed,
		StuckCopies: c.stuckCopies, QuarantinedBytes: w.core.quarantinedBytes(), Attached: w.attached.Load(),
		ObituariesSent: w.told, ObituariesUntold: w.untold, Attaches: w.attaches.Load()}
	if w.journal != nil {
		s.JournalBytes, s.JournalUnnamed = w.journal.bytes, w.journal.unnamed
	}
	return s
}

var errClosed = errors.New("ring writer is closed")
