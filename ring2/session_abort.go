package ring2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Bounds of aborts.
const (
	maxAborts    = 1024            // without an answer, of one session; then Abort fails
	abortSending = 5 * time.Second // that an engine may leave its socket full
)

// abortTable matches answers to aborts by id.
type abortTable struct {
	sending chan struct{} // held while a message is being sent

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan abortAck
}

func (t *abortTable) add(id uint64) (uint64, chan abortAck, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) >= maxAborts {
		return 0, nil, fmt.Errorf("abort: %d aborts wait for the engine already", maxAborts)
	}
	for id == 0 {
		if t.last++; t.waiting[t.last] == nil {
			id = t.last
		}
	}
	if t.waiting[id] != nil {
		return 0, nil, fmt.Errorf("abort: id %d waits for the engine already", id)
	}
	c := make(chan abortAck, 1)
	t.waiting[id] = c
	return id, c, nil
}

func (t *abortTable) remove(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, id)
}

// answer hands an answer to the abort that waits for it. A late one finds nobody.
func (t *abortTable) answer(a abortAck) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.waiting[a.id]; c != nil {
		delete(t.waiting, a.id)
		c <- a
	}
}

// Abort asks the engine to stop a request and returns the outcome and the
// request's final length in tokens. It waits as long as ctx says; a late answer
// is thrown away.
func (s *Session) Abort(ctx context.Context, a Abort) (AbortOutcome, uint32, error) {
	if len(a.EngineID) > MaxTextBytes {
		return AbortUnknown, 0, fmt.Errorf("abort: engine id has %d bytes; at most %d", len(a.EngineID), MaxTextBytes)
	}
	id, answer, err := s.aborts.add(a.ID)
	if err != nil {
		return AbortUnknown, 0, err
	}
	defer s.aborts.remove(id)
	a.ID = id
	if err := s.send(ctx, abortMessage(a)); err != nil {
		return AbortUnknown, 0, err
	}
	select {
	case got := <-answer:
		return got.outcome, got.finalLength, nil
	case <-ctx.Done():
		return AbortUnknown, 0, fmt.Errorf("abort request %d: no answer from the engine: %w", a.Number, ctx.Err())
	case <-s.gone:
		return AbortUnknown, 0, ErrEngineGone
	}
}

func (s *Session) send(ctx context.Context, b []byte) error {
	select {
	case s.aborts.sending <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.gone:
		return ErrEngineGone
	}
	defer func() { <-s.aborts.sending }()
	deadline := time.Now().Add(abortSending)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := s.conn.SetWriteDeadline(deadline); err != nil {
		return ErrEngineGone
	}
	return sendMessage(s.conn, b)
}

// serve reads the socket until its end, which is how the agent learns of the
// engine's death.
func (s *Session) serve(buf []byte) {
	defer s.rouse()
	defer close(s.gone)
	for {
		m, err := receiveMessage(s.conn, buf)
		var ack abortAck
		if err == nil && m.typ != abiMessageAbortAck {
			m.closeFDs()
			err = fmt.Errorf("engine sent %s after the handshake", m.name())
		}
		if err == nil {
			ack, err = parseAbortAck(m.body)
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !s.closed.Load() {
				s.log.Warn("connection to the engine is of no use any more", "error", err)
			}
			// The engine sees the end at once, and its death is read from the ring.
			_ = s.conn.Close()
			return
		}
		s.aborts.answer(ack)
	}
}
