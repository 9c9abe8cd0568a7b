package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// publisher is a window of messages that are not acknowledged, in the order of
// the calls. It is published again as a whole when something fails:
//
//   - When the connection broke, the broker has stored some first part of what was
//     sent. Each message is sent again with its id, and the broker drops what it has.
//   - When the broker did not take one message, or did not answer, it may have
//     stored later ones: they stand before their turn, and their ids would make the
//     broker drop them. So these are sent again with new ids, and the early copies
//     are duplicates like any other.
//
// After a failure one message is sent alone, and from answer to answer twice as
// many, so that a full stream is not flooded with copies.
type publisher struct {
	n             *NATS
	window        int64
	answerTimeout time.Duration
	signal        chan struct{} // something for the sender to look at
	doneMu        sync.Mutex    // serialises calls of done. Order: doneMu → mu

	mu      sync.Mutex
	room    chan struct{} // closed and made anew when the window shrinks and somebody waits
	waiting bool
	closed  bool
	entries []*entry
	base    uint64 // index of entries[0]
	bytes   int64
	attempt uint64
	sent    int       // entries passed by the sender in this attempt
	unknown int       // sent in this attempt and not answered
	limit   int       // bound of unknown
	heard   time.Time // of the last answer, or of the first message that waits for one
	highest uint64    // position that was acknowledged last
	failure *failure  // of this attempt
	stuck   string    // why nothing was taken for a while
}

// failure is why the window has to be published again.
type failure struct {
	reason string // of the metric
	err    error
}

// entry is one message of the window.
type entry struct {
	m        Message
	done     func(uint64, error)
	stopWait func() bool // of the context
	index    uint64
	copies   int    // new ids so far
	sent     bool   // in some attempt
	sending  bool   // its data are being read
	awaiting bool   // sent in this attempt and not answered
	answered bool   // in this attempt
	seq      uint64 // of the answer
	err      error  // ErrRefused, or why it was given up
	finished bool   // done was called, or is about to be
}

func newPublisher(n *NATS) *publisher {
	return &publisher{n: n, window: n.o.WindowBytes, answerTimeout: answerTimeout, signal: make(chan struct{}, 1),
		room: make(chan struct{}), limit: maxWindowMessages}
}

func (p *publisher) wake() { wake(p.signal) }

// publish puts a message into the window, and waits until it fits.
func (p *publisher) publish(ctx context.Context, m Message, done func(uint64, error)) error {
	size := int64(len(m.Data))
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return ErrClosed
		}
		room := p.room
		if len(p.entries) == 0 || p.bytes+size <= p.window && len(p.entries) < maxWindowMessages {
			break
		}
		p.waiting = true
		p.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
		}
	}
	e := &entry{m: m, done: done, index: p.base + uint64(len(p.entries))}
	p.entries = append(p.entries, e)
	p.bytes += size
	p.n.metrics.published.Inc()
	p.n.metrics.publishedBytes.Add(float64(size))
	p.n.metrics.window.Set(float64(p.bytes))
	if !ValidSubject(m.Subject) || !Match(Subjects, m.Subject) {
		e.err = fmt.Errorf("publish to %q, which is no subject below %s: %w", m.Subject, Subjects, ErrRefused)
	} else if len(m.Data) > MaxPayloadBytes {
		e.err = fmt.Errorf("publish %d bytes to %s; at most %d: %w", len(m.Data), m.Subject, MaxPayloadBytes, ErrRefused)
	}
	refused := e.err != nil
	e.stopWait = context.AfterFunc(ctx, func() { p.giveUp(e, ctx.Err()) })
	p.mu.Unlock()
	if refused {
		p.settle()
	}
	p.wake()
	return nil
}

// giveUp ends the wait for one message. It stays in its place until its turn.
func (p *publisher) giveUp(e *entry, err error) {
	p.mu.Lock()
	if e.err == nil && !e.finished {
		e.err = err
	}
	p.mu.Unlock()
	p.finish(e)
	p.settle()
	p.wake()
}

// finish calls done for a message that will not be sent again, unless its data
// are being read: then the sender calls finish.
func (p *publisher) finish(e *entry) {
	p.doneMu.Lock()
	defer p.doneMu.Unlock()
	p.mu.Lock()
	call := e.err != nil && !e.sending && !e.finished
	e.finished = e.finished || call
	p.mu.Unlock()
	if call {
		p.call(e)
	}
}

func (p *publisher) call(e *entry) {
	e.stopWait()
	switch {
	case e.err == nil:
		p.n.metrics.acknowledged.Inc()
	case errors.Is(e.err, ErrRefused):
		p.n.metrics.refused.Inc()
	}
	e.done(e.seq, e.err)
}

// settle takes what is answered off the front of the window.
func (p *publisher) settle() {
	p.doneMu.Lock()
	defer p.doneMu.Unlock()
	p.mu.Lock()
	var settled []*entry
	n := 0
	for ; n < len(p.entries); n++ {
		e := p.entries[n]
		if e.sending || !e.answered && e.err == nil {
			break
		}
		p.stopAwaiting(e)
		p.bytes -= int64(len(e.m.Data))
		if !e.finished {
			e.finished = true
			settled = append(settled, e)
		}
		p.entries[n] = nil
	}
	if n > 0 {
		p.entries, p.base, p.sent = p.entries[n:], p.base+uint64(n), max(0, p.sent-n)
		if p.waiting {
			close(p.room)
			p.room, p.waiting = make(chan struct{}), false
		}
		p.n.metrics.window.Set(float64(p.bytes))
	}
	p.mu.Unlock()
	for _, e := range settled {
		p.call(e)
	}
}

func (p *publisher) stopAwaiting(e *entry) {
	if e.awaiting {
		e.awaiting = false
		p.unknown--
	}
}

// close gives up everything.
func (p *publisher) close() {
	p.mu.Lock()
	p.closed = true
	entries := append([]*entry(nil), p.entries...)
	p.mu.Unlock()
	for _, e := range entries {
		p.giveUp(e, ErrClosed)
	}
}

// trouble says why nothing was taken for a while, "" when something was.
func (p *publisher) trouble() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stuck
}
