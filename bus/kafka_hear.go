package bus

import (
	"context"
	"sync"
)

// kafkaHearings are the calls of Hear. They share one reader of the end of
// each partition, which run while there are any.
type kafkaHearings struct {
	k *Kafka

	mu    sync.Mutex // order: mu → kafkaHearing.mu
	all   map[*kafkaHearing]bool
	tails []*kafkaTail       // by partition
	stop  context.CancelFunc // of them
}

// kafkaHearing is one call of Hear.
type kafkaHearing struct {
	filters []string

	mu      sync.Mutex // held while a message is heard
	hear    func(subject string, data []byte)
	stopped bool
}

func newKafkaHearings(k *Kafka) *kafkaHearings {
	return &kafkaHearings{k: k, all: map[*kafkaHearing]bool{}}
}

// Hear implements Bus. Kafka shows a message to nobody before it is stored: what
// is heard here comes from a reader that waits at the end of the topic.
func (k *Kafka) Hear(filters []string, hear func(subject string, data []byte)) (stop func(), err error) {
	if k.ctx.Err() != nil {
		return nil, ErrClosed
	}
	h := &kafkaHearing{filters: filters, hear: hear}
	tails := k.hearings.add(h)
	// From now on means from this return on, unless the broker is away.
	ctx, cancel := context.WithTimeout(k.ctx, callTimeout)
	defer cancel()
	for _, tail := range tails {
		select {
		case <-tail.ready:
		case <-ctx.Done():
		}
	}
	return sync.OnceFunc(func() { k.hearings.remove(h) }), nil
}

func (s *kafkaHearings) add(h *kafkaHearing) []*kafkaTail {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[h] = true
	if s.tails == nil {
		ctx, cancel := context.WithCancel(s.k.ctx)
		s.stop = cancel
		for i := range s.k.o.Partitions {
			tail := s.k.newTail(s.k.o.Stream, i, s.take, func(lost int64) { s.k.metrics.unheard.Add(float64(lost)) })
			s.tails = append(s.tails, tail)
			s.k.workers.Go(func() { tail.run(ctx) })
		}
	}
	return s.tails
}

func (s *kafkaHearings) remove(h *kafkaHearing) {
	s.mu.Lock()
	delete(s.all, h)
	if len(s.all) == 0 && s.tails != nil {
		s.stop()
		s.tails = nil
	}
	s.mu.Unlock()
	h.mu.Lock()
	h.stopped = true
	h.mu.Unlock()
}

func (s *kafkaHearings) take(r *fetchedRecord) {
	s.mu.Lock()
	var hearers []*kafkaHearing
	for h := range s.all {
		if MatchAny(h.filters, r.key) {
			hearers = append(hearers, h)
		}
	}
	s.mu.Unlock()
	for i, h := range hearers {
		data := r.value
		if i > 0 { // data belong to who hears them
			data = append([]byte(nil), data...)
		}
		h.mu.Lock()
		if !h.stopped {
			h.hear(r.key, data)
		}
		h.mu.Unlock()
	}
}
