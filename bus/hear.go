package bus

import (
	"sync"

	"github.com/nats-io/nats.go"
)

// Bounds of what waits for a slow Hear function. Beyond them, messages are lost
// to it and counted by sonde_bus_unheard_messages_total.
const (
	maxUnheard      = 4096
	maxUnheardBytes = 64 << 20
)

// hearing is one call of Hear.
type hearing struct {
	filters []string

	mu      sync.Mutex // held while a message is heard
	hear    func(subject string, data []byte)
	stopped bool
	subs    []*nats.Subscription // of the connection; guarded by NATS.mu
}

// Hear implements Bus. The broker hands a message to subscribers of the plain
// subject at once, while the stream still waits for its disk.
func (n *NATS) Hear(filters []string, hear func(subject string, data []byte)) (stop func(), err error) {
	h := &hearing{filters: filters, hear: hear}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.link.ctx.Err() != nil {
		return nil, ErrClosed
	}
	n.hearings[h] = true
	if c := n.link.now(); c != nil {
		n.hearOn(c, h)
	}
	return sync.OnceFunc(func() { n.stopHearing(h) }), nil
}

func (n *NATS) stopHearing(h *hearing) {
	n.mu.Lock()
	delete(n.hearings, h)
	for _, sub := range h.subs {
		// It fails only when the connection is gone, and the subscription with it.
		_ = sub.Unsubscribe()
	}
	n.mu.Unlock()
	h.mu.Lock()
	h.stopped = true
	h.mu.Unlock()
}

// hearOn subscribes on a connection. Where that fails, the connection is given up.
func (n *NATS) hearOn(c *connection, h *hearing) {
	h.subs = nil // Those of the last connection, which its own counter still reads.
	for _, f := range h.filters {
		sub, err := c.nc.Subscribe(n.o.wireFilter(f), func(m *nats.Msg) { h.take(n.o.plainSubject(m.Subject), m.Data) })
		if err == nil {
			err = sub.SetPendingLimits(maxUnheard, maxUnheardBytes)
		}
		if err != nil {
			n.log.Warn("hear live messages", "filter", f, "error", err)
			c.cancel()
			return
		}
		h.subs = append(h.subs, sub)
	}
	subs := h.subs
	n.workers.Go(func() { n.countUnheard(c, subs) })
}

// countUnheard counts what a slow hearer missed, until the connection ends.
func (n *NATS) countUnheard(c *connection, subs []*nats.Subscription) {
	before := make([]int, len(subs))
	for c.Err() == nil {
		sleep(c, pollEvery)
		for i, sub := range subs {
			if lost, err := sub.Dropped(); err == nil && lost > before[i] {
				n.metrics.unheard.Add(float64(lost - before[i]))
				before[i] = lost
			}
		}
	}
}

func (h *hearing) take(subject string, data []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.stopped {
		h.hear(subject, data)
	}
}
