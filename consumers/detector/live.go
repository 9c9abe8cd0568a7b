package detector

import (
	"context"
	"slices"
	"sync/atomic"

	"sonde/bus"
	"sonde/schema"
)

// maxHeld bounds the live messages that wait until they continue what was read.
// Beyond it the oldest is forgotten: the stream brings it again.
const maxHeld = 512

// live takes messages while the stream still stores them, which an fsync before
// each acknowledgement makes many milliseconds earlier. A live message is judged
// only when it continues its chain without a gap; everything else waits for the
// stream, which brings all of them in order. What was judged live and comes again
// lies below the watermark of its chain.
type live struct {
	heard  chan bus.Delivery
	held   []bus.Delivery // oldest first
	missed atomic.Uint64  // did not fit into heard
}

// listen starts to hear. stop must be called before the bus is closed.
func (r *Detector) listen() (l *live, stop func(), err error) {
	l = &live{heard: make(chan bus.Delivery, maxHeld)}
	stop, err = r.o.Bus.Hear(r.Filters(), func(subject string, data []byte) {
		select {
		case l.heard <- bus.Delivery{Subject: subject, Data: data}:
		default:
			l.missed.Add(1)
		}
	})
	return l, stop, err
}

// hear takes one live message: now, or when what stands before it was read.
func (r *Detector) hear(ctx context.Context, l *live, d bus.Delivery) {
	d.Partition = bus.PartitionOf(d.Subject, r.o.Bus.Partitions())
	p := r.parts[d.Partition]
	if p == nil {
		return // another process judges it
	}
	if p.catchUp == nil {
		switch b, err := schema.Decode(d.Data); {
		case err != nil:
			return // The stream brings it again, and counts it.
		case r.continues(b):
			r.take(ctx, p, d.Subject, b)
			return
		}
	}
	if len(l.held) >= maxHeld {
		l.held = l.held[1:]
	}
	l.held = append(l.held, d)
}

// continues reports whether a live message may be judged now: what stands before
// it in its chain was read, and so were the openings of its requests.
func (r *Detector) continues(b *schema.Batch) bool {
	h, now := &b.Header, r.now()
	switch h.Kind {
	case schema.KindRequests:
		return true // Events stand for themselves.
	case schema.KindVectors:
		c, known := r.chains.get(h.Chain(), now)
		if !known && h.Prev != (schema.Cursor{}) || known && c.watermark.Less(h.Prev) {
			return false
		}
		for i := range b.Len() {
			s := r.lookup(sampleKey{tenant: h.Tenant, epoch: h.Epoch, number: b.Vector(i).Number}, now)
			if s == nil || !s.opened {
				return false
			}
		}
		return true
	}
	return false
}

// resume judges held messages that continue what the stream has brought by now,
// and forgets those that it brought itself.
func (r *Detector) resume(ctx context.Context, l *live) {
	if len(l.held) == 0 {
		return
	}
	kept := l.held[:0]
	for _, d := range l.held {
		p := r.parts[d.Partition]
		if p.catchUp != nil {
			kept = append(kept, d)
			continue
		}
		b, err := schema.Decode(d.Data)
		if err != nil {
			continue
		}
		if r.continues(b) {
			r.take(ctx, p, d.Subject, b)
		} else if b.Header.Kind == schema.KindVectors {
			kept = append(kept, d)
		}
	}
	clear(l.held[len(kept):])
	l.held = kept
}

// drop forgets held messages of a partition.
func (l *live) drop(partition int) {
	l.held = slices.DeleteFunc(l.held, func(d bus.Delivery) bool { return d.Partition == partition })
}
