package detector

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"sonde/bus"
)

// part is a partition that this process judges. Only the loop uses it.
type part struct {
	number  int
	epoch   uint64    // of the chain of its detections: one chain would cross partitions
	catchUp *catchUp  // nil once caught up
	read    time.Time // when its last message came
	at      uint64    // position of that message
}

// newPart is a partition whose last message is at a position; 0: there is none yet.
func (r *Detector) newPart(number int, last uint64) *part {
	var epoch [8]byte
	_, _ = rand.Read(epoch[:]) // never fails: it ends the program instead
	p := &part{number: number, epoch: binary.LittleEndian.Uint64(epoch[:]), read: r.now()}
	if last > 0 {
		p.catchUp = newCatchUp(last)
	}
	return p
}

// giving is a partition that the loop has to forget.
type giving struct {
	part *part
	done chan struct{} // closed once it has
}

// hold reads a partition until ctx ends, from the last minutes on, so that the
// requests that are open now are known from their opening on. It is called in a
// goroutine for each; all of them feed the one loop.
func (r *Detector) hold(ctx context.Context, partition int, holds func(token uint64)) error {
	info, err := r.o.Bus.Info(ctx, partition)
	if err != nil {
		return endOf(ctx, fmt.Errorf("start the detector: %w", err))
	}
	p := r.newPart(partition, info.Last)
	select {
	case r.taken <- p:
	case <-ctx.Done():
		return nil
	}
	holds(0) // two that judge the same for a moment do no harm: nobody is fenced
	err = r.read(ctx, partition)
	given := giving{p, make(chan struct{})}
	r.given <- given
	<-given.done
	return endOf(ctx, err)
}

// read hands over messages until ctx ends or the bus is closed. What was trimmed
// away, or a stream made anew, costs coverage and is counted, and reading goes on.
func (r *Detector) read(ctx context.Context, partition int) error {
	o := bus.SubscribeOptions{Partition: partition, Filters: r.Filters(), Since: time.Now().Add(-r.o.Lookback)}
	for {
		sub, err := r.o.Bus.Subscribe(ctx, o)
		if err != nil {
			return fmt.Errorf("read the bus: %w", err)
		}
		err = r.forward(ctx, sub)
		sub.Close()
		var trimmed *bus.TrimmedError
		switch {
		case errors.As(err, &trimmed):
			r.metrics.stream.WithLabelValues("trimmed").Inc()
			r.o.Logger.Warn("detector is too slow: messages were trimmed away unread", "partition", partition, "from",
				trimmed.Want, "to", trimmed.First)
			o.From = trimmed.First
		case errors.Is(err, bus.ErrIncarnation):
			r.metrics.stream.WithLabelValues("recreated").Inc()
			r.o.Logger.Warn("the stream was made anew: the detector reads it from its start", "partition", partition)
			o.From, o.Since = 0, time.Time{}
		default:
			return fmt.Errorf("read the bus: %w", err)
		}
	}
}

func (r *Detector) forward(ctx context.Context, sub bus.Subscription) error {
	for {
		d, err := sub.Next(ctx)
		if err != nil {
			return err
		}
		select {
		case r.deliveries <- d:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// give forgets all that is known of a partition: whoever takes it reads the last
// minutes again.
func (r *Detector) give(g giving, live *live) {
	if r.parts[g.part.number] == g.part {
		delete(r.parts, g.part.number)
	}
	r.chains.removeIf(func(c *chain) bool { return c.part == g.part })
	for _, samples := range []*lru[sampleKey, *sample]{r.open, r.ended} {
		n := samples.removeIf(func(s *sample) bool { return s.part == g.part })
		r.metrics.evictions.WithLabelValues("moved").Add(float64(n))
	}
	r.metrics.samples.Set(float64(r.open.len() + r.ended.len()))
	live.drop(g.part.number)
	close(g.done)
}
