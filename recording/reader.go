package recording

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"sonde/ring2"
)

// Bounds of one call of Next.
const (
	maxBatchRecords = 1024
	maxBatchBytes   = 4 << 20 // of payloads; one record may be larger
)

// ErrNoEngine is returned by Abort: a recording has no engine that could stop.
var ErrNoEngine = errors.New("recording has no engine: nothing can be stopped")

// Clock says when the records of a replay in real time are due. The sessions of a
// recording share one, so that the ranks keep their distances.
type Clock struct {
	begin time.Time
	base  time.Time // wall-clock capture time that is due at begin
}

// StartClock makes the first record of a recording due now.
func StartClock(r *Recording) *Clock {
	c := &Clock{begin: time.Now()}
	for _, s := range r.Sessions {
		if first := s.Wall(s.First); s.Total() > 0 && (c.base.IsZero() || first.Before(c.base)) {
			c.base = first
		}
	}
	return c
}

// wait is how long it is until a capture time is due.
func (c *Clock) wait(captured time.Time) time.Duration {
	return captured.Sub(c.base) - time.Since(c.begin)
}

// Reader gives a recorded session to an agent in place of a ring: the same
// records, sequence numbers and capture times, and the same end. Like a ring it
// holds what was not released, and gives nothing more when that fills the ring
// that the engine had. One goroutine calls Next; everything else may be called
// from any.
type Reader struct {
	session *Session
	clock   *Clock // nil: as fast as records are released
	p       *playback
	ahead   ring2.Record // the next record
	have    bool         // ahead is set

	closeOnce sync.Once
	closed    chan struct{}
	changed   chan struct{} // holds one token after a release
	done      chan struct{}

	mu        sync.Mutex
	next      uint64
	release   uint64
	held      []heldRecord // not released, ascending
	heldBytes int64
	lost      []uint64
	ended     error // what Next returns behind the last record, nil before
	exhausted bool  // every record was read
}

type heldRecord struct {
	seq   uint64
	bytes int64
}

// Read opens a session. A clock makes its records due when they were captured; nil
// gives them as fast as they are released.
func (s *Session) Read(clock *Clock) (*Reader, error) {
	p, err := openPlayback(s.Dir)
	if err != nil {
		return nil, fmt.Errorf("open recorded session: %w", err)
	}
	return &Reader{session: s, clock: clock, p: p, closed: make(chan struct{}), changed: make(chan struct{}, 1),
		done: make(chan struct{}), next: s.Start.Release, release: s.Start.Release}, nil
}

// Config is what the engine said when it connected.
func (r *Reader) Config() ring2.Config { return r.session.Start.Ring.config() }

// Snapshot lists the records that were alive when the rank attached.
func (r *Reader) Snapshot() []ring2.Record { return r.p.snapshot }

// Next appends at least one record to dst, blocking until one is due and there is
// room for it. At the end of a session whose engine ended it returns io.EOF, at
// that of a corrupt ring its error. A session whose recorder ended before its
// engine has no such end: Next then blocks until ctx ends or Close. Damage that
// Open did not see is an error that stays.
func (r *Reader) Next(ctx context.Context, dst []ring2.Record) ([]ring2.Record, error) {
	records, size := 0, 0
	for records < maxBatchRecords && size < maxBatchBytes {
		wait, err := r.look()
		switch {
		case err == nil && wait == 0:
			records, size = records+1, size+len(r.ahead.Payload)
			dst = append(dst, r.hand())
			continue
		case records > 0:
			return dst, nil
		case err == nil, errors.Is(err, errCut):
			err = r.pause(ctx, wait)
		}
		if err != nil {
			return dst, err
		}
	}
	return dst, nil
}

// errCut: nothing more was recorded, although the engine went on.
var errCut = errors.New("the recording ends here")

// look reads the next record and says how long it must wait: forever, which is
// less than 0, when something else must happen first.
func (r *Reader) look() (time.Duration, error) {
	select {
	case <-r.closed:
		return 0, ring2.ErrClosed
	default:
	}
	if err := r.fetch(); err != nil {
		return -1, err
	}
	if !r.room(len(r.ahead.Payload)) {
		return -1, nil
	}
	if r.clock == nil {
		return 0, nil
	}
	return max(0, r.clock.wait(r.session.Wall(r.ahead.CaptureNS))), nil
}

// fetch makes sure that the next record is read. Its errors stay.
func (r *Reader) fetch() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.have || r.ended != nil {
		return r.ended
	}
	rec, err := r.p.next()
	r.lost = r.p.lost
	if err == nil && int64(rec.Seq-r.session.End.Until) >= 0 {
		err = io.EOF
	}
	if err == nil {
		r.ahead, r.have = rec, true
		return nil
	}
	if r.ended = err; errors.Is(err, io.EOF) {
		switch end := &r.session.End; end.Reason {
		case ReasonEnded:
		case ReasonCorrupt:
			r.ended = fmt.Errorf("the recorded ring ends so: %s", end.Detail)
		default:
			r.ended = errCut
		}
		r.exhausted = true
		r.settle()
	}
	return r.ended
}

// room says whether a ring would have room for one record more.
func (r *Reader) room(payload int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	ring := &r.session.Start.Ring
	return len(r.held) == 0 || uint64(len(r.held)) < ring.DescCount &&
		uint64(r.heldBytes)+uint64(payload) <= ring.DataBytes
}

func (r *Reader) hand() ring2.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.ahead
	r.ahead, r.have = ring2.Record{}, false
	r.next = rec.Seq + 1
	r.held = append(r.held, heldRecord{rec.Seq, int64(len(rec.Payload))})
	r.heldBytes += int64(len(rec.Payload))
	return rec
}

// pause waits for a while, which is without end below 0, or until something changes.
func (r *Reader) pause(ctx context.Context, wait time.Duration) error {
	var due <-chan time.Time
	if wait >= 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-r.closed:
		return ring2.ErrClosed
	case <-r.changed:
	case <-due:
	}
	return nil
}

// Release forgets everything below seq. It never goes backward or past what Next
// returned.
func (r *Reader) Release(seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if seq-r.release > r.next-r.release {
		return
	}
	n := 0
	for n < len(r.held) && r.held[n].seq-r.release < seq-r.release {
		r.heldBytes -= r.held[n].bytes
		n++
	}
	r.held = r.held[:copy(r.held, r.held[n:])]
	r.release = seq
	r.settle()
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// settle closes done when the last record is released, with the lock held.
func (r *Reader) settle() {
	if !r.exhausted || len(r.held) > 0 {
		return
	}
	select {
	case <-r.done:
	default:
		close(r.done)
	}
}

// Done is closed once everything in the session was released.
func (r *Reader) Done() <-chan struct{} { return r.done }

// Exhausted says whether Next has nothing more to return.
func (r *Reader) Exhausted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exhausted
}

// ReleaseSeq is the sequence number up to which everything was released.
func (r *Reader) ReleaseSeq() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.release
}

// WallNS is the wall clock of a capture, in ns since 1970.
func (r *Reader) WallNS(captureNS uint64) int64 { return r.Config().WallNS(captureNS) }

// ClaimSeq is the sequence number that the writer would claim next: at first that
// of the attachment, at the end that of the writer's end.
func (r *Reader) ClaimSeq() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(r.ended, io.EOF) {
		return max(r.next, r.session.End.Claim)
	}
	return max(r.next, r.session.Start.Claim)
}

// Producer returns the writer's counters: at first those of the attachment, at the
// end those of the writer's end.
func (r *Reader) Producer() ring2.ProducerCounters {
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(r.ended, io.EOF) {
		return r.session.End.Counters.producer()
	}
	return r.session.Start.Counters.producer()
}

// Abort fails with ErrNoEngine.
func (r *Reader) Abort(context.Context, ring2.Abort) (ring2.AbortOutcome, uint32, error) {
	return ring2.AbortUnknown, 0, ErrNoEngine
}

// Gone is never closed: whoever stops reading a recording can read it again.
func (r *Reader) Gone() <-chan struct{} { return nil }

// Lost lists the records that the engine had claimed and never committed.
func (r *Reader) Lost() []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]uint64(nil), r.lost...)
}

// Quarantined says why the recorded ring could not be read on, or nil.
func (r *Reader) Quarantined() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(r.ended, io.EOF) || errors.Is(r.ended, errCut) {
		return nil
	}
	return r.ended
}

// Close ends Next, and closes the files.
func (r *Reader) Close() error {
	var err error
	r.closeOnce.Do(func() {
		close(r.closed)
		r.mu.Lock() // Next may be reading
		defer r.mu.Unlock()
		err = r.p.scan.close()
	})
	return err
}
