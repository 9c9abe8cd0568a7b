// Package bustap shows what flows over the bus to somebody who looks on. It reads
// with a reader of its own, which the broker forgets: nothing is published, trimmed
// or taken from others.
package bustap

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	Width  func() int // of the terminal, nil: lines are not cut
	Out    io.Writer
}

// tap follows one stream.
type tap struct {
	o       Options
	ends    map[schema.ChainKey]schema.Cursor
	meter   meter
	skipped uint64
}

// Tap shows the stream until ctx ends, which is no error. Errors: a position that
// does not exist yet, an output that cannot be written.
func Tap(ctx context.Context, b bus.Bus, o Options) error {
	t := &tap{o: o, ends: map[schema.ChainKey]schema.Cursor{}, meter: meter{perS: float64(o.Rate)}}
	if o.From != 0 && o.From != bus.FromNew {
		info, err := b.Info(ctx, 0)
		if err != nil {
			return ended(ctx, err)
		}
		if o.From > info.Last+1 {
			return fmt.Errorf("tap the bus from position %d: stream %s ends at %d; give an earlier one, or new", o.From,
				info.Name, info.Last)
		}
	}
	for from := o.From; ; {
		next, err := t.follow(ctx, b, from)
		if err != nil || ctx.Err() != nil {
			return errors.Join(ended(ctx, err), t.tellSkipped())
		}
		from = next
	}
}

// ended hides the error of a context that ended: the user asked for it.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// follow reads from a position until the stream no longer has what comes next, and
// says where to go on.
func (t *tap) follow(ctx context.Context, b bus.Bus, from uint64) (next uint64, err error) {
	sub, err := b.Subscribe(ctx, bus.SubscribeOptions{Filters: t.o.Filter.subjects(), From: from})
	if err != nil {
		return 0, err
	}
	defer sub.Close()
	for {
		wait, cancel := context.WithTimeout(ctx, quietAfter)
		d, err := sub.Next(wait)
		cancel()
		var trimmed *bus.TrimmedError
		switch {
		case err == nil:
			if err := t.take(&d); err != nil {
				return 0, err
			}
		case errors.As(err, &trimmed):
			text := fmt.Sprintf("positions %d to %d were trimmed before they were read", trimmed.Want, trimmed.First-1)
			return trimmed.First, t.show(&Gap{Type: "gap", Position: trimmed.First, Text: text})
		case errors.Is(err, bus.ErrIncarnation):
			clear(t.ends)
			return 0, t.show(&Gap{Type: "gap", Text: "it was made anew: positions start over"})
		case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			if err := t.tellSkipped(); err != nil {
				return 0, err
			}
		default:
			return 0, err
		}
	}
}

// take shows one message, its rows, and the gap before it. Only what is shown is
// decoded, as far as the filter can do without.
func (t *tap) take(d *bus.Delivery) error {
	h, err := schema.DecodeHeader(d.Data)
	if err != nil {
		return t.show(undecodable(d, err))
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
		return t.write(undecodable(d, err))
	}
	return t.write(messageLine(d, batch, t.o.Stats))
}

// takeRows shows the rows of the request that the filter names.
func (t *tap) takeRows(d *bus.Delivery) error {
	batch, err := schema.Decode(d.Data)
	if err != nil {
		return t.show(undecodable(d, err))
	}
	for i := range batch.Len() {
		r, wanted := rowLine(d, batch, i, t.o.Filter.Request)
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

func undecodable(d *bus.Delivery, err error) *Note {
	return &Note{Type: "undecodable", Position: d.Seq, Subject: clip(d.Subject), Text: clip(err.Error())}
}

// gap compares the start of a message with the end of its chain as it was seen here.
func (t *tap) gap(d *bus.Delivery, h *schema.Header) error {
	key := h.Chain()
	end, known := t.ends[key]
	if !known && len(t.ends) >= maxChains {
		clear(t.ends)
	}
	if last := h.Last(); end.Less(last) { // a copy of an earlier message takes nothing back
		t.ends[key] = last
	}
	if !known || !end.Less(h.Prev) {
		return nil
	}
	chain := chainOf(h)
	return t.show(&Gap{Type: "gap", Position: d.Seq, Chain: &chain, From: end.String(), To: h.Prev.String(),
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
