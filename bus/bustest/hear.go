package bustest

import (
	"bytes"
	"errors"
	"sync"

	"sonde/bus"
)

// maxUnheard bounds what waits for a slow listener; more is lost to it.
const maxUnheard = 4096

// hearing is one call of Hear.
type hearing struct {
	filters []string
	queue   chan bus.Message
}

// Hear implements bus.Bus. A stopped broker tells nothing.
func (b *Bus) Hear(filters []string, hear func(subject string, data []byte)) (stop func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, bus.ErrClosed
	}
	h := &hearing{filters: filters, queue: make(chan bus.Message, maxUnheard)}
	b.hearings[h] = true
	var worker sync.WaitGroup
	worker.Go(func() {
		for m := range h.queue {
			hear(m.Subject, m.Data)
		}
	})
	return sync.OnceFunc(func() {
		b.set(func() { delete(b.hearings, h); close(h.queue) })
		worker.Wait()
	}), nil
}

// put is called under the lock of the bus.
func (h *hearing) put(m bus.Message) {
	if !bus.MatchAny(h.filters, m.Subject) {
		return
	}
	select {
	case h.queue <- bus.Message{Subject: m.Subject, Data: bytes.Clone(m.Data)}:
	default:
	}
}

// Broadcast implements bus.Bus. A stopped broker tells nothing.
func (b *Bus) Broadcast(subject string, data []byte) error {
	if err := bus.CheckBroadcast(subject, data); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return bus.ErrClosed
	case b.stopped:
		return errors.New("broadcast on " + subject + ": the broker is away")
	}
	for h := range b.hearings {
		h.put(bus.Message{Subject: subject, Data: data})
	}
	return nil
}

// Listen implements bus.Bus.
func (b *Bus) Listen(subject string, hear func(data []byte)) (stop func(), err error) {
	if err := bus.CheckBroadcast(subject, nil); err != nil {
		return nil, err
	}
	return b.Hear([]string{subject}, func(_ string, data []byte) { hear(data) })
}
