package producer

import (
	"errors"
	"fmt"
	"sync"

	"sonde/bus"
	"sonde/schema"
	"sonde/spool"
)

// message is a published batch that is not acknowledged.
type message struct {
	c        *chain
	groups   []*group
	rows     uint64 // rows of the law: those of vectors and stats
	data     []byte
	id       string
	subject  string
	runs     []spool.Run // of rows, by priority
	barrier  bool        // nothing may be stored behind it that was published before
	answered bool
	spooled  bool  // the answer came from the spool, which keeps data
	err      error // of the answer
}

// maxFreeMessages bounds the messages that are kept for the next ones.
const maxFreeMessages = 1024

// ackQueue takes the bus's answers, which come from other goroutines. It holds
// at most the messages in flight.
type ackQueue struct {
	mu     sync.Mutex // a leaf
	done   []answer
	signal chan struct{}
}

// answer is what the bus said about a message.
type answer struct {
	m       *message
	spooled bool
	err     error
}

func (q *ackQueue) put(a answer) {
	q.mu.Lock()
	q.done = append(q.done, a)
	q.mu.Unlock()
	select {
	case q.signal <- struct{}{}:
	default:
	}
}

func (q *ackQueue) take(into []answer) []answer {
	q.mu.Lock()
	defer q.mu.Unlock()
	into = append(into, q.done...)
	clear(q.done)
	q.done = q.done[:0]
	return into
}

// publish hands a message to the bus, after waiting until it fits in flight.
func (r *rank) publish(m *message) {
	size := int64(len(m.data))
	r.waitForAcks(max(0, r.agent.inflightShare()-size))
	if r.failed != nil {
		return // the rank ends, and its rows with it
	}
	r.inflight += size
	r.inflightB.Store(r.inflight)
	m.c.sent = append(m.c.sent, m)
	m.c.e.inflight++
	r.agent.counters.publish(m.c.key.kind, size)
	r.unanswered.Add(1)
	if err := r.send(m, bus.Message{Subject: m.subject, ID: m.id, Data: m.data}); err != nil {
		r.unanswered.Done()
		r.failed = fmt.Errorf("publish to %s: %w", m.subject, err)
	}
}

// send gives a message to the bus, or to the spool before it.
func (r *rank) send(m *message, out bus.Message) error {
	if r.agent.spool == nil {
		return r.agent.o.Bus.Publish(r.ctx, out, func(_ uint64, err error) {
			r.acks.put(answer{m: m, err: err})
			r.unanswered.Done()
		})
	}
	return r.agent.spool.Publish(r.ctx, spool.Message{Message: out, Owner: r.owner, Rows: m.runs, Barrier: m.barrier},
		func(seq uint64, err error) {
			spooled := seq == 0 && err == nil
			if spooled {
				r.agent.spooled(r, m.rows)
			}
			r.acks.put(answer{m, spooled, err})
			r.unanswered.Done()
		})
}

// waitForAcks waits until at most most bytes are in flight, or the bus gave up.
func (r *rank) waitForAcks(most int64) {
	for r.inflight > most && r.failed == nil {
		select {
		case <-r.ctx.Done():
			r.failed = r.ctx.Err()
		case <-r.acks.signal:
			r.takeAcks()
		}
	}
}

func (r *rank) newMessage(c *chain) *message {
	m := &message{}
	if n := len(r.freeMessages); n > 0 {
		m, r.freeMessages = r.freeMessages[n-1], r.freeMessages[:n-1]
	}
	m.c = c
	if c.key.kind == schema.KindVectors { // the others bring memory of their own
		m.data = r.buffers.take()
	}
	return m
}

// takeAcks books what the bus answered and releases what that covers. Within a
// chain, answers count in the order of publication, so that facts about refused
// messages come in order, too.
func (r *rank) takeAcks() {
	r.scratch.acks = r.acks.take(r.scratch.acks[:0])
	for i, a := range r.scratch.acks {
		r.scratch.acks[i] = answer{}
		a.m.answered, a.m.spooled, a.m.err = true, a.spooled, a.err
		c := a.m.c
		n := 0
		for ; n < len(c.sent) && c.sent[n].answered; n++ {
			r.book(c.sent[n])
			c.sent[n] = nil
		}
		c.sent = c.sent[:copy(c.sent, c.sent[n:])]
	}
	r.inflightB.Store(r.inflight)
	r.retire()
}

func (r *rank) book(m *message) {
	r.inflight -= int64(len(m.data))
	m.c.e.inflight--
	switch {
	case m.spooled:
		m.data, m.runs = nil, nil
		r.settle(m)
	case m.err == nil:
		r.account.acknowledged(m.rows)
		r.settle(m)
	case errors.Is(m.err, bus.ErrRefused):
		r.refused = append(r.refused, m)
	case r.failed == nil:
		r.failed = fmt.Errorf("the bus gave up on a message to %s: %w", m.subject, m.err)
	}
}

// settle lets go of the groups of a message and keeps its memory.
func (r *rank) settle(m *message) {
	for i, g := range m.groups {
		g.refs--
		m.groups[i] = nil
	}
	if m.c.key.kind == schema.KindVectors {
		r.buffers.put(m.data, r.agent.inflightShare())
	}
	*m = message{groups: m.groups[:0], runs: m.runs[:0]}
	if len(r.freeMessages) < maxFreeMessages {
		r.freeMessages = append(r.freeMessages, m)
	}
}
