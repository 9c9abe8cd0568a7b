package ring2

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// WaitMode says how a session waits for records.
type WaitMode uint8

// The modes.
const (
	WaitPoll  WaitMode = 0 // poll at 1 ms while busy, block when idle
	WaitEvent WaitMode = 1 // be woken for each step: less latency, one system call of the engine per wake-up
)

// Waiting of a session.
const (
	pollEvery  = time.Millisecond
	idleAfter  = 64          // empty polls after which the session blocks
	longestNap = time.Second // a wake-up that never comes costs no more than this
	batchMax   = 1024        // records of one Next
)

// ErrClosed is returned by a session that was closed.
var ErrClosed = errors.New("ring session is closed")

// ErrEngineGone is returned by Abort when the engine's connection has ended.
var ErrEngineGone = errors.New("engine is gone")

// ProducerCounters are the writer's own counters, readable after its death.
// Rows are rows of the ledger.
type ProducerCounters struct {
	CapturedRows uint64
	DroppedRows  [ReasonCount]uint64
	AbortedRows  uint64
	Steps        uint64
	BeatNS       uint64 // CLOCK_MONOTONIC of the last sign of life
	Closing      bool   // the writer put a BYE: its end is a clean one
}

// Session is the agent's end of one ring. One goroutine calls Next; everything
// else may be called from any.
type Session struct {
	config   Config
	snapshot []Record
	wait     WaitMode
	log      *slog.Logger
	memory   *readerMemory
	conn     *net.UnixConn
	onClose  func(*Session)                // of the listener
	dump     func(*Session, *corruptError) // of the listener; called with mu held

	mu     sync.Mutex
	core   *readerCore
	lost   []uint64
	failed error // the ring is quarantined
	last   lastWords
	// The context whose end ends the nap of Next.
	watched context.Context
	unwatch func() bool

	gone   chan struct{} // closed when the connection has ended
	closed atomic.Bool
	aborts abortTable

	// Of Next.
	idle int
	raw  syscall.RawConn
}

// lastWords is what can be asked after Close.
type lastWords struct {
	counters       ProducerCounters
	release, claim uint64
}

func newSession(c Config, snapshot []Record, m *readerMemory, core *readerCore, conn *net.UnixConn) (*Session, error) {
	s := &Session{config: c, snapshot: snapshot, memory: m, core: core, conn: conn, gone: make(chan struct{}),
		unwatch: func() bool { return true }, onClose: func(*Session) {}, dump: func(*Session, *corruptError) {},
		log: slog.Default()}
	s.aborts.waiting = map[uint64]chan abortAck{}
	s.aborts.sending = make(chan struct{}, 1)
	var err error
	if s.raw, err = m.wake.SyscallConn(); err != nil {
		return nil, err
	}
	return s, nil
}

// Config is what the engine said when it connected.
func (s *Session) Config() Config { return s.config }

// Snapshot lists, in the order of the ring, the MODEL, LAYOUT and REQUEST_OPEN
// records below the first one that Next returns and that still mean something.
func (s *Session) Snapshot() []Record { return s.snapshot }

// Next appends at least one record to dst and at most 1024, blocking until there
// is one. Payloads alias the ring. After the engine died, it returns what was
// committed, passing over what was not (see Lost), and then io.EOF. Other errors
// are ErrClosed, the context's, and that of a quarantined ring, which stays.
func (s *Session) Next(ctx context.Context, dst []Record) ([]Record, error) {
	if !s.memory.enter() {
		return dst, ErrClosed
	}
	defer s.memory.leave()
	for {
		// Asked before the ring is read: what the engine committed while it
		// lived is then found.
		gone := s.isGone() && !s.closed.Load()
		before := len(dst)
		var err error
		dst, err = s.take(dst, gone)
		switch {
		case len(dst) > before:
			s.idle = 0
			return dst, nil
		case err != nil:
			return dst, err
		case s.closed.Load():
			return dst, ErrClosed
		case ctx.Err() != nil:
			return dst, ctx.Err()
		}
		s.pause(ctx)
	}
}

func (s *Session) isGone() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

// take reads what is there. Its error comes with no records.
func (s *Session) take(dst []Record, gone bool) ([]Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(dst)
	atomic.StoreUint64(&s.core.consumer.BeatNS, monotonicNS()) // for people, who look with Peek
	for s.failed == nil && len(dst)-before < batchMax {
		var r Record
		ok, err := s.core.poll(&r)
		switch {
		case err != nil:
			s.quarantine(err)
		case ok:
			dst = append(dst, r)
			continue
		case gone:
			known := len(s.lost)
			if s.lost = s.core.skipLost(s.lost); len(s.lost) > known {
				continue
			}
			if len(dst) == before {
				return dst, io.EOF
			}
		}
		break
	}
	if len(dst) > before {
		return dst, nil
	}
	return dst, s.failed
}

// quarantine stops reading for good: whatever comes after a corrupt record means
// nothing.
func (s *Session) quarantine(err error) {
	s.failed = err
	var c *corruptError
	if errors.As(err, &c) {
		s.dump(s, c)
	}
}

// pause waits for a while, or for the writer's wake-up.
func (s *Session) pause(ctx context.Context) {
	if s.wait == WaitPoll && s.idle < idleAfter {
		s.idle++
		time.Sleep(pollEvery)
		return
	}
	s.watch(ctx)
	s.core.arm()
	defer s.core.disarm()
	if s.ready() {
		return
	}
	// The deadline is set before the last look at what ends the wait early: whoever
	// sets those later sets the deadline later, too.
	if err := s.memory.wake.SetReadDeadline(time.Now().Add(longestNap)); err != nil {
		panic("BUG: the eventfd is not in the poller: " + err.Error())
	}
	if s.isGone() || s.closed.Load() || ctx.Err() != nil {
		return
	}
	if err := s.raw.Read(drainWake); err == nil && !s.ready() {
		time.Sleep(pollEvery) // a peer that wakes us for nothing does not make us spin
	}
}

func (s *Session) ready() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.ready()
}

// watch makes the end of a context end the nap. It is kept from call to call, as
// the context mostly is the same.
func (s *Session) watch(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watched == ctx || s.closed.Load() {
		return
	}
	s.unwatch()
	s.watched, s.unwatch = ctx, context.AfterFunc(ctx, s.rouse)
}

// rouse ends the nap of Next.
func (s *Session) rouse() {
	if s.memory.enter() {
		defer s.memory.leave()
		// It fails only for a file that was closed, which nobody reads.
		_ = s.memory.wake.SetReadDeadline(time.Unix(1, 0))
	}
}

// Release gives everything below seq back to the writer. Between step
// boundaries it is clamped to the boundary before, and it never goes backward or
// past what Next returned.
func (s *Session) Release(seq uint64) {
	if !s.memory.enter() {
		return
	}
	defer s.memory.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed.Load() { // else the next agent may be reading already
		s.core.setRelease(seq)
	}
}

// ReleaseSeq is the sequence number up to which everything was given back.
func (s *Session) ReleaseSeq() uint64 { return s.words().release }

// ClaimSeq is the sequence number that the writer will claim next.
func (s *Session) ClaimSeq() uint64 { return s.words().claim }

// Producer returns the writer's counters.
func (s *Session) Producer() ProducerCounters { return s.words().counters }

func (s *Session) words() lastWords {
	open := s.memory.enter()
	s.mu.Lock()
	defer s.mu.Unlock()
	if open {
		defer s.memory.leave()
		s.last = lastWords{s.core.counters(), s.core.release, s.core.claimed()}
	}
	return s.last
}

// Gone is closed when the connection has ended: the engine is dead, or is about to
// dial again.
func (s *Session) Gone() <-chan struct{} { return s.gone }

// Lost lists, ascending, the records that the engine had claimed and never
// committed when it died. It is complete when Next has returned io.EOF.
func (s *Session) Lost() []uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]uint64(nil), s.lost...)
}

// Quarantined says why the ring is not read any more, or nil.
func (s *Session) Quarantined() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Lease keeps the mapping, and so the payloads that were not released, until the
// returned function is called, also over Close. It fails with ErrClosed.
func (s *Session) Lease() (func(), error) {
	if !s.memory.enter() {
		return nil, ErrClosed
	}
	return sync.OnceFunc(s.memory.leave), nil
}

// Close ends the connection. The engine sees it and dials again. The mapping
// goes when Next has returned and every lease was given back.
func (s *Session) Close() error {
	s.words()
	s.mu.Lock() // no release is on its way when the connection ends
	again := s.closed.Swap(true)
	s.unwatch()
	s.mu.Unlock()
	if again {
		return nil
	}
	err := s.conn.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil // serve has ended a connection that was of no use
	}
	<-s.gone
	s.rouse()
	s.memory.close()
	s.onClose(s)
	return err
}
