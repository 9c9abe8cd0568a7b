package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go"
)

// maxCommands bounds the commands that wait for one subject's handler.
const maxCommands = 1024

// served is a subject whose commands are answered.
type served struct {
	subject string
	handle  func([]byte) []byte

	mu      sync.Mutex // held while a command is handled
	stopped bool
	sub     *nats.Subscription // of the connection; guarded by NATS.mu
}

// Request implements Bus.
func (n *NATS) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	c, err := n.link.get(ctx)
	if err != nil {
		return nil, err
	}
	once, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c, cancel)()
	denied := c.denied.ask(subject, cancel)
	m, err := c.nc.RequestWithContext(once, subject, data)
	why := denied()
	switch {
	case err == nil:
		n.metrics.requests.WithLabelValues("answered").Inc()
		return m.Data, nil
	case errors.Is(err, nats.ErrNoResponders):
		n.metrics.requests.WithLabelValues("nobody").Inc()
		return nil, fmt.Errorf("request %s: %w", subject, ErrNoReply)
	}
	n.metrics.requests.WithLabelValues("failed").Inc()
	if why != nil {
		return nil, fmt.Errorf("request %s: %w", subject, why)
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return nil, fmt.Errorf("request %s: %w: %w", subject, ErrNoReply, err)
}

// Serve implements Bus.
func (n *NATS) Serve(subject string, handle func([]byte) []byte) (stop func(), err error) {
	if !ValidSubject(subject) {
		return nil, fmt.Errorf("serve %q: that is no subject", subject)
	}
	s := &served{subject: subject, handle: handle}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.link.ctx.Err() != nil {
		return nil, ErrClosed
	}
	n.servers[s] = true
	if c := n.link.now(); c != nil {
		n.serve(c, s)
	}
	return sync.OnceFunc(func() { n.stopServing(s) }), nil
}

func (n *NATS) stopServing(s *served) {
	n.mu.Lock()
	delete(n.servers, s)
	if s.sub != nil && n.link.ctx.Err() == nil {
		// It fails only when the connection is gone, and the subscription with it.
		_ = s.sub.Unsubscribe()
	}
	n.mu.Unlock()
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
}

// serveAll subscribes everything that is served and heard on a new connection.
func (n *NATS) serveAll(c *connection) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for s := range n.servers {
		n.serve(c, s)
	}
	for h := range n.hearings {
		n.hearOn(c, h)
	}
}

// serve subscribes on a connection. Where that fails, the connection is given up:
// the next one serves.
func (n *NATS) serve(c *connection, s *served) {
	sub, err := c.nc.Subscribe(s.subject, s.answer)
	if err == nil {
		err = sub.SetPendingLimits(maxCommands, 1<<20)
	}
	if err != nil {
		n.log.Warn("serve commands", "subject", s.subject, "error", err)
		c.cancel()
		return
	}
	s.sub = sub
}

func (s *served) answer(m *nats.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || m.Reply == "" {
		return
	}
	// The reply is lost only with the connection; the caller then hears nothing.
	_ = m.Respond(s.handle(m.Data))
}
