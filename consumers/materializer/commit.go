package materializer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"sonde/bus"
	"sonde/lakehouse/commitlog"
	"sonde/lakehouse/table"
)

// commit makes what is open visible, or finds out that another writer claimed the
// lake. It tries until it succeeds, is fenced, or ctx ends.
func (m *Materializer) commit(ctx context.Context) error {
	if !m.pending.moved {
		m.pending.started = time.Now()
		if m.writer.Fenced() {
			return ErrFenced
		}
		return nil
	}
	start := time.Now()
	var told time.Time
	for {
		err := m.tryCommit()
		if err == nil {
			m.trouble.Store(nil)
			m.metrics.commits.Observe(time.Since(start).Seconds())
			return nil
		}
		if errors.Is(err, ErrFenced) || m.writer.Fenced() {
			return ErrFenced
		}
		m.metrics.failures.Inc()
		what := "the lake cannot be written: " + err.Error()
		m.trouble.Store(&what)
		if told.IsZero() || time.Since(told) > repeatTelling {
			told = time.Now()
			m.log.Error("commit failed; it is tried again, and nothing is read meanwhile", "error", err)
		}
		m.measureLag(ctx)
		if stop := m.o.retry(ctx); stop != nil {
			return fmt.Errorf("%w; %d messages that were not committed stay on the bus", err, m.pending.messages)
		}
	}
}

// repeatTelling is how often the log says again that commits fail.
const repeatTelling = time.Minute

// Trouble says why commits fail, "" when they do not. It may be called from any
// goroutine. Nobody needs to do more than mend the disk.
func (m *Materializer) Trouble() string {
	if what := m.trouble.Load(); what != nil {
		return *what
	}
	return ""
}

// lastCommit is the commit at the end, which is tried once.
func (m *Materializer) lastCommit() error {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	return m.commit(ended)
}

// tryCommit writes the files that are not written yet and then the entry of the
// log. Another attempt repeats the same entry.
func (m *Materializer) tryCommit() error {
	p := m.pending
	for _, name := range table.Names {
		if _, done := p.files[name]; done || len(p.refs[name]) == 0 {
			continue
		}
		d := commitlog.DataFile{Table: string(name), Incarnation: p.source.Incarnation, First: p.first,
			Last: p.source.Next - 1, Rows: int64(len(p.refs[name])), Epochs: p.epochsOf(name)}
		f, err := m.writer.WriteFile(d, func(w io.Writer) error { return table.Write(w, m.keyValues(d), p.refs[name]) })
		if err != nil {
			return err
		}
		p.files[name] = f
	}
	if p.prepared == nil {
		p.prepared = m.prepare()
	}
	if err := m.writer.Commit(*p.prepared); err != nil {
		return err
	}
	m.finish()
	return nil
}

// fileFormat is the version of the format of data files.
const fileFormat = "1"

// keyValues are the key-value metadata of a file.
func (m *Materializer) keyValues(d commitlog.DataFile) []table.KeyValue {
	return []table.KeyValue{{Key: "sonde.format", Value: fileFormat},
		{Key: "sonde.table", Value: d.Table}, {Key: "sonde.stream", Value: m.pending.source.Stream},
		{Key: "sonde.incarnation", Value: d.Incarnation},
		{Key: "sonde.first", Value: fmt.Sprint(d.First)}, {Key: "sonde.last", Value: fmt.Sprint(d.Last)},
		{Key: "sonde.claim", Value: fmt.Sprint(m.writer.Claim())}}
}

// prepare makes the entry. Files and chain states are in the table from the same
// moment on.
func (m *Materializer) prepare() *commitlog.Commit {
	p := m.pending
	for _, id := range p.closed {
		m.chains.epoch(id).closed = true
	}
	states, shrunk := m.chains.changed()
	m.metrics.shrunk.Add(float64(shrunk))
	p.forget = m.chains.forgettable()
	c := &commitlog.Commit{Source: p.source, Chains: states, Closed: epochTexts(p.closed),
		Forgotten: epochTexts(p.forget), Totals: p.totals, DeadLetters: p.letter}
	for _, name := range table.Names {
		if f, ok := p.files[name]; ok {
			c.Files = append(c.Files, f)
		}
	}
	return c
}

// finish starts over after a commit.
func (m *Materializer) finish() {
	p := m.pending
	for name, f := range p.files {
		m.metrics.stored.WithLabelValues(string(name)).Add(float64(f.Rows))
		m.metrics.files.WithLabelValues(string(name)).Inc()
		m.metrics.bytes.WithLabelValues(string(name)).Add(float64(f.Bytes))
	}
	m.chains.committed()
	m.chains.forget(p.forget)
	m.lookup.committed()
	m.metrics.chains.Set(float64(m.chains.count))
	m.metrics.version.Set(float64(m.lake.Version()))
	m.committed.Store(p.source.Next)
	m.pending = newPending(p.source)
	m.oldest.Store(0)
}

// trim lets the stream forget what the table has, but for about RetainBytes. The
// bus knows bytes only of the whole stream, so positions are taken to be of equal
// size; the next commits correct the error. It never touches what is not committed.
func (m *Materializer) trim(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	info, err := m.measureLag(ctx)
	if err != nil {
		return // the bus says so itself, and the next commit asks again
	}
	if info.Incarnation != m.pending.source.Incarnation || info.Bytes <= m.o.RetainBytes || info.Messages == 0 {
		return
	}
	excess := float64(info.Bytes-m.o.RetainBytes) / float64(info.Bytes)
	below := min(info.First+uint64(excess*float64(info.Last+1-info.First)), m.committed.Load())
	if below <= info.First {
		return
	}
	if err := m.o.Bus.Trim(ctx, 0, below); err != nil && ctx.Err() == nil {
		m.log.Warn("trim the stream", "below", below, "error", err)
	}
}

// measureLag asks how far the stream is ahead of the table.
func (m *Materializer) measureLag(ctx context.Context) (bus.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, busTimeout)
	defer cancel()
	info, err := m.o.Bus.Info(ctx, 0)
	if err == nil {
		m.metrics.lag.Set(float64(info.Last + 1 - min(info.Last+1, m.committed.Load())))
	}
	return info, err
}
