// Package materializer turns the stream into the lake: it reads messages from the
// position in the table's log, drops rows that the table has, and commits files,
// position and chain states at once. Nothing is kept anywhere else, so a crash at
// any moment repeats no row and loses none.
package materializer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/bus"
	"sonde/lakehouse/commitlog"
	"sonde/lakehouse/table"
)

// ErrFenced: another materializer claimed the lake. Run returns it.
var ErrFenced = commitlog.ErrFenced

// Options configure a Materializer. Bus and Lake are needed; other zero values mean
// the defaults of CONFIG.md.
type Options struct {
	Bus                bus.Bus
	Lake               string        // folder
	CommitInterval     time.Duration // longest time between commits
	CommitBytes        int64         // commit earlier when messages of so many bytes are open
	RetainBytes        uint64        // about so much of the stream is kept behind the committed position
	DeadLetterDir      string        // "": messages that cannot be decoded are only counted
	DeadLetterMaxBytes int64
	Logger             *slog.Logger
	Registerer         prometheus.Registerer

	now   func() time.Time                // tests
	check func(step, path string) error   // tests: see commitlog.WriterOptions
	retry func(ctx context.Context) error // tests: the pause between two attempts to commit
}

// Bounds of what is open between two commits, beside CommitBytes. Each of them
// makes a commit.
const (
	maxPendingRows     = 1 << 20
	maxPendingMessages = 1 << 15
)

// busTimeout bounds questions to the bus that the next commit can ask again.
const busTimeout = 5 * time.Second

func (o *Options) setDefaults() error {
	if o.Bus == nil || o.Lake == "" {
		return errors.New("start the materializer: it needs a bus and the folder of a lake")
	}
	setDefault(&o.CommitInterval, time.Second)
	setDefault(&o.CommitBytes, 64<<20)
	setDefault(&o.DeadLetterMaxBytes, 256<<20)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.retry == nil {
		o.retry = func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
				return nil
			}
		}
	}
	return nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Materializer writes one lake. Run it once.
type Materializer struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	dead    *deadLetters

	lake    *commitlog.Log
	writer  *commitlog.Writer
	chains  *chains
	lookup  *lookup
	pending *pending
	sub     bus.Subscription

	committed atomic.Uint64          // position; Committed reads it
	oldest    atomic.Int64           // when the oldest open message was stored, ns since 1970, or 0; oldestAge reads it
	trouble   atomic.Pointer[string] // why commits fail, nil: they do not; Trouble reads it
	announced string                 // incarnation whose making was logged
}

// New prepares a materializer; the lake is claimed by Run.
func New(o Options) (*Materializer, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	dead, err := openDeadLetters(o.DeadLetterDir, o.DeadLetterMaxBytes)
	if err != nil {
		return nil, err
	}
	m := &Materializer{o: o, log: o.Logger, dead: dead}
	m.metrics = newMetrics(o.Registerer, m.oldestAge)
	return m, nil
}

// Committed is the position in the stream up to which the lake holds everything:
// that of the first message that it does not hold. 0 before the lake was claimed.
func (m *Materializer) Committed() uint64 { return m.committed.Load() }

// errRestart: positions start over, and so does everything but the table.
var errRestart = errors.New("read the stream from its start")

// Run reads and commits until ctx ends, then commits what is open and returns nil.
// It returns ErrFenced when another materializer claimed the lake, and other errors
// when the lake cannot be used. Failures to write, of a full disk for example, are
// tried again: nothing more is read meanwhile.
func (m *Materializer) Run(ctx context.Context) error {
	for {
		err := m.session(ctx)
		if m.sub != nil {
			m.sub.Close()
			m.sub = nil
		}
		switch {
		case errors.Is(err, errRestart):
			if m.o.retry(ctx) != nil {
				return nil
			}
			continue
		case errors.Is(err, ErrFenced):
			return fmt.Errorf("materialize into %s: %w: two materializers must not share a lake", m.o.Lake, err)
		case err != nil:
			return fmt.Errorf("materialize into %s: %w", m.o.Lake, err)
		}
		return nil
	}
}

// session claims the lake and follows the stream as long as its positions last.
func (m *Materializer) session(ctx context.Context) error {
	if err := m.open(ctx); err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil
		}
		return err
	}
	for {
		err := m.follow(ctx)
		var trimmed *bus.TrimmedError
		switch {
		case errors.As(err, &trimmed):
			if err := m.skipTo(ctx, trimmed.First); err != nil {
				return err
			}
			continue
		case errors.Is(err, bus.ErrIncarnation):
			if err := m.commit(ctx); err != nil {
				return err
			}
			return errRestart
		case ctx.Err() != nil && errors.Is(err, ctx.Err()):
			return m.lastCommit()
		}
		return err
	}
}

// open claims the lake and subscribes at its position.
func (m *Materializer) open(ctx context.Context) error {
	names := make([]string, len(table.Names))
	for i, n := range table.Names {
		names[i] = string(n)
	}
	l, err := commitlog.OpenLog(m.o.Lake, commitlog.Options{Tables: names, Logger: m.log, Check: m.o.check})
	if err != nil {
		return err
	}
	w, err := l.Claim(ctx, 0)
	if err != nil {
		return err
	}
	swept, err := l.Sweep()
	if err != nil {
		return err
	}
	m.lake, m.writer, m.lookup = l, w, newLookup(m.o.Lake, l)
	m.metrics.swept.Add(float64(swept))
	m.metrics.version.Set(float64(l.Version()))
	if m.chains, err = newChains(w.Start(), m.lookup.inTable, m.o.now); err != nil {
		return err
	}
	source, err := m.start(ctx, w.Start().Source)
	if err != nil {
		return err
	}
	m.pending = newPending(source)
	m.committed.Store(source.Next)
	return m.subscribe(ctx)
}

// start decides where to read on. When the stream is another one than that of the
// table, or ends before the table's position, it is read from its start: the
// chains still know which rows the table has.
func (m *Materializer) start(ctx context.Context, s commitlog.Source) (commitlog.Source, error) {
	info, err := m.o.Bus.Info(ctx, 0)
	if err != nil {
		return s, err
	}
	here := commitlog.Source{Stream: info.Name, Incarnation: info.Incarnation, Next: info.First}
	switch {
	case s.Incarnation == "":
		return here, nil
	case s.Incarnation == info.Incarnation && s.Next <= info.Last+1:
		s.Stream = info.Name
		return s, nil
	}
	if m.announced != info.Incarnation {
		m.announced = info.Incarnation
		m.metrics.recreated.Inc()
		m.log.Warn("the stream is not the one that the table was made from, or it was cut: reading it from its start; "+
			"rows that the table has are dropped", "stream", info.Name, "table_incarnation", s.Incarnation,
			"incarnation", info.Incarnation, "table_position", s.Next, "last", info.Last)
	}
	return here, nil
}

func (m *Materializer) subscribe(ctx context.Context) error {
	if m.sub != nil {
		m.sub.Close()
		m.sub = nil
	}
	sub, err := m.o.Bus.Subscribe(ctx, bus.SubscribeOptions{From: m.pending.source.Next,
		Incarnation: m.pending.source.Incarnation})
	if err != nil {
		return err
	}
	m.sub = sub
	return nil
}

// skipTo goes on behind messages that were trimmed away before they were read.
func (m *Materializer) skipTo(ctx context.Context, first uint64) error {
	p := m.pending
	lost := first - min(first, p.source.Next)
	m.metrics.trimmed.Add(float64(lost))
	m.log.Error("messages were trimmed from the stream before the table had them: their rows are lost", "first",
		p.source.Next, "messages", lost)
	p.totals.Trimmed += lost
	p.source.Next, p.moved = first, true
	return m.subscribe(ctx)
}

// follow reads and commits until an error, of ctx for example.
func (m *Materializer) follow(ctx context.Context) error {
	for {
		next, cancel := context.WithDeadline(ctx, m.pending.due(m.o.CommitInterval))
		d, err := m.sub.Next(next)
		cancel()
		switch {
		case err == nil:
			if err := m.take(d); err != nil {
				return err
			}
			if m.pending.bytes < m.o.CommitBytes && m.pending.rows < maxPendingRows &&
				m.pending.messages < maxPendingMessages && time.Now().Before(m.pending.due(m.o.CommitInterval)) {
				continue
			}
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, context.DeadlineExceeded):
			return err
		}
		if err := m.commit(ctx); err != nil {
			return err
		}
		m.trim(ctx)
	}
}
