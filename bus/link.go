package bus

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// link keeps a connection to the broker. Each connection is a nats.Conn of its
// own that never reconnects by itself: nothing can be sent on a new connection
// before its user noticed that the old one is gone.
type link struct {
	dial    func(closed func(), d *denials) (*nats.Conn, error)
	log     *slog.Logger
	metrics *metrics
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	stopped chan struct{}

	mu      sync.Mutex    // a leaf
	cur     *connection   // nil: none
	up      chan struct{} // closed while cur is not nil
	opened  bool          // there was a connection
	refused error         // the broker refuses us, and there was none: permanent
}

// connection is one connection. Its context ends with it.
type connection struct {
	context.Context
	cancel context.CancelFunc
	nc     *nats.Conn
	js     jetstream.JetStream
	denied *denials
}

const (
	firstRedial = 20 * time.Millisecond
	lastRedial  = time.Second
)

// run dials for ever. up is called with each new connection.
func (l *link) run(up func(*connection)) {
	defer close(l.stopped)
	wait, told := firstRedial, false
	for l.ctx.Err() == nil {
		c, err := l.connect()
		if err != nil {
			if l.refuse(err) {
				return
			}
			if !told {
				l.log.Warn("the bus cannot be reached; trying again until it can", "error", err)
				told = true
			}
			sleep(l.ctx, wait)
			wait = min(2*wait, lastRedial)
			continue
		}
		if told {
			l.log.Info("connected to the bus")
		}
		wait, told = firstRedial, false
		up(c)
		l.set(c)
		<-c.Done()
		l.set(nil)
		c.nc.Close()
		if l.ctx.Err() == nil {
			l.log.Warn("the connection to the bus is lost; connecting again", "error", c.nc.LastError())
			told = true
		}
	}
}

func (l *link) connect() (*connection, error) {
	ctx, cancel := context.WithCancel(l.ctx)
	d := &denials{}
	nc, err := l.dial(cancel, d)
	if err != nil {
		cancel()
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		cancel()
		nc.Close()
		return nil, err
	}
	l.metrics.connections.Inc()
	return &connection{Context: ctx, cancel: cancel, nc: nc, js: js, denied: d}, nil
}

// refuse ends the link when the broker refuses us before it ever took us: that is a
// mistake in a configuration. Later it may be one of the broker's, which is waited for.
func (l *link) refuse(err error) bool {
	var permanent errPermanent
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opened || !errors.As(err, &permanent) {
		return false
	}
	l.refused = permanent.error
	close(l.up)
	return true
}

func (l *link) set(c *connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cur = c; c != nil {
		l.metrics.connected.Set(1)
		l.opened = true
		close(l.up)
		return
	}
	l.metrics.connected.Set(0)
	l.up = make(chan struct{})
}

// now is the connection, or nil.
func (l *link) now() *connection {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cur
}

// get waits for a connection. It fails with the error of ctx, ErrClosed, or with why
// the broker refuses us.
func (l *link) get(ctx context.Context) (*connection, error) {
	for {
		l.mu.Lock()
		c, up, refused := l.cur, l.up, l.refused
		l.mu.Unlock()
		switch {
		case l.ctx.Err() != nil:
			return nil, ErrClosed
		case refused != nil:
			return nil, refused
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case c != nil && c.Err() == nil:
			return c, nil
		case c != nil: // it broke this moment
			sleep(ctx, time.Millisecond)
			continue
		}
		select {
		case <-up:
		case <-ctx.Done():
		case <-l.ctx.Done():
		}
	}
}

// callTimeout bounds one question to the broker; it is asked again then.
const callTimeout = 5 * time.Second

// errPermanent marks an answer that asking again does not change.
type errPermanent struct{ error }

func (e errPermanent) Unwrap() error { return e.error }

// call asks the broker until it answers, ctx ends or the bus is closed. ask gets
// a context that ends with the connection.
func (l *link) call(ctx context.Context, ask func(ctx context.Context, c *connection) error) error {
	var permanent errPermanent
	for wait := firstRedial; ; wait = min(2*wait, lastRedial) {
		c, err := l.get(ctx)
		if err != nil {
			return err
		}
		once, cancel := context.WithTimeout(ctx, callTimeout)
		stop := context.AfterFunc(c, cancel)
		denied := c.denied.ask("", cancel)
		err = ask(once, c)
		stop()
		if why := denied(); err != nil && why != nil && once.Err() != nil {
			err = why
		}
		cancel()
		if err == nil {
			return nil
		}
		if errors.As(err, &permanent) {
			return permanent.error
		}
		if ctx.Err() == nil && c.Err() == nil {
			l.log.Warn("the bus did not answer; asking again", "error", err)
		}
		sleep(ctx, wait)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (l *link) close() {
	l.cancel()
	<-l.stopped
}
