// Package bustap shows what flows over the bus to somebody who looks on. It reads
// with a reader of its own, which the broker forgets: nothing is published, trimmed
// or taken from others.
package bustap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"sonde/bus"
	"sonde/schema"
)

// Bounds of a tap.
const (
	maxChains  = 1 << 16     // whose end is known; beyond it, all are forgotten, and gaps before the next message unseen
	quietAfter = time.Second // then skipped lines are told without a line to tell them with
)

// Options of a tap.
type Options struct {
	Filter Filter
	Stats  bool // compute figures of vectors
	JSON   bool // one object a line
	Rate   int  // most lines shown in a second; others are counted
	From   uint64
	Only   int        // the partition that From is a position of, when it is one
	Since  time.Time  // with From 0: first what was stored at or after it
	Width  func() int // of the terminal, nil: lines are not cut
	Out    io.Writer
}

// tap follows one stream.
type tap struct {
	o       Options
	several bool                                // partitions
	ends    []map[schema.ChainKey]schema.Cursor // by partition
	meter   meter
	skipped uint64
}

// Tap shows the stream until ctx ends, which is no error. Errors: a position that
// does not exist yet, an output that cannot be written.
func Tap(ctx context.Context, b bus.Bus, o Options) error {
	t := &tap{o: o, several: b.Partitions() > 1, meter: meter{perS: float64(o.Rate)}}
	for range b.Partitions() {
		t.ends = append(t.ends, map[schema.ChainKey]schema.Cursor{})
	}
	partitions, err := t.partitions(ctx, b)
	if err != nil {
		return ended(ctx, err)
	}
	reading, stop := context.WithCancel(ctx)
	events := make(chan event)
	var readers sync.WaitGroup
	for _, i := range partitions {
		readers.Go(func() { t.read(reading, b, i, events) })
	}
	err = t.showAll(ctx, events)
	stop()
	readers.Wait()
	return errors.Join(ended(ctx, err), t.tellSkipped())
}

// partitions are those to read: all, or the one that a position belongs to.
func (t *tap) partitions(ctx context.Context, b bus.Bus) (all []int, err error) {
	if t.o.From == 0 || t.o.From == bus.FromNew {
		for i := range b.Partitions() {
			all = append(all, i)
		}
		return all, nil
	}
	info, err := b.Info(ctx, t.o.Only)
	if err != nil {
		return nil, err
	}
	if t.o.From > info.Last+1 {
		return nil, fmt.Errorf("tap the bus from position %s: stream %s ends at %d; give an earlier one, or new",
			Place{t.o.Only, t.o.From, t.several}, info.Name, info.Last)
	}
	return []int{t.o.Only}, nil
}

// ended hides the error of a context that ended: the user asked for it.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// event is what a reader of a partition has found: a message, what it missed, or why it
// cannot go on.
type event struct {
	d    bus.Delivery
	gap  *Gap
	anew bool // with gap: the partition was made anew
	err  error
}

// read reads a partition until ctx ends. Where the stream no longer has what comes
// next, it goes on behind that.
func (t *tap) read(ctx context.Context, b bus.Bus, partition int, events chan<- event) {
	o := bus.SubscribeOptions{Partition: partition, Filters: t.o.Filter.subjects(), From: t.o.From, Since: t.o.Since}
	for ctx.Err() == nil {
		sub, err := b.Subscribe(ctx, o)
		for err == nil {
			var d bus.Delivery
			if d, err = sub.Next(ctx); err == nil {
				send(ctx, events, event{d: d})
			}
		}
		if sub != nil {
			sub.Close()
		}
		var trimmed *bus.TrimmedError
		switch {
		case errors.As(err, &trimmed):
			o.From, o.Since = trimmed.First, time.Time{}
			send(ctx, events, event{gap: &Gap{Type: "gap", Place: Place{partition, trimmed.First, t.several},
				Text: fmt.Sprintf("positions %d to %d were trimmed before they were read", trimmed.Want, trimmed.First-1)}})
		case errors.Is(err, bus.ErrIncarnation):
			o.From, o.Since = 0, time.Time{}
			send(ctx, events, event{anew: true, gap: &Gap{Type: "gap", Place: Place{partition, 0, t.several},
				Text: "it was made anew: positions start over"}})
		default:
			send(ctx, events, event{err: err})
			return
		}
	}
}

func send(ctx context.Context, events chan<- event, e event) {
	select {
	case events <- e:
	case <-ctx.Done():
	}
}

// showAll shows what the readers find until ctx ends or one of them cannot go on.
func (t *tap) showAll(ctx context.Context, events <-chan event) error {
	quiet := time.NewTimer(quietAfter)
	defer quiet.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-quiet.C:
			err = t.tellSkipped()
		case e := <-events:
			switch {
			case e.err != nil:
				err = e.err
			case e.gap == nil:
				err = t.take(&e.d)
			default:
				if e.anew {
					clear(t.ends[e.gap.Partition])
				}
				err = t.show(e.gap)
			}
		}
		if err != nil {
			return err
		}
		quiet.Reset(quietAfter)
	}
}

func (t *tap) place(d *bus.Delivery) Place { return Place{d.Partition, d.Seq, t.several} }

// take shows one message, its rows, and the gap before it. Only what is shown is
// decoded, as far as the filter can do without.
func (t *tap) take(d *bus.Delivery) error {
	h, err := schema.DecodeHeader(d.Data)
	if err != nil {
		return t.show(t.undecodable(d, err))
	}
	if !t.o.Filter.wants(&h) {
		return nil
	}
	if err := t.gap(d, &h); err != nil {
		return err
	}
	if t.o.Filter.Request != "" {
		return t.takeRows(d)
	}
	if !t.meter.take(time.Now()) {
		t.skipped++
		return nil
	}
	batch, err := schema.Decode(d.Data)
	if err != nil {
		return t.write(t.undecodable(d, err))
	}
	return t.write(t.messageLine(d, batch))
}

// takeRows shows the rows of the request that the filter names.
func (t *tap) takeRows(d *bus.Delivery) error {
	batch, err := schema.Decode(d.Data)
	if err != nil {
		return t.show(t.undecodable(d, err))
	}
	for i := range batch.Len() {
		r, wanted := t.rowLine(d, batch, i, t.o.Filter.Request)
		if !wanted {
			continue
		}
		if !t.meter.take(time.Now()) {
			t.skipped++
			continue
		}
		if t.o.Stats {
			var f figures
			f.add(&batch.Header, batch, i)
			r.Stats = f.stats()
		}
		if err := t.write(r); err != nil {
			return err
		}
	}
	return nil
}

func (t *tap) undecodable(d *bus.Delivery, err error) *Note {
	return &Note{Type: "undecodable", Place: t.place(d), Subject: clip(d.Subject), Text: clip(err.Error())}
}

// gap compares the start of a message with the end of its chain as it was seen here.
func (t *tap) gap(d *bus.Delivery, h *schema.Header) error {
	key := h.Chain()
	ends := t.ends[d.Partition]
	end, known := ends[key]
	if !known && len(ends) >= maxChains/len(t.ends) {
		clear(ends)
	}
	if last := h.Last(); end.Less(last) { // a copy of an earlier message takes nothing back
		ends[key] = last
	}
	if !known || !end.Less(h.Prev) {
		return nil
	}
	chain := chainOf(h)
	return t.show(&Gap{Type: "gap", Place: t.place(d), Chain: &chain, From: end.String(), To: h.Prev.String(),
		Text: fmt.Sprintf("rows %s to %s are not in the stream, or come later", end, h.Prev)})
}

// show writes a line when the rate allows it.
func (t *tap) show(l line) error {
	if !t.meter.take(time.Now()) {
		t.skipped++
		return nil
	}
	return t.write(l)
}

func (t *tap) write(l line) error {
	l.skip(t.skipped)
	t.skipped = 0
	width := 0
	if t.o.Width != nil {
		width = t.o.Width()
	}
	return write(t.o.Out, l, t.o.JSON, width)
}

// tellSkipped says what was skipped when no line came after it.
func (t *tap) tellSkipped() error {
	if t.skipped == 0 {
		return nil
	}
	return t.write(&Note{Type: "skipped", Text: fmt.Sprintf("%d lines skipped; see more with --rate", t.skipped)})
}

// meter lets through so many lines in a second, and as many at once.
type meter struct {
	perS   float64
	tokens float64
	last   time.Time
}

func (m *meter) take(now time.Time) bool {
	if m.last.IsZero() {
		m.tokens = m.perS
	} else {
		m.tokens = min(m.perS, m.tokens+m.perS*now.Sub(m.last).Seconds())
	}
	m.last = now
	if m.tokens < 1 {
		return false
	}
	m.tokens--
	return true
}
