package bustest

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"sonde/bus"
)

// subscription reads from next on.
type subscription struct {
	b           *Bus
	partition   int
	filters     []string
	next        uint64
	incarnation string
	closed      chan struct{}
	once        sync.Once
}

// Subscribe implements bus.Bus.
func (b *Bus) Subscribe(ctx context.Context, o bus.SubscribeOptions) (bus.Subscription, error) {
	if err := b.check(o.Partition); err != nil {
		return nil, err
	}
	s := &subscription{b: b, partition: o.Partition, filters: o.Filters, next: o.From, incarnation: o.Incarnation,
		closed: make(chan struct{})}
	err := b.wait(ctx, func() (bool, error) {
		p := &b.partitions[s.partition]
		if s.incarnation == "" {
			s.incarnation = p.name()
		}
		switch s.next {
		case 0:
			for s.next = p.first; s.next < p.end() && p.messages[s.next-p.first].Stored.Before(o.Since); {
				s.next++
			}
		case bus.FromNew:
			s.next = p.end()
		}
		if !b.stopped {
			b.open[s] = true
		}
		return !b.stopped, nil
	})
	return s, err
}

// Next implements bus.Subscription.
func (s *subscription) Next(ctx context.Context) (d bus.Delivery, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.closed:
			cancel(bus.ErrClosed)
		case <-ctx.Done():
		}
	}()
	err = s.b.wait(ctx, func() (bool, error) { return s.take(&d) })
	if context.Cause(ctx) == bus.ErrClosed {
		err = bus.ErrClosed
	}
	return d, err
}

// take takes the next message that matches. The bus is locked.
func (s *subscription) take(d *bus.Delivery) (bool, error) {
	p := &s.b.partitions[s.partition]
	switch {
	case s.b.stopped:
		return false, nil
	case s.incarnation != p.name():
		return false, fmt.Errorf("the stream is %s, not %s: %w", p.name(), s.incarnation, bus.ErrIncarnation)
	case s.next > p.end():
		return false, fmt.Errorf("position %d is wanted and the stream ends at %d: %w", s.next, p.end()-1,
			bus.ErrIncarnation)
	case s.next < p.first:
		return false, &bus.TrimmedError{Want: s.next, First: p.first}
	}
	for ; s.next < p.end(); s.next++ {
		m := p.messages[s.next-p.first]
		if bus.MatchAny(s.filters, m.Subject) {
			*d, s.next = m, s.next+1
			d.Data = bytes.Clone(m.Data)
			return true, nil
		}
	}
	return false, nil
}

// Close implements bus.Subscription.
func (s *subscription) Close() {
	s.once.Do(func() {
		close(s.closed)
		s.b.set(func() { delete(s.b.open, s) })
	})
}

// Request implements bus.Bus.
func (b *Bus) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	var handle func([]byte) []byte
	if err := b.wait(ctx, func() (bool, error) {
		handle = b.servers[subject]
		return !b.stopped, nil
	}); err != nil {
		return nil, err
	}
	if handle == nil {
		return nil, fmt.Errorf("request %s: %w", subject, bus.ErrNoReply)
	}
	return handle(bytes.Clone(data)), nil
}

// Serve implements bus.Bus.
func (b *Bus) Serve(subject string, handle func([]byte) []byte) (stop func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, bus.ErrClosed
	}
	if b.servers[subject] != nil {
		return nil, fmt.Errorf("subject %s is served already", subject)
	}
	var one sync.Mutex // one request at a time
	stopped := false
	b.servers[subject] = func(data []byte) []byte {
		one.Lock()
		defer one.Unlock()
		if stopped {
			return nil
		}
		return handle(data)
	}
	return sync.OnceFunc(func() {
		b.set(func() { delete(b.servers, subject) })
		one.Lock()
		defer one.Unlock()
		stopped = true
	}), nil
}
