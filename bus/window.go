package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// window bounds what was published and is not acknowledged, over all partitions.
type window struct {
	metrics *metrics
	bound   int64 // bytes

	mu       sync.Mutex    // a leaf
	room     chan struct{} // closed and made anew when the window shrinks and somebody waits
	waiting  bool
	closed   bool
	bytes    int64
	messages int
}

func newWindow(m *metrics, bound int64) *window {
	return &window{metrics: m, bound: bound, room: make(chan struct{})}
}

// enter waits until a message fits. One that is larger than the window goes alone.
func (w *window) enter(ctx context.Context, size int64) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		w.mu.Lock()
		fits := w.messages == 0 || w.bytes+size <= w.bound && w.messages < maxWindowMessages
		switch {
		case w.closed:
			w.mu.Unlock()
			return ErrClosed
		case fits:
			w.messages++
			w.bytes += size
			w.metrics.window.Set(float64(w.bytes))
			w.mu.Unlock()
			w.metrics.published.Inc()
			w.metrics.publishedBytes.Add(float64(size))
			return nil
		}
		room := w.room
		w.waiting = true
		w.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
		}
	}
}

// leave makes room.
func (w *window) leave(messages int, bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.messages -= messages
	w.bytes -= bytes
	w.metrics.window.Set(float64(w.bytes))
	w.wake()
}

// close ends the wait of everybody.
func (w *window) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.wake()
}

func (w *window) wake() {
	if w.waiting {
		close(w.room)
		w.room, w.waiting = make(chan struct{}), false
	}
}

// queue is what was published to one partition and is not acknowledged, in the order
// of the calls. A sender takes what is in it, in its own way, and books the answers.
type queue struct {
	window *window
	check  func(*Message) error // why a message can never be taken
	left   func(*entry)         // called under mu with what leaves, nil: nobody asks
	signal chan struct{}        // something for the sender to look at
	doneMu sync.Mutex           // serialises calls of done. Order: doneMu → mu → that of window

	mu      sync.Mutex
	closed  bool
	entries []*entry
	base    uint64 // index of entries[0]
	stuck   string // why nothing was taken for a while
}

// entry is one message of a queue.
type entry struct {
	m        Message
	done     func(uint64, error)
	stopWait func() bool // of the context
	index    uint64
	reading  bool // its data are being read
	answered bool // it is stored
	seq      uint64
	err      error // ErrRefused, or why it was given up
	finished bool  // done was called, or is about to be

	// Of the sender to NATS.
	copies   int  // new ids so far
	sent     bool // in some attempt
	awaiting bool // sent in this attempt and not answered
}

func newQueue(w *window, check func(*Message) error) queue {
	return queue{window: w, check: check, signal: make(chan struct{}, 1)}
}

func (q *queue) wake() { wake(q.signal) }

func wake(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// checkSubject refuses what is no subject of the stream.
func checkSubject(m *Message) error {
	if !ValidSubject(m.Subject) || !Match(Subjects, m.Subject) {
		return fmt.Errorf("publish to %q, which is no subject below %s: %w", m.Subject, Subjects, ErrRefused)
	}
	return nil
}

// publish puts a message into the queue, and waits until it fits into the window.
func (q *queue) publish(ctx context.Context, m Message, done func(uint64, error)) error {
	size := int64(len(m.Data))
	if err := q.window.enter(ctx, size); err != nil {
		return err
	}
	e := &entry{m: m, done: done, err: q.check(&m)}
	refused := e.err
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		q.window.leave(1, size)
		return ErrClosed
	}
	e.index = q.base + uint64(len(q.entries))
	q.entries = append(q.entries, e)
	e.stopWait = context.AfterFunc(ctx, func() { q.giveUp(e, ctx.Err()) })
	q.mu.Unlock()
	if refused != nil {
		q.giveUp(e, refused)
	}
	q.wake()
	return nil
}

// giveUp ends the wait for one message. Where it is under way it stays in its place.
func (q *queue) giveUp(e *entry, err error) {
	q.mu.Lock()
	if e.err == nil && !e.finished {
		e.err = err
	}
	q.mu.Unlock()
	q.finish(e)
	q.settle()
	q.wake()
}

// finish calls done for a message that was given up, unless its data are being read:
// then who reads them calls finish.
func (q *queue) finish(e *entry) {
	q.doneMu.Lock()
	defer q.doneMu.Unlock()
	q.mu.Lock()
	call := e.err != nil && !e.reading && !e.finished
	e.finished = e.finished || call
	q.mu.Unlock()
	if call {
		q.call(e)
	}
}

func (q *queue) call(e *entry) {
	e.stopWait()
	switch {
	case e.err == nil:
		q.window.metrics.acknowledged.Inc()
	case errors.Is(e.err, ErrRefused):
		q.window.metrics.refused.Inc()
	}
	e.done(e.seq, e.err)
}

// settle takes what is answered or given up off the front.
func (q *queue) settle() {
	q.doneMu.Lock()
	defer q.doneMu.Unlock()
	q.mu.Lock()
	var settled []*entry
	n, bytes := 0, int64(0)
	for ; n < len(q.entries); n++ {
		e := q.entries[n]
		if e.reading || !e.answered && e.err == nil {
			break
		}
		if q.left != nil {
			q.left(e)
		}
		bytes += int64(len(e.m.Data))
		if !e.finished {
			e.finished = true
			settled = append(settled, e)
		}
		q.entries[n] = nil
	}
	q.entries, q.base = q.entries[n:], q.base+uint64(n)
	q.mu.Unlock()
	if n > 0 {
		q.window.leave(n, bytes)
	}
	for _, e := range settled {
		q.call(e)
	}
}

// say keeps why nothing was taken for a while, "" when something was.
func (q *queue) say(why string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stuck = why
}

func (q *queue) trouble() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stuck
}

// close gives up everything.
func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	entries := append([]*entry(nil), q.entries...)
	q.mu.Unlock()
	for _, e := range entries {
		q.giveUp(e, ErrClosed)
	}
}
