package materializer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"sonde/bus"
	"sonde/lakehouse/commitlog"
	"sonde/lakehouse/table"
)

// commit makes what is open visible, or finds out that another writer claimed the
// lake. It tries until it succeeds, is fenced, or ctx ends.
func (p *part) commit(ctx context.Context) error {
	if !p.pending.moved {
		p.pending.started = time.Now()
		if p.writer.Fenced() {
			return commitlog.ErrFenced
		}
		return nil
	}
	start := time.Now()
	var told time.Time
	for {
		err := p.tryCommit()
		if err == nil {
			p.trouble.Store(nil)
			p.metrics.commits.Observe(time.Since(start).Seconds())
			return nil
		}
		if errors.Is(err, commitlog.ErrFenced) || p.writer.Fenced() {
			return commitlog.ErrFenced
		}
		p.failed(err)
		if told.IsZero() || time.Since(told) > repeatTelling {
			told = time.Now()
			p.log.Error("commit failed; it is tried again, and nothing is read meanwhile", "error", err)
		}
		p.measureLag(ctx)
		if stop := p.o.retry(ctx); stop != nil {
			return fmt.Errorf("%w; %d messages that were not committed stay on the bus", err, p.pending.messages)
		}
	}
}

// repeatTelling is how often the log says again that commits fail.
const repeatTelling = time.Minute

// failed makes a failure to write visible.
func (p *part) failed(err error) {
	p.metrics.failures.Inc()
	what := "the lake cannot be written: " + err.Error()
	p.trouble.Store(&what)
}

// lastCommit is the commit at the end, which is tried once.
func (p *part) lastCommit() error {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	return p.commit(ended)
}

// tryCommit writes the files that are not written yet and then the entry of the
// log. Another attempt repeats the same entry.
func (p *part) tryCommit() error {
	open := p.pending
	for _, name := range table.Names {
		if _, done := open.files[name]; done || len(open.refs[name]) == 0 {
			continue
		}
		d := commitlog.DataFile{Table: string(name), Incarnation: open.source.Incarnation, First: open.first,
			Last: open.source.Next - 1, Rows: int64(len(open.refs[name])), Epochs: open.epochsOf(name)}
		f, err := p.writer.WriteFile(d, func(w io.Writer) error { return table.Write(w, p.keyValues(d), open.refs[name]) })
		if err != nil {
			return err
		}
		open.files[name] = f
	}
	if open.prepared == nil {
		open.prepared = p.prepare()
	}
	if err := p.writer.Commit(*open.prepared); err != nil {
		return err
	}
	p.finish()
	return nil
}

// fileFormat is the version of the format of data files.
const fileFormat = "1"

// keyValues are the key-value metadata of a file.
func (p *part) keyValues(d commitlog.DataFile) []table.KeyValue {
	return []table.KeyValue{{Key: "sonde.format", Value: fileFormat},
		{Key: "sonde.table", Value: d.Table}, {Key: "sonde.stream", Value: p.pending.source.Stream},
		{Key: "sonde.incarnation", Value: d.Incarnation}, {Key: "sonde.partition", Value: strconv.Itoa(p.partition)},
		{Key: "sonde.first", Value: fmt.Sprint(d.First)}, {Key: "sonde.last", Value: fmt.Sprint(d.Last)},
		{Key: "sonde.claim", Value: fmt.Sprint(p.writer.Claim())}}
}

// prepare makes the entry. Files and chain states are in the table from the same
// moment on.
func (p *part) prepare() *commitlog.Commit {
	open := p.pending
	for _, id := range open.closed {
		p.chains.epoch(id).closed = true
	}
	states, shrunk := p.chains.changed()
	p.metrics.shrunk.Add(float64(shrunk))
	open.forget = p.chains.forgettable()
	c := &commitlog.Commit{Source: open.source, Chains: states, Closed: epochTexts(open.closed),
		Forgotten: epochTexts(open.forget), Totals: open.totals, DeadLetters: open.letter}
	for _, name := range table.Names {
		if f, ok := open.files[name]; ok {
			c.Files = append(c.Files, f)
		}
	}
	return c
}

// finish starts over after a commit.
func (p *part) finish() {
	open := p.pending
	for name, f := range open.files {
		p.metrics.stored.WithLabelValues(string(name)).Add(float64(f.Rows))
		p.metrics.files.WithLabelValues(string(name)).Inc()
		p.metrics.bytes.WithLabelValues(string(name)).Add(float64(f.Bytes))
	}
	for _, t := range open.taken {
		p.book.Add(t.of, "stored", t.rows)
	}
	p.chains.committed()
	p.chains.forget(open.forget)
	p.lookup.committed()
	p.chainsHeld.Store(int64(p.chains.count))
	p.metrics.version.Set(float64(p.lake.Load().Version()))
	p.pending = newPending(open.source)
	p.noteCommitted()
	p.oldest.Store(0)
}

// trim lets the partition forget what the table has, but for about its share of
// RetainBytes. The bus knows bytes only of the whole partition, so positions are taken
// to be of equal size; the next commits correct the error. It never touches what is not
// committed, here or in another lake whose materializer runs.
func (p *part) trim(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	info, err := p.measureLag(ctx)
	if err != nil {
		return // the bus says so itself, and the next commit asks again
	}
	retain := p.o.RetainBytes / uint64(p.o.Bus.Partitions())
	if info.Incarnation != p.pending.source.Incarnation || info.Bytes <= retain || info.Messages == 0 {
		return
	}
	excess := float64(info.Bytes-retain) / float64(info.Bytes)
	below := min(info.First+uint64(excess*float64(info.Last+1-info.First)), p.committed.Load().Next)
	if slowest, known := p.member.Load().Slowest(p.partition); known {
		below = min(below, slowest)
	}
	if below <= info.First {
		return
	}
	if err := p.o.Bus.Trim(ctx, p.partition, below); err != nil && ctx.Err() == nil {
		p.log.Warn("trim the stream", "below", below, "error", err)
	}
}

// measureLag asks how far the partition is ahead of the table.
func (p *part) measureLag(ctx context.Context) (bus.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	info, err := p.o.Bus.Info(ctx, p.partition)
	if err == nil {
		lag := p.metrics.lag.WithLabelValues(strconv.Itoa(p.partition))
		lag.Set(float64(info.Last + 1 - min(info.Last+1, p.committed.Load().Next)))
	}
	return info, err
}
