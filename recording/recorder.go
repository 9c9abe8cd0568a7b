package recording

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"sonde/ring2"
)

// maxAttached is how many ranks are recorded at the same time; one more is
// refused and dials again.
const maxAttached = 1024

// Source is what a recorder needs of a ring2.Session.
type Source interface {
	Config() ring2.Config
	Snapshot() []ring2.Record
	Next(ctx context.Context, dst []ring2.Record) ([]ring2.Record, error)
	Release(seq uint64)
	ReleaseSeq() uint64
	ClaimSeq() uint64
	Producer() ring2.ProducerCounters
	Lost() []uint64
	Close() error
}

// Totals are what a recorder has recorded.
type Totals struct {
	Sessions, Records, Bytes int64
}

// Recorder records sessions into one folder, in place of an agent.
type Recorder struct {
	dir    string
	o      Options
	log    *slog.Logger
	lock   *os.File
	budget budget

	sessions, records, bytes atomic.Int64
	attached                 atomic.Int64
}

// NewRecorder claims a folder, which may hold sessions already: they stay. Close
// gives it back.
func NewRecorder(dir string, o Options, log *slog.Logger) (*Recorder, error) {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultMaxBytes
	}
	if o.SegmentBytes < minSegmentBytes || o.MaxBytes < 1 {
		return nil, fmt.Errorf("record into %s: segments of %d bytes and %d in all; want at least %d, and 1", dir,
			o.SegmentBytes, o.MaxBytes, minSegmentBytes)
	}
	if o.create == nil {
		o.create = createFile
	}
	lock, used, err := claimFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("record into %s: %w; choose a folder that can be written", dir, err)
	}
	r := &Recorder{dir: dir, o: o, log: log, lock: lock}
	r.budget.left.Store(o.MaxBytes - used)
	return r, nil
}

const defaultMaxBytes = 64 << 30

// Close gives the folder back.
func (r *Recorder) Close() error { return r.lock.Close() }

// Totals counts what this recorder has recorded.
func (r *Recorder) Totals() Totals {
	return Totals{Sessions: r.sessions.Load(), Records: r.records.Load(), Bytes: r.bytes.Load()}
}

// Run records every rank that attaches until ctx ends, which is no error. A
// recording that is full or cannot be written ends all, with an error: what was
// not synced stays in the rings for the next agent.
func (r *Recorder) Run(ctx context.Context, l *ring2.Listener) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var ranks sync.WaitGroup
	for ctx.Err() == nil {
		s, err := l.Accept(ctx)
		if err != nil {
			if ctx.Err() == nil {
				stop(err)
			}
			break
		}
		if r.attached.Add(1) > maxAttached {
			r.attached.Add(-1)
			r.log.Warn("rank refused", "error", fmt.Sprintf("%d ranks are recorded already", maxAttached))
			_ = s.Close() // Its engine dials again.
			continue
		}
		ranks.Go(func() {
			defer r.attached.Add(-1)
			if err := r.Record(ctx, s); err != nil {
				stop(err)
			}
		})
	}
	ranks.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Record records one session and closes it. Each batch is released in the ring,
// up to its last step boundary, once it is safe on the disk; what comes meanwhile
// makes the next batch larger, so that a slow disk costs few syncs.
func (r *Recorder) Record(ctx context.Context, s Source) error {
	c := s.Config()
	log := r.log.With("engine", c.EngineInstance, "rank", c.Rank, "epoch", fmt.Sprintf("%016x", c.Epoch))
	w, err := newWriter(r.dir, startOf(s, r.o.Recorder), s.Snapshot(), r.o, &r.budget)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	r.sessions.Add(1)
	log.Info("recording", "folder", w.dir)
	end, next := r.copy(ctx, s, w)
	end.Until, end.Claim, end.Counters = s.ReleaseSeq(), s.ClaimSeq(), countersOf(s.Producer())
	if end.Reason == ReasonEnded || end.Reason == ReasonCorrupt {
		end.Until = next // nobody reads on from the last step boundary
	}
	err = w.Finish(end)
	r.bytes.Add(w.Bytes())
	log.Info("recording of the rank ended", "reason", string(end.Reason), "until", end.Until, "bytes", w.Bytes())
	return errors.Join(err, s.Close())
}

// copy records until something ends it, and says what, and which record would be
// next.
func (r *Recorder) copy(ctx context.Context, s Source, w *Writer) (End, uint64) {
	var records []ring2.Record
	next := s.ReleaseSeq()
	for {
		var err error
		records, err = s.Next(ctx, records[:0])
		if lost := s.Lost(); len(lost) > w.lost {
			next = max(next, lost[len(lost)-1]+1)
			if w.Lost(lost[w.lost:]) != nil {
				return endOf(w.err), next
			}
		}
		if n := len(records); n > 0 {
			if w.Append(records) != nil || w.Sync() != nil {
				return endOf(w.err), next
			}
			next = max(next, records[n-1].Seq+1)
			s.Release(records[n-1].Seq + 1)
			r.records.Add(int64(n))
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return End{Reason: ReasonEnded}, next
		case ctx.Err() != nil, errors.Is(err, ring2.ErrClosed):
			return End{Reason: ReasonStopped}, next
		default:
			return End{Reason: ReasonCorrupt, Detail: err.Error()}, next
		}
	}
}

func endOf(err error) End {
	if errors.Is(err, ErrFull) {
		return End{Reason: ReasonFull}
	}
	return End{Reason: ReasonFailed, Detail: err.Error()}
}

// startOf describes a session at its beginning. Claim and counters are read at one
// moment of the writer, or as close to one as a busy writer allows.
func startOf(s Source, recorder string) Start {
	start := Start{Recorder: recorder, AttachedNS: time.Now().UnixNano(), Ring: ringOf(s.Config()),
		Release: s.ReleaseSeq()}
	for try := 0; ; try++ {
		start.Claim = s.ClaimSeq()
		start.Counters = countersOf(s.Producer())
		if s.ClaimSeq() == start.Claim || try == 100 {
			return start
		}
	}
}
