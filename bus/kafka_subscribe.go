package bus

import (
	"context"
	"errors"
	"fmt"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// lostEndChecks is how often the broker must say that the stream ends before the
// wanted position until it is believed: a new leader learns the end a moment late.
const lostEndChecks = 5

// kafkaSubscription reads ahead of its user: one answer of the broker waits, and
// one is on its way.
type kafkaSubscription struct {
	k         *Kafka
	partition int
	filters   []string
	place
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	chunks chan kafkaChunk
	ready  []Delivery // of the user's goroutine, as err is
	err    error      // final
}

// kafkaChunk is what one answer brought, or why there will be no more.
type kafkaChunk struct {
	deliveries []Delivery
	err        error
}

// Subscribe implements Bus. Filters are applied here: everything is read.
func (k *Kafka) Subscribe(ctx context.Context, o SubscribeOptions) (Subscription, error) {
	if err := checkPartition(k.o.Stream, o.Partition, k.Partitions()); err != nil {
		return nil, err
	}
	s := &kafkaSubscription{k: k, partition: o.Partition, filters: o.Filters,
		place: place{next: o.From, incarnation: o.Incarnation}, chunks: make(chan kafkaChunk, 1)}
	if err := s.findTime(ctx, &o, func(ctx context.Context) (uint64, StreamInfo, error) {
		return k.at(ctx, o.Partition, o.Since)
	}); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(k.ctx)
	if o.From == FromNew || o.Incarnation == "" {
		// What "new" and "any" mean is decided now, not at the first message.
		info, err := k.Info(ctx, o.Partition)
		if err != nil {
			s.cancel()
			return nil, fmt.Errorf("subscribe: %w", err)
		}
		s.resolve(info)
	}
	k.mu.Lock()
	k.subscriptions[s] = true
	k.mu.Unlock()
	k.workers.Go(s.run)
	return s, nil
}

// Next implements Subscription.
func (s *kafkaSubscription) Next(ctx context.Context) (Delivery, error) {
	for {
		switch {
		case s.ctx.Err() != nil:
			return Delivery{}, ErrClosed
		case s.err != nil:
			return Delivery{}, s.err
		case ctx.Err() != nil:
			return Delivery{}, ctx.Err()
		case len(s.ready) > 0:
			d := s.ready[0]
			s.ready[0] = Delivery{} // its data belong to the receiver alone
			s.ready = s.ready[1:]
			s.k.metrics.delivered.Inc()
			s.k.metrics.deliveredBytes.Add(float64(len(d.Data)))
			return d, nil
		}
		select {
		case c := <-s.chunks:
			s.ready, s.err = c.deliveries, c.err
		case <-ctx.Done():
		case <-s.ctx.Done():
		}
	}
}

// run reads until the subscription is closed or cannot go on.
func (s *kafkaSubscription) run() {
	looked, wait := false, firstRedial
	for s.ctx.Err() == nil {
		if !looked {
			if err := s.look(); err != nil {
				s.push(kafkaChunk{err: err})
				return
			}
			looked = true
		}
		got, err := s.k.fetch(s.ctx, s.k.o.Stream, s.partition, int64(s.next)-1)
		if err == nil {
			err = s.take(got)
		}
		var permanent errPermanent
		switch {
		case err == nil:
			wait = firstRedial
			if id, _ := s.k.lastID.Load().(string); len(got.records) == 0 && !s.belongs(id) {
				looked = false // the topic is another one, which happens to end where the old one did
			}
			continue
		case errors.As(err, &permanent) && (errors.Is(err, ErrIncarnation) || errors.Is(err, ErrTrimmed)):
			s.push(kafkaChunk{err: permanent.error})
			return
		}
		// Whatever it was, whether the position still exists is asked for anew.
		looked = false
		sleep(s.ctx, wait)
		wait = min(2*wait, lastRedial)
	}
}

func (s *kafkaSubscription) push(c kafkaChunk) {
	select {
	case s.chunks <- c:
	case <-s.ctx.Done():
	}
}

// take hands over what was fetched, once the topic is known to be the same still:
// the broker is asked after it answered, so that the messages are of before.
func (s *kafkaSubscription) take(got fetched) error {
	if len(got.records) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	t, err := s.k.describe(ctx, s.k.o.Stream, s.partition)
	if err != nil {
		return err
	}
	if !s.belongs(t.id) {
		return errPermanent{s.k.recreated(StreamInfo{Name: s.k.o.Stream, Incarnation: t.id})}
	}
	first, last := uint64(got.records[0].offset)+1, uint64(got.records[len(got.records)-1].offset)+1
	if first > s.next {
		// Only Trim takes messages away; the marks of transactions of others are none.
		start, err := s.k.offset(ctx, s.k.o.Stream, s.partition, offsetStart)
		if err != nil {
			return err
		}
		if uint64(start)+1 > s.next {
			return errPermanent{&TrimmedError{Want: s.next, First: uint64(start) + 1}}
		}
	}
	var out []Delivery
	bytes := uint64(0)
	for i := range got.records {
		r := &got.records[i]
		bytes += uint64(len(r.key) + len(r.value) + 16)
		if ValidSubject(r.key) && Match(Subjects, r.key) && MatchAny(s.filters, r.key) {
			out = append(out, Delivery{Partition: s.partition, Seq: uint64(r.offset) + 1, Subject: r.key, Data: r.value,
				Stored: msTime(r.time)})
		}
	}
	s.k.pubs[s.partition].size.read(t.id, int64(first)-1, int64(last), bytes)
	if len(out) > 0 {
		s.push(kafkaChunk{deliveries: out})
	}
	s.next = last + 1
	return nil
}

// look checks that the wanted position exists or will.
func (s *kafkaSubscription) look() error {
	checks := 0
	return s.k.call(s.ctx, func(ctx context.Context) error {
		info, err := s.k.look(ctx, s.partition)
		if err != nil {
			return err
		}
		if !s.belongs(info.Incarnation) {
			return errPermanent{s.k.recreated(info)}
		}
		s.resolve(info)
		switch {
		case s.next > info.Last+1:
			err := fmt.Errorf("topic %s ends at %d and position %d is wanted: it lost its end: %w", info.Name, info.Last, s.next,
				ErrIncarnation)
			if checks++; checks < lostEndChecks {
				return err
			}
			return errPermanent{err}
		case s.next < info.First:
			return errPermanent{&TrimmedError{Want: s.next, First: info.First}}
		}
		return nil
	})
}

// Close implements Subscription.
func (s *kafkaSubscription) Close() {
	s.cancel()
	s.k.mu.Lock()
	delete(s.k.subscriptions, s)
	s.k.mu.Unlock()
}

// noSuchTopic says that the library does not know of the topic.
func noSuchTopic(err error) bool {
	return errors.Is(err, protocol.ErrNoTopic) || errors.Is(err, protocol.ErrNoPartition) ||
		errors.Is(err, kafka.UnknownTopicID)
}
