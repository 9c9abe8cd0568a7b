package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
)

// NATSOptions configures a connection to a broker: the one at URL, or Embedded.
type NATSOptions struct {
	URL         string // of one server, or of those of a cluster with commas between them
	Embedded    *EmbeddedServer
	Stream      string // name of the stream that holds Subjects, "": SONDE
	Partitions  int    // of the stream, 0: 1
	MaxBytes    int64  // bound of the stream, each partition to its share, 0: none
	MustExist   bool   // a missing stream is an error, also later, instead of made
	WindowBytes int64  // published and not acknowledged, 0: 64 MiB
	Replicas    int    // servers that store the stream when it is made, 0: 1
	Security    NATSSecurity
	Logger      *slog.Logger
	Registerer  prometheus.Registerer
}

// NATS is a Bus on a JetStream stream that refuses when it is full and forgets
// only by Trim.
type NATS struct {
	o       NATSOptions
	log     *slog.Logger
	metrics *metrics
	link    *link
	window  *window
	pubs    []*publisher // by partition
	workers sync.WaitGroup
	trouble atomic.Pointer[string] // why the stream does not answer

	mu            sync.Mutex // a leaf
	servers       map[*served]bool
	hearings      map[*hearing]bool
	subscriptions map[*subscription]bool
}

// Bounds of the client.
const (
	defaultWindow     = 64 << 20
	maxWindowMessages = 8192 // published and not acknowledged
	answerTimeout     = 30 * time.Second
	pollEvery         = 5 * time.Second // of the size of the stream, for metrics
	// tlsTries is how often a connection is tried that ends behind its handshake: a server
	// that refuses the certificate says so, but is not heard where our first write breaks.
	tlsTries = 5
)

// OpenNATS connects, waiting for the broker until ctx ends, and makes the stream
// when it is missing. A stream that exists with other limits is used as it is and
// reported; one that would lose messages by itself is an error, and so are a login that
// is refused, a certificate that is not trusted and access rules that do not allow it.
func OpenNATS(ctx context.Context, o NATSOptions) (*NATS, error) {
	if (o.URL == "") == (o.Embedded == nil) {
		return nil, errors.New("open the bus: give either the address of a broker or an embedded server")
	}
	if o.Stream == "" {
		o.Stream = "SONDE"
	}
	if o.WindowBytes == 0 {
		o.WindowBytes = defaultWindow
	}
	if o.Partitions == 0 {
		o.Partitions = 1
	}
	if o.Partitions < 0 || o.Partitions > MaxPartitions {
		return nil, fmt.Errorf("open the bus: %d partitions; want 1 to %d", o.Partitions, MaxPartitions)
	}
	if o.MaxBytes < 0 || o.WindowBytes < 0 || o.Replicas < 0 {
		return nil, fmt.Errorf("open the bus: max_bytes %d, window_bytes %d and replicas %d must not be negative", o.MaxBytes,
			o.WindowBytes, o.Replicas)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	n := &NATS{o: o, log: o.Logger, metrics: m, servers: map[*served]bool{},
		hearings: map[*hearing]bool{}, subscriptions: map[*subscription]bool{}}
	n.link = &link{dial: n.dial, log: n.log, metrics: m, stopped: make(chan struct{}), up: make(chan struct{})}
	n.link.ctx, n.link.cancel = context.WithCancel(context.Background())
	n.window = newWindow(m, o.WindowBytes)
	for i := range o.Partitions {
		n.pubs = append(n.pubs, newPublisher(n, n.window, i))
	}
	n.workers.Go(func() { n.link.run(n.serveAll) })
	if err := n.link.call(ctx, n.checkStreams); err != nil {
		n.link.close()
		return nil, fmt.Errorf("open the bus: %w", err)
	}
	for _, p := range n.pubs {
		n.workers.Go(p.run)
	}
	n.workers.Go(n.poll)
	return n, nil
}

// dial makes a connection that does not reconnect. closed is called when it ends.
func (n *NATS) dial(closed func(), d *denials) (*nats.Conn, error) {
	opts := []nats.Option{nats.Name("sonde"), nats.NoReconnect(), nats.Timeout(callTimeout),
		nats.PingInterval(5 * time.Second), nats.MaxPingsOutstanding(3), nats.ClosedHandler(func(*nats.Conn) { closed() }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { n.heardError(d, err) })}
	if n.o.Embedded != nil {
		opts = append(opts, nats.InProcessServer(n.o.Embedded))
	}
	return connectNATS(n.o.URL, &n.o.Security, opts)
}

// connectNATS connects once. An error that no repetition changes is permanent.
func connectNATS(url string, security *NATSSecurity, opts []nats.Option) (*nats.Conn, error) {
	proof, err := security.options()
	if err != nil {
		return nil, errPermanent{err}
	}
	opts = append(opts, proof...)
	nc, err := nats.Connect(url, opts...)
	for tries := 1; err != nil && errors.Is(err, nats.ErrTLS) && refusalByNATS(err) == "" && tries < tlsTries; tries++ {
		nc, err = nats.Connect(url, opts...)
	}
	if err == nil {
		return nc, nil
	}
	if why := refusalByNATS(err); why != "" {
		return nil, errPermanent{fmt.Errorf("connect to the broker: %s", why)}
	}
	return nil, fmt.Errorf("connect to the broker: %w", err)
}

// poll keeps the metrics of the stream fresh.
func (n *NATS) poll() {
	for n.link.ctx.Err() == nil {
		if c := n.link.now(); c != nil {
			ctx, cancel := context.WithTimeout(c, callTimeout)
			err := n.lookAtAll(ctx, c)
			switch {
			case err == nil:
				n.trouble.Store(nil)
			case c.Err() == nil && n.link.ctx.Err() == nil:
				why := "stream " + n.o.Stream + " does not answer: " + troubleOf(err)
				n.trouble.Store(&why)
			}
			cancel()
		}
		sleep(n.link.ctx, pollEvery)
	}
}

// lookAtAll asks for all partitions, whatever their number is there.
func (n *NATS) lookAtAll(ctx context.Context, c *connection) error {
	for i := range n.o.Partitions {
		s, err := c.js.Stream(ctx, n.o.streamName(i))
		if err != nil {
			return err
		}
		n.infoOf(s.CachedInfo(), i)
	}
	return nil
}

// Partitions implements Bus.
func (n *NATS) Partitions() int { return n.o.Partitions }

// Publish implements Bus.
func (n *NATS) Publish(ctx context.Context, m Message, done func(seq uint64, err error)) error {
	return n.pubs[PartitionOf(m.Subject, len(n.pubs))].publish(ctx, m, done)
}

// Trouble says why the bus takes nothing now, "" when nothing is known against it.
func (n *NATS) Trouble() string {
	if !n.Connected() {
		return "the connection to the broker is lost; it is tried again"
	}
	if why := n.trouble.Load(); why != nil {
		return *why
	}
	for _, p := range n.pubs {
		if why := p.trouble(); why != "" {
			return why
		}
	}
	return ""
}

// troubleOf says what a failed look at the stream means.
func troubleOf(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrNoResponders):
		return "too few servers of its cluster can be reached to agree on anything"
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return "it does not exist"
	}
	return err.Error()
}

// Connected implements Bus.
func (n *NATS) Connected() bool {
	c := n.link.now()
	return c != nil && c.Err() == nil
}

// Close implements Bus.
func (n *NATS) Close() error {
	n.link.close()
	n.workers.Wait()
	n.window.close()
	for _, p := range n.pubs {
		p.close()
	}
	n.mu.Lock()
	open := n.subscriptions
	n.subscriptions = map[*subscription]bool{}
	n.mu.Unlock()
	for s := range open {
		s.Close()
	}
	return nil
}
