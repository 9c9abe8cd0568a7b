package bus

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// headerBroadcast marks what is broadcast, in the topic of commands.
const headerBroadcast = "sonde-broadcast"

// maxBroadcasts bounds what waits for a slow listener.
const maxBroadcasts = 1024

// kafkaListening is one call of Listen.
type kafkaListening struct {
	subject string
	queue   chan []byte

	mu      sync.Mutex // held while something is heard
	hear    func([]byte)
	stopped bool
}

// Broadcast implements Bus. It waits until the topic of commands has it, 5 s at
// most.
func (k *Kafka) Broadcast(subject string, data []byte) error {
	if err := CheckBroadcast(subject, data); err != nil {
		return err
	}
	if k.ctx.Err() != nil {
		return ErrClosed
	}
	ctx, cancel := context.WithTimeout(k.ctx, callTimeout)
	defer cancel()
	if err := k.commands.send(ctx, subject, headerBroadcast, "1", data); err != nil {
		if k.ctx.Err() != nil {
			return ErrClosed
		}
		return fmt.Errorf("broadcast on %s: %w", subject, err)
	}
	return nil
}

// Listen implements Bus. It returns once the end of the topic of commands was found,
// or after 5 s without a broker: then it listens once that is back.
func (k *Kafka) Listen(subject string, hear func(data []byte)) (stop func(), err error) {
	if err := CheckBroadcast(subject, nil); err != nil {
		return nil, err
	}
	if k.ctx.Err() != nil {
		return nil, ErrClosed
	}
	c := k.commands
	l := &kafkaListening{subject: subject, hear: hear, queue: make(chan []byte, maxBroadcasts)}
	c.mu.Lock()
	c.listeners[l] = true
	c.mu.Unlock()
	k.workers.Go(func() { l.run(k.ctx) })
	c.awaitTail()
	return sync.OnceFunc(func() { c.stopListening(l) }), nil
}

func (l *kafkaListening) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case data, ok := <-l.queue:
			if !ok {
				return
			}
			l.mu.Lock()
			if !l.stopped {
				l.hear(data)
			}
			l.mu.Unlock()
		}
	}
}

func (c *kafkaCommands) stopListening(l *kafkaListening) {
	c.mu.Lock()
	delete(c.listeners, l)
	close(l.queue)
	c.mu.Unlock()
	l.mu.Lock()
	l.stopped = true
	l.mu.Unlock()
}

// spread hands what was broadcast to who listens.
func (c *kafkaCommands) spread(r *fetchedRecord) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for l := range c.listeners {
		if l.subject != r.key {
			continue
		}
		select { // data belong to who hears them
		case l.queue <- append([]byte(nil), r.value...):
		default:
			c.k.metrics.unheard.Inc()
		}
	}
}

// awaitTail follows the topic, and waits until its end was found.
func (c *kafkaCommands) awaitTail() {
	tail := c.follow()
	t := time.NewTimer(callTimeout)
	defer t.Stop()
	select {
	case <-tail.ready:
	case <-t.C: // the broker is away; it is followed once it is back
	case <-c.k.ctx.Done():
	}
}
