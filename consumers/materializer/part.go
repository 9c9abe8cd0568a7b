package materializer

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"sonde/bus"
	"sonde/lakehouse/commitlog"
)

// part is one partition of the stream at work, in a goroutine of its own.
type part struct {
	*Materializer
	log       *slog.Logger
	partition int

	writer  *commitlog.Writer
	chains  *chains
	lookup  *lookup
	pending *pending
	sub     bus.Subscription

	committed  atomic.Pointer[commitlog.Source] // nil before the first claim; Committed reads it
	oldest     atomic.Int64                     // when the oldest open message was stored, ns since 1970; oldestAge
	chainsHeld atomic.Int64                     // chainCount reads it
	trouble    atomic.Pointer[string]           // why commits fail, nil: they do not; Trouble reads it
	announced  string                           // incarnation whose making was logged
}

func (m *Materializer) newPart(partition int) *part {
	p := &part{Materializer: m, log: m.log, partition: partition}
	if m.o.Bus.Partitions() > 1 {
		p.log = m.log.With("partition", partition)
	}
	return p
}

// errRestart: positions start over, and so does everything but the table.
var errRestart = errors.New("read the partition from its start")

// run reads and commits until ctx ends, and then commits what is open. It returns
// commitlog.ErrFenced when another materializer claimed the partition.
func (p *part) run(ctx context.Context, holds func(token uint64)) error {
	for {
		err := p.session(ctx, holds)
		if p.sub != nil {
			p.sub.Close()
			p.sub = nil
		}
		if !errors.Is(err, errRestart) {
			return err
		}
		if p.o.retry(ctx) != nil {
			return nil
		}
	}
}

// session claims the partition and follows it as long as its positions last.
func (p *part) session(ctx context.Context, holds func(token uint64)) error {
	if err := p.open(ctx, holds); err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil
		}
		return err
	}
	for {
		err := p.follow(ctx)
		var trimmed *bus.TrimmedError
		switch {
		case errors.As(err, &trimmed):
			if err := p.skipTo(ctx, trimmed.First); err != nil {
				return err
			}
			continue
		case errors.Is(err, bus.ErrIncarnation):
			if err := p.commit(ctx); err != nil {
				return err
			}
			return errRestart
		case ctx.Err() != nil && errors.Is(err, ctx.Err()):
			return p.lastCommit()
		}
		return err
	}
}

// open claims the partition and subscribes at its position. The bus is asked first:
// who cannot reach it takes nothing away from others.
func (p *part) open(ctx context.Context, holds func(token uint64)) error {
	info, err := p.o.Bus.Info(ctx, p.partition)
	if err != nil {
		return err
	}
	if err := p.claim(ctx); err != nil {
		return err
	}
	holds(p.writer.Claim())
	p.sweep()
	lake := p.lake.Load()
	p.lookup = newLookup(p.o.Lake, lake)
	p.metrics.version.Set(float64(lake.Version()))
	before := p.writer.Start()
	if p.chains, err = newChains(before, p.o.Bus.Partitions(), p.o.now); err != nil {
		return err
	}
	if err := p.chains.divide(lake.Divided(p.partition)); err != nil {
		return err
	}
	p.chains.inTable = p.lookup.inTable
	p.chains.elsewhere = func(epoch uint64) bool { return lake.KnownElsewhere(epochText(epoch), p.partition) }
	p.pending = newPending(p.start(info, before.Source))
	p.noteCommitted()
	return p.subscribe(ctx)
}

// claim claims the partition. The first claim of a process fails when the lake cannot
// be used; later ones are tried again, as commits are.
func (p *part) claim(ctx context.Context) error {
	if p.partition == 0 && p.first != nil { // used once: only the part of partition 0 does
		p.writer, p.first = p.first, nil
		if !p.writer.Fenced() {
			return nil
		}
	}
	for {
		w, err := p.lake.Load().Claim(ctx, p.partition)
		if err == nil {
			p.writer = w
			p.trouble.Store(nil)
			return nil
		}
		if p.sweeps.claims.Load() == 0 || ctx.Err() != nil {
			return err
		}
		p.failed(err)
		if stop := p.o.retry(ctx); stop != nil {
			return stop
		}
	}
}

// start decides where to read on. When the partition is another one than that of
// the table, or ends before the table's position, it is read from its start: the
// chains still know which rows the table has.
func (p *part) start(info bus.StreamInfo, s commitlog.Source) commitlog.Source {
	here := commitlog.Source{Stream: info.Name, Incarnation: info.Incarnation, Next: info.First}
	switch {
	case s.Incarnation == "":
		return here
	case s.Incarnation == info.Incarnation && s.Next <= info.Last+1:
		s.Stream = info.Name
		return s
	}
	if p.announced != info.Incarnation {
		p.announced = info.Incarnation
		p.metrics.recreated.Inc()
		p.log.Warn("the stream is not the one that the table was made from, or it was cut: reading it from its start; "+
			"rows that the table has are dropped", "stream", info.Name, "table_incarnation", s.Incarnation,
			"incarnation", info.Incarnation, "table_position", s.Next, "last", info.Last)
	}
	return here
}

func (p *part) subscribe(ctx context.Context) error {
	if p.sub != nil {
		p.sub.Close()
		p.sub = nil
	}
	sub, err := p.o.Bus.Subscribe(ctx, bus.SubscribeOptions{Partition: p.partition, From: p.pending.source.Next,
		Incarnation: p.pending.source.Incarnation})
	if err != nil {
		return err
	}
	p.sub = sub
	return nil
}

// skipTo goes on behind messages that were trimmed away before they were read.
func (p *part) skipTo(ctx context.Context, first uint64) error {
	open := p.pending
	lost := first - min(first, open.source.Next)
	p.metrics.trimmed.Add(float64(lost))
	p.log.Error("messages were trimmed from the stream before the table had them: their rows are lost", "first",
		open.source.Next, "messages", lost)
	open.totals.Trimmed += lost
	open.source.Next, open.moved = first, true
	return p.subscribe(ctx)
}

// follow reads and commits until an error, of ctx for example.
func (p *part) follow(ctx context.Context) error {
	for {
		next, cancel := context.WithDeadline(ctx, p.pending.due(p.o.CommitInterval))
		d, err := p.sub.Next(next)
		cancel()
		switch {
		case err == nil:
			if err := p.take(d); err != nil {
				return err
			}
			if !p.full() && time.Now().Before(p.pending.due(p.o.CommitInterval)) {
				continue
			}
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.Is(err, context.DeadlineExceeded):
			return err
		}
		if err := p.commit(ctx); err != nil {
			return err
		}
		p.trim(ctx)
	}
}

// noteCommitted tells others how far the table is.
func (p *part) noteCommitted() {
	at := p.pending.source
	p.committed.Store(&at)
}

// full reports whether this partition has its share of what may be open.
func (p *part) full() bool {
	return p.pending.bytes >= p.share(p.o.CommitBytes) || p.pending.rows >= int(p.share(maxPendingRows)) ||
		p.pending.messages >= int(p.share(maxPendingMessages))
}
