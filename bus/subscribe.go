package bus

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// pullBytes is what one pull may ask for: at least one message of the largest
	// size, and far less than the server buffers for a connection.
	pullBytes = 32 << 20
	// heartbeat of a pull; a broker that misses two is taken for dead.
	heartbeat = 5 * time.Second
	// idleCheck is how often a reader that gets nothing looks whether the stream has
	// moved on without it.
	idleCheck = 5 * time.Second
	// forgetConsumer is when the broker forgets a reader that is gone.
	forgetConsumer = time.Minute
)

// subscription reads the stream with one consumer after another: whatever goes
// wrong, the next one starts behind the last message that was delivered.
type subscription struct {
	n         *NATS
	partition int
	stream    string // of JetStream
	filters   []string
	atNATS    []string        // filters that the broker applies
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc

	place
	idle        time.Duration
	owed        uint64        // end of the stream at the last look, if beyond next; 0: it was not, or something came
	skippedTo   atomic.Uint64 // where next last moved on over messages of others
	quiet       time.Time     // since when nothing has come, or since the last look at why
	consumer    jetstream.Consumer
	messages    jetstream.MessagesContext
	stop        func() // forgets the end of the connection
	consumerSeq uint64 // of the last message of this consumer
	err         error  // final
}

// Subscribe implements Bus. With filters, a Trim that overtakes a running reader
// is noticed only when the reader has to start a new consumer, and may then be told
// although it took only messages of others.
func (n *NATS) Subscribe(ctx context.Context, o SubscribeOptions) (Subscription, error) {
	if err := checkPartition(n.o.Stream, o.Partition, n.Partitions()); err != nil {
		return nil, err
	}
	s := &subscription{n: n, partition: o.Partition, stream: n.o.streamName(o.Partition), filters: o.Filters,
		place: place{next: o.From, incarnation: o.Incarnation}, idle: idleCheck}
	if !overlap(o.Filters) { // the broker takes no filters that overlap
		for _, f := range o.Filters {
			s.atNATS = append(s.atNATS, n.o.wireFilter(f))
		}
	}
	if err := s.findTime(ctx, &o, func(ctx context.Context) (uint64, StreamInfo, error) {
		return n.at(ctx, s, o.Since)
	}); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(n.link.ctx)
	if o.From == FromNew || o.Incarnation == "" {
		// What "new" and "any" mean is decided now, not at the first Next.
		info, err := n.Info(ctx, o.Partition)
		if err != nil {
			s.cancel()
			return nil, fmt.Errorf("subscribe: %w", err)
		}
		s.resolve(info)
	}
	n.mu.Lock()
	n.subscriptions[s] = true
	n.mu.Unlock()
	return s, nil
}

// Next implements Subscription.
func (s *subscription) Next(ctx context.Context) (Delivery, error) {
	for s.err == nil {
		if s.ctx.Err() != nil {
			s.end(ErrClosed)
			break
		}
		if err := ctx.Err(); err != nil {
			return Delivery{}, err
		}
		if s.messages == nil {
			if err := s.open(ctx); err != nil {
				if ctx.Err() != nil {
					return Delivery{}, ctx.Err()
				}
				s.end(err)
			}
			continue
		}
		m, err := s.wait(ctx)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
				if errors.Is(err, jetstream.ErrNoHeartbeat) { // else the connection says it
					s.n.log.Warn("the reader at the broker is silent; starting another one", "stream", s.stream, "position", s.next)
				}
				s.drop()
			}
			continue
		}
		if d, ok := s.take(ctx, m); ok {
			return d, nil
		}
	}
	return Delivery{}, s.err
}

// wait waits for the next message of the consumer. When nothing has come for a while,
// over however many calls, it ends with DeadlineExceeded, after it looked for the reason.
func (s *subscription) wait(ctx context.Context) (jetstream.Msg, error) {
	short, cancel := context.WithTimeout(ctx, max(time.Millisecond, s.idle-time.Since(s.quiet)))
	defer cancel()
	m, err := s.messages.Next(jetstream.NextContext(short))
	if err == nil {
		s.owed, s.quiet = 0, time.Now()
	} else if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		s.silence(ctx)
	}
	return m, err
}

// silence finds out why nothing comes although the stream has moved on. Twice in a row
// must it have, as messages may be on their way. Then either they are messages of others,
// and the reader moves over them: these may be trimmed without harm to it. Or the server
// of a cluster that reads for us has fallen behind the one that leads the stream, as after
// an error of its disk; it sends heartbeats all the same, so another consumer is made,
// perhaps elsewhere. Where the broker does not answer, the reader stays as it is.
func (s *subscription) silence(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	info, err := s.n.Info(ctx, s.partition)
	if err != nil { // asked again by the next call
		return
	}
	before := s.owed
	s.owed, s.quiet = 0, time.Now()
	if !s.belongs(info.Incarnation) || info.Last < s.next {
		return
	}
	s.owed = info.Last
	if before == 0 {
		return
	}
	if len(s.atNATS) > 0 {
		c, err := s.consumer.Info(ctx)
		if err != nil {
			return
		}
		if c.NumPending == 0 && c.Delivered.Consumer == s.consumerSeq {
			s.next = before + 1
			s.skippedTo.Store(s.next)
			return
		}
	}
	s.n.log.Warn("the stream moves on and its reader at the broker does not; starting another one", "stream", s.stream,
		"position", s.next, "last", info.Last)
	s.owed = 0
	s.drop()
}

// take checks the place of a message: after the last one of its consumer, and,
// where nothing is filtered, after the last one of the stream.
func (s *subscription) take(ctx context.Context, m jetstream.Msg) (d Delivery, ok bool) {
	meta, err := m.Metadata()
	if err != nil || meta.Sequence.Consumer != s.consumerSeq+1 {
		s.drop()
		return d, false
	}
	s.consumerSeq++
	seq := meta.Sequence.Stream
	switch {
	case seq < s.next:
		return d, false
	case seq > s.next && len(s.atNATS) == 0:
		// Only Trim takes messages away.
		info, err := s.n.Info(ctx, s.partition)
		if err != nil {
			s.drop()
			return d, false
		}
		s.end(&TrimmedError{Want: s.next, First: max(info.First, seq)})
		if !s.belongs(info.Incarnation) {
			s.end(s.recreated(info))
		}
		return d, false
	}
	s.next = seq + 1
	subject := s.n.o.plainSubject(m.Subject())
	if !MatchAny(s.filters, subject) {
		return d, false
	}
	data := m.Data()
	s.n.metrics.delivered.Inc()
	s.n.metrics.deliveredBytes.Add(float64(len(data)))
	return Delivery{Partition: s.partition, Seq: seq, Subject: subject, Data: data, Stored: meta.Timestamp}, true
}

// open starts a consumer at the wanted position.
func (s *subscription) open(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	return s.n.link.call(ctx, func(ctx context.Context, c *connection) error {
		before, err := s.look(ctx, c)
		if err != nil {
			return err
		}
		o := s.consumerConfig()
		o.DeliverPolicy, o.OptStartSeq, o.InactiveThreshold = jetstream.DeliverByStartSequencePolicy, s.next, forgetConsumer
		consumer, err := c.js.CreateConsumer(ctx, s.stream, o)
		if err != nil {
			return fmt.Errorf("read stream %s from %d: %w", s.stream, s.next, permanentAnswer(err))
		}
		// The stream may have been made anew or trimmed between the look and the consumer.
		if after, err := s.look(ctx, c); err != nil || after.Incarnation != before.Incarnation {
			return errors.Join(err, errors.New("the stream changed while a reader started"))
		}
		s.consumer = consumer
		s.messages, err = consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(4096, pullBytes),
			jetstream.PullHeartbeat(heartbeat), jetstream.WithMessagesErrOnMissingHeartbeat(true))
		if err != nil {
			s.messages = nil
			return fmt.Errorf("read stream %s: %w", s.stream, err)
		}
		s.consumerSeq, s.owed, s.quiet = 0, 0, time.Now()
		stop1, stop2 := context.AfterFunc(c, s.messages.Stop), context.AfterFunc(s.ctx, s.messages.Stop)
		s.stop = func() { stop1(); stop2() }
		return nil
	})
}

// consumerConfig is a reader of the broker, which nobody shares.
func (s *subscription) consumerConfig() jetstream.ConsumerConfig {
	o := jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy, FilterSubjects: s.atNATS, MemoryStorage: true,
		Replicas: 1, MaxDeliver: 1}
	if len(s.atNATS) == 1 { // asked for like this, access rules of the broker can bind it to a prefix
		o.FilterSubject, o.FilterSubjects = s.atNATS[0], nil
	}
	return o
}

// look checks that the wanted position exists or will.
func (s *subscription) look(ctx context.Context, c *connection) (StreamInfo, error) {
	i, err := s.n.ensureStream(ctx, c, s.partition)
	if err != nil {
		return StreamInfo{}, err
	}
	info := s.n.infoOf(i, s.partition)
	if !s.belongs(info.Incarnation) {
		return info, errPermanent{s.recreated(info)}
	}
	s.resolve(info)
	switch {
	case s.next > info.Last+1:
		return info, errPermanent{fmt.Errorf("stream %s ends at %d and position %d is wanted: it lost its end: %w", info.Name,
			info.Last, s.next, ErrIncarnation)}
	case s.next < info.First:
		return info, errPermanent{&TrimmedError{Want: s.next, First: info.First}}
	}
	return info, nil
}

func (s *subscription) recreated(info StreamInfo) error {
	return fmt.Errorf("stream %s was made anew at %s: read it from its start: %w", info.Name, info.Incarnation,
		ErrIncarnation)
}

// drop gives up the consumer; the next one starts behind the last message.
func (s *subscription) drop() {
	if s.messages == nil {
		return
	}
	s.stop()
	s.messages.Stop()
	s.messages = nil
}

// end makes an error final.
func (s *subscription) end(err error) {
	s.drop()
	s.err = err
}

// Close implements Subscription.
func (s *subscription) Close() {
	s.cancel()
	s.n.mu.Lock()
	delete(s.n.subscriptions, s)
	s.n.mu.Unlock()
}
