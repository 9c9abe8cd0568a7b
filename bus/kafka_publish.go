package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	kafka "github.com/segmentio/kafka-go"
)

const (
	// kafkaBatchBytes is where a batch closes; a larger message is one of its own.
	kafkaBatchBytes    = 1 << 20
	kafkaBatchMessages = 1024
	// fullPoll is how often a full stream is looked at, at most.
	fullPoll = 250 * time.Millisecond
)

// kafkaPublisher sends the queue of one partition to Kafka. One batch is under way at
// a time, and it is repeated until it is acknowledged: so nothing overtakes it,
// whatever happens to the broker. Where an acknowledgement was lost, the batch is
// stored twice. Meanwhile the next batch is being encoded.
type kafkaPublisher struct {
	queue
	k         *Kafka
	partition int
	size      *streamSize
	trimmed   chan struct{} // there may be room in a full stream
	encoded   chan *kafkaBatch
	buffers   chan []byte // that nobody reads any more
	batched   uint64      // index behind the last message that is in a batch; guarded by queue.mu
}

// kafkaBatch is some messages, encoded.
type kafkaBatch struct {
	entries []*entry
	bytes   []byte
	failed  bool // an attempt failed: on its connection something may read bytes still
}

func newKafkaPublisher(k *Kafka, w *window, partition int) *kafkaPublisher {
	return &kafkaPublisher{queue: newQueue(w, k.checkMessage), k: k, partition: partition, size: &streamSize{},
		trimmed: make(chan struct{}, 1), encoded: make(chan *kafkaBatch), buffers: make(chan []byte, 2)}
}

// checkMessage is why a message can never be taken.
func (k *Kafka) checkMessage(m *Message) error {
	if most := k.limit.Load(); int64(len(m.Data)) > most {
		return fmt.Errorf("publish %d bytes to %s; the topic takes at most %d: %w", len(m.Data), m.Subject, most, ErrRefused)
	}
	return checkSubject(m)
}

// encode makes batches of what is in the queue until the bus is closed.
func (p *kafkaPublisher) encode() {
	for p.k.ctx.Err() == nil {
		b := p.next()
		if b == nil {
			select {
			case <-p.signal:
			case <-p.k.ctx.Done():
			}
			continue
		}
		select {
		case p.encoded <- b:
		case <-p.k.ctx.Done():
		}
	}
}

// run sends one batch after another until the bus is closed.
func (p *kafkaPublisher) run() {
	p.k.workers.Go(p.encode)
	for {
		select {
		case b := <-p.encoded:
			p.send(b)
		case <-p.k.ctx.Done():
			return
		}
	}
}

// next is the next batch, or nil.
func (p *kafkaPublisher) next() *kafkaBatch {
	var entries []*entry
	p.mu.Lock()
	p.batched = max(p.batched, p.base)
	bytes, bound := 0, int(min(kafkaBatchBytes, p.k.limit.Load()))
	for _, e := range p.entries[p.batched-p.base:] {
		if e.err == nil {
			bytes += len(e.m.Data) + len(e.m.Subject) + recordOverhead
			if len(entries) == kafkaBatchMessages || len(entries) > 0 && bytes > bound {
				break
			}
			e.reading = true
			entries = append(entries, e)
		}
		p.batched++
	}
	p.mu.Unlock()
	if len(entries) == 0 {
		return nil
	}
	return p.encodeNow(entries)
}

// encodeNow writes messages that are marked as being encoded.
func (p *kafkaPublisher) encodeNow(entries []*entry) *kafkaBatch {
	records := make([]batchRecord, len(entries))
	for i, e := range entries {
		records[i] = batchRecord{key: e.m.Subject, value: e.m.Data}
	}
	var buffer []byte
	select {
	case buffer = <-p.buffers:
	default:
	}
	b := &kafkaBatch{entries: entries, bytes: encodeBatch(buffer, time.Now().UnixMilli(), records)}
	p.mu.Lock()
	var gone []*entry
	for _, e := range entries {
		if e.reading = false; e.err != nil {
			gone = append(gone, e)
		}
	}
	p.mu.Unlock()
	for _, e := range gone {
		p.finish(e)
	}
	if len(gone) > 0 {
		p.settle()
	}
	return b
}

// alone makes a batch of one message, nil when it was given up.
func (p *kafkaPublisher) alone(e *entry) *kafkaBatch {
	p.mu.Lock()
	wanted := e.err == nil
	e.reading = wanted
	p.mu.Unlock()
	if !wanted {
		return nil
	}
	return p.encodeNow([]*entry{e})
}

// wanted says whether anybody waits for a batch still.
func (p *kafkaPublisher) wanted(b *kafkaBatch) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(b.entries, func(e *entry) bool { return e.err == nil })
}

// send repeats a batch until the broker took it, refused it, or nobody waits for it.
func (p *kafkaPublisher) send(b *kafkaBatch) {
	r := kafkaRecovery{p: p}
	defer p.size.settled()
	for p.k.ctx.Err() == nil && p.wanted(b) {
		if bound := p.k.share(); bound > 0 && !p.size.fits(uint64(len(b.bytes)), bound) {
			if len(b.entries) > 1 { // a part of it may fit
				p.sendEach(b)
				return
			}
			r.full()
			continue
		}
		p.size.begin()
		offset, err := p.k.produce(p.k.ctx, p.k.o.Stream, p.partition, b.bytes)
		switch {
		case err == nil:
			p.size.sent(offset, len(b.entries), uint64(len(b.bytes)))
			p.acknowledged(b, offset)
			return
		case refusedByKafka(err) && len(b.entries) > 1: // one of them: find out which
			p.sendEach(b)
			return
		case refusedByKafka(err):
			m := &b.entries[0].m
			p.giveUp(b.entries[0], fmt.Errorf("publish %d bytes to %s: %w: %w", len(m.Data), m.Subject, ErrRefused, err))
			return
		}
		b.failed = true
		r.failed(err, len(b.entries))
	}
}

// sendEach sends the messages of a batch one by one.
func (p *kafkaPublisher) sendEach(b *kafkaBatch) {
	for _, e := range b.entries {
		if one := p.alone(e); one != nil {
			p.send(one)
		}
	}
}

// refusedByKafka says that no repetition changes the answer.
func refusedByKafka(err error) bool {
	for _, code := range []kafka.Error{kafka.MessageSizeTooLarge, kafka.RecordListTooLarge, kafka.InvalidRecord} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

func (p *kafkaPublisher) acknowledged(b *kafkaBatch, offset int64) {
	p.say("")
	p.mu.Lock()
	for i, e := range b.entries {
		if !e.finished && e.err == nil {
			e.answered, e.seq = true, uint64(offset)+uint64(i)+1
		}
	}
	p.mu.Unlock()
	p.settle()
	if b.failed {
		return
	}
	// The broker answered the only attempt, so that nothing reads the batch any more.
	select {
	case p.buffers <- b.bytes:
	default:
	}
}

// kafkaRecovery is the state of a run of failures of one batch.
type kafkaRecovery struct {
	p    *kafkaPublisher
	wait time.Duration
	told bool
}

// full waits until the stream may have room again.
func (r *kafkaRecovery) full() {
	k := r.p.k
	k.metrics.failures.WithLabelValues(failedFull).Inc()
	if r.wait = min(max(2*r.wait, firstRedial), fullPoll); r.wait == fullPoll && !r.told {
		r.told = true
		r.p.say("the stream is full")
		k.log.Warn("the stream is full; publishing waits until it is trimmed", "topic", k.o.Stream,
			"partition", r.p.partition, "max_bytes", k.share())
	}
	t := time.NewTimer(r.wait)
	select { // a Trim of this process wakes at once
	case <-r.p.trimmed:
	case <-t.C:
	case <-k.ctx.Done():
	}
	t.Stop()
	ctx, cancel := context.WithTimeout(k.ctx, callTimeout)
	defer cancel()
	// What it finds, or that it finds nothing, shows at the next attempt.
	_, _ = k.look(ctx, r.p.partition)
}

// failed waits before the batch is sent again.
func (r *kafkaRecovery) failed(err error, messages int) {
	k := r.p.k
	reason := failedDisconnected
	switch {
	case isKafkaAnswer(err):
		reason = failedUnavailable
	case errors.Is(err, context.DeadlineExceeded):
		reason = failedTimeout
	}
	k.metrics.failures.WithLabelValues(reason).Inc()
	k.metrics.repeated.Add(float64(messages))
	if r.wait = min(max(2*r.wait, firstRedial), lastRedial); r.wait == lastRedial && !r.told && k.ctx.Err() == nil {
		r.told = true
		if why := refusal(err); why != "" {
			err = errors.New(why)
		}
		r.p.say("messages are not taken, " + reason + ": " + err.Error())
		k.log.Warn("the bus does not take messages; publishing waits", "topic", k.o.Stream, "partition", r.p.partition,
			"reason", reason, "error", err)
	}
	sleep(k.ctx, r.wait)
	if errors.Is(err, kafka.UnknownTopicOrPartition) || noSuchTopic(err) {
		ctx, cancel := context.WithTimeout(k.ctx, callTimeout)
		defer cancel()
		if _, err := k.ensure(ctx, k.o.Stream, r.p.partition); err != nil && k.ctx.Err() == nil && !r.told {
			k.log.Warn("look for the topic", "error", err)
		}
	}
}
