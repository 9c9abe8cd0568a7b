package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	kafka "github.com/segmentio/kafka-go"
)

// KafkaOptions configures a connection to a Kafka cluster, 2.8 or newer.
type KafkaOptions struct {
	Brokers     []string // host:port of some brokers; the others are learned from them
	Stream      string   // topic that holds Subjects, "": SONDE; commands go through Stream.commands
	Partitions  int      // of the topic, 0: 1
	MaxBytes    int64    // bound of the stream, each partition to its share, held by its publishers, 0: none
	MustExist   bool     // a missing topic is an error, also later, instead of made
	WindowBytes int64    // published and not acknowledged, 0: 64 MiB
	Replicas    int      // of a topic that is made, 0: the default of the broker
	MinInSync   int      // replicas that store a message before its acknowledgement, 0: the default of the broker
	Security    KafkaSecurity
	Logger      *slog.Logger
	Registerer  prometheus.Registerer
}

// Kafka is a Bus on a topic: position n of a partition is offset n-1. A topic that is
// made anew has another id, which is the incarnation. Kafka refuses nothing
// when a topic is full, so that the publishers hold the bound, and it drops no
// duplicates of this client: whoever reads the stream does.
type Kafka struct {
	o         KafkaOptions
	log       *slog.Logger
	metrics   *metrics
	addr      net.Addr
	transport *kafka.Transport
	client    *kafka.Client
	window    *window
	pubs      []*kafkaPublisher // by partition
	hearings  *kafkaHearings
	commands  *kafkaCommands
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc
	workers   sync.WaitGroup
	answered  atomic.Int64 // when the broker last answered, in ns since started
	lost      atomic.Bool  // it failed to answer a question that was asked after that
	limit     atomic.Int64 // max.message.bytes of the topic
	lastID    atomic.Value // string: incarnation that was seen last, for the log
	patience  atomic.Int64 // ns until a silent broker counts as gone: messages may be many

	mu            sync.Mutex // a leaf
	subscriptions map[*kafkaSubscription]bool
}

var started = time.Now()

const (
	// metadataTTL bounds how long a moved leader stays unnoticed.
	metadataTTL = time.Second
	// probeEvery is how often the broker is asked whether it is there.
	probeEvery = time.Second
	// fetchWait is how long the broker keeps a question for messages that are not there.
	fetchWait = 500 * time.Millisecond
	// fetchBytes is asked for at once; a larger message comes alone.
	fetchBytes = 8 << 20
	// commandsSuffix names the topic of commands and their replies.
	commandsSuffix = ".commands"
)

// OpenKafka connects, waiting for the cluster until ctx ends, and makes the topic
// when it is missing. A topic that exists with other limits is used as it is and
// reported; one that would lose messages by itself is an error, and so are a login
// that is refused and a certificate that is not trusted.
func OpenKafka(ctx context.Context, o KafkaOptions) (*Kafka, error) {
	k, err := newKafka(o)
	if err != nil {
		return nil, fmt.Errorf("open the bus: %w", err)
	}
	if err := k.call(ctx, k.checkTopic); err != nil {
		k.cancel()
		k.transport.CloseIdleConnections()
		return nil, fmt.Errorf("open the bus: %w", err)
	}
	k.metrics.connections.Inc()
	for _, p := range k.pubs {
		k.workers.Go(p.run)
	}
	k.workers.Go(k.probe)
	return k, nil
}

// newKafka is a bus that asked nothing yet.
func newKafka(o KafkaOptions) (*Kafka, error) {
	if o.Stream == "" {
		o.Stream = "SONDE"
	}
	if o.WindowBytes == 0 {
		o.WindowBytes = defaultWindow
	}
	if o.Partitions == 0 {
		o.Partitions = 1
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	switch {
	case len(o.Brokers) == 0:
		return nil, errors.New("no Kafka broker is given")
	case o.Partitions < 0 || o.Partitions > MaxPartitions:
		return nil, fmt.Errorf("%d partitions; want 1 to %d", o.Partitions, MaxPartitions)
	case o.MaxBytes < 0 || o.WindowBytes < 0:
		return nil, fmt.Errorf("max_bytes %d and window_bytes %d must not be negative", o.MaxBytes, o.WindowBytes)
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	k := &Kafka{o: o, log: o.Logger, metrics: m, subscriptions: map[*kafkaSubscription]bool{}}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	if err := k.dial(); err != nil {
		k.cancel()
		return nil, err
	}
	k.limit.Store(MaxPayloadBytes)
	k.patience.Store(int64(answerTimeout))
	k.window = newWindow(m, o.WindowBytes)
	for i := range o.Partitions {
		k.pubs = append(k.pubs, newKafkaPublisher(k, k.window, i))
	}
	k.hearings = newKafkaHearings(k)
	k.commands = newKafkaCommands(k)
	return k, nil
}

func (k *Kafka) dial() error {
	tls, err := k.o.Security.tls()
	if err != nil {
		return err
	}
	sasl, err := k.o.Security.sasl()
	if err != nil {
		return err
	}
	k.addr = kafka.TCP(k.o.Brokers...)
	k.transport = &kafka.Transport{ClientID: "sonde", MetadataTTL: metadataTTL, DialTimeout: callTimeout, Context: k.ctx,
		MetadataTopics: []string{k.o.Stream, k.o.Stream + commandsSuffix}, TLS: tls, SASL: sasl}
	k.client = &kafka.Client{Addr: k.addr, Transport: k.transport}
	return nil
}

// call asks the broker until it answers, ctx ends or the bus is closed.
func (k *Kafka) call(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(k.ctx, cancel)()
	var permanent errPermanent
	told := false
	var err error
	for wait := firstRedial; ; wait = min(2*wait, lastRedial) {
		switch {
		case k.ctx.Err() != nil:
			return ErrClosed
		case ctx.Err() != nil && err != nil:
			return fmt.Errorf("%w; what was last said: %v", ctx.Err(), err)
		case ctx.Err() != nil:
			return ctx.Err()
		}
		once, cancel := context.WithTimeout(ctx, callTimeout)
		err = ask(once)
		cancel()
		if err == nil {
			return nil
		}
		if errors.As(err, &permanent) {
			return permanent.error
		}
		if ctx.Err() == nil && !told && wait == lastRedial && !k.lost.Load() { // else that was said already
			k.log.Warn("the bus did not answer; asking again until it does", "error", err)
			told = true
		}
		sleep(ctx, wait)
	}
}

func (k *Kafka) now() int64 { return int64(time.Since(started)) }

// heard books whether a question that began at some time was answered. A failure
// counts only when nothing was answered since, and when it tells of the broker: not
// when whoever asked had no more time, or when the topic is what is missing.
func (k *Kafka) heard(began int64, err error) {
	impatient := errors.Is(err, context.Canceled) ||
		errors.Is(err, context.DeadlineExceeded) && k.now()-began < int64(callTimeout)/2
	switch {
	case err == nil || isKafkaAnswer(err):
		k.answered.Store(k.now())
		if k.lost.Swap(false) {
			k.metrics.connections.Inc()
			k.log.Info("connected to the bus")
		}
		k.metrics.connected.Set(1)
	case k.ctx.Err() == nil && k.answered.Load() <= began && !impatient && !noSuchTopic(err):
		if !k.lost.Swap(true) {
			k.log.Warn("the connection to the bus is lost; connecting again", "error", err)
		}
		k.metrics.connected.Set(0)
	}
}

// probe keeps what is known of the broker and of its stream fresh.
func (k *Kafka) probe() {
	for i := 0; k.ctx.Err() == nil; i = (i + 1) % k.o.Partitions { // one after the other, whatever their number
		sleep(k.ctx, probeEvery)
		ctx, cancel := context.WithTimeout(k.ctx, callTimeout)
		// What it finds goes into the metrics; that it finds nothing is booked where it asks.
		_, _ = k.look(ctx, i)
		cancel()
	}
}

// Partitions implements Bus.
func (k *Kafka) Partitions() int { return k.o.Partitions }

// share is the bound of each partition in bytes, 0: none.
func (k *Kafka) share() uint64 {
	if k.o.MaxBytes == 0 {
		return 0
	}
	return max(1, uint64(k.o.MaxBytes)/uint64(k.o.Partitions))
}

// Publish implements Bus.
func (k *Kafka) Publish(ctx context.Context, m Message, done func(seq uint64, err error)) error {
	return k.pubs[PartitionOf(m.Subject, len(k.pubs))].publish(ctx, m, done)
}

// Trouble says why the bus takes nothing now, "" when nothing is known against it.
func (k *Kafka) Trouble() string {
	if !k.Connected() {
		return "the connection to the broker is lost; it is tried again"
	}
	for _, p := range k.pubs {
		if why := p.trouble(); why != "" {
			return why
		}
	}
	return ""
}

// Connected implements Bus.
func (k *Kafka) Connected() bool { return !k.lost.Load() && k.ctx.Err() == nil }

// Close implements Bus.
func (k *Kafka) Close() error {
	k.cancel()
	k.window.close()
	for _, p := range k.pubs {
		p.close()
	}
	k.workers.Wait()
	k.transport.CloseIdleConnections()
	k.metrics.connected.Set(0)
	return nil
}
