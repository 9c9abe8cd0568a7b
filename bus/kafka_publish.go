package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
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

// kafkaPublisher is a window of messages that are not acknowledged, in the order
// of the calls. One batch is under way at a time, and it is repeated until it is
// acknowledged: so nothing overtakes it, whatever happens to the broker. Where an
// acknowledgement was lost, the batch is stored twice. Meanwhile the next batch is
// being encoded.
type kafkaPublisher struct {
	k       *Kafka
	signal  chan struct{} // something for the encoder to look at
	trimmed chan struct{} // there may be room in a full stream
	encoded chan *kafkaBatch
	buffers chan []byte // that nobody reads any more

	mu      sync.Mutex    // a leaf
	room    chan struct{} // closed and made anew when the window shrinks
	closed  bool
	entries []*kafkaEntry
	bytes   int64
	stuck   string // why nothing was taken for a while
}

// kafkaEntry is one message of the window.
type kafkaEntry struct {
	m        Message
	done     func(uint64, error)
	stopWait func() bool // of the context
	batched  bool        // it is in a batch
	encoding bool        // its data are being read
	err      error       // why it was given up
	finished bool        // done was called, or is about to be
}

// kafkaBatch is some messages, encoded.
type kafkaBatch struct {
	entries []*kafkaEntry
	bytes   []byte
	failed  bool // an attempt failed: on its connection something may read bytes still
}

func newKafkaPublisher(k *Kafka) *kafkaPublisher {
	return &kafkaPublisher{k: k, signal: make(chan struct{}, 1), trimmed: make(chan struct{}, 1),
		encoded: make(chan *kafkaBatch), buffers: make(chan []byte, 2), room: make(chan struct{})}
}

func wake(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// publish puts a message into the window, and waits until it fits.
func (p *kafkaPublisher) publish(ctx context.Context, m Message, done func(uint64, error)) error {
	size := int64(len(m.Data))
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return ErrClosed
		}
		room := p.room
		if len(p.entries) == 0 || p.bytes+size <= p.k.o.WindowBytes && len(p.entries) < maxWindowMessages {
			break
		}
		p.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
		}
	}
	e := &kafkaEntry{m: m, done: done}
	p.entries = append(p.entries, e)
	p.bytes += size
	p.k.metrics.published.Inc()
	p.k.metrics.publishedBytes.Add(float64(size))
	p.k.metrics.window.Set(float64(p.bytes))
	e.err = p.check(&m)
	refused := e.err
	e.stopWait = context.AfterFunc(ctx, func() { p.giveUp(e, ctx.Err()) })
	p.mu.Unlock()
	if refused != nil {
		p.giveUp(e, refused)
	}
	wake(p.signal)
	return nil
}

// check is why a message can never be taken.
func (p *kafkaPublisher) check(m *Message) error {
	if !ValidSubject(m.Subject) || !Match(Subjects, m.Subject) {
		return fmt.Errorf("publish to %q, which is no subject below %s: %w", m.Subject, Subjects, ErrRefused)
	}
	if most := p.k.limit.Load(); int64(len(m.Data)) > most {
		return fmt.Errorf("publish %d bytes to %s; the topic takes at most %d: %w", len(m.Data), m.Subject, most, ErrRefused)
	}
	return nil
}

// giveUp ends the wait for one message; done is called at once, unless its data
// are being read: then the sender calls it.
func (p *kafkaPublisher) giveUp(e *kafkaEntry, err error) {
	p.mu.Lock()
	if e.err == nil {
		e.err = err
	}
	p.mu.Unlock()
	p.finish(e, 0, e.err)
	p.mu.Lock()
	p.drop()
	p.mu.Unlock()
	wake(p.signal)
}

func (p *kafkaPublisher) finish(e *kafkaEntry, seq uint64, err error) {
	p.mu.Lock()
	call := !e.finished && !e.encoding
	e.finished = e.finished || call
	p.mu.Unlock()
	if !call {
		return
	}
	e.stopWait()
	switch {
	case err == nil:
		p.k.metrics.acknowledged.Inc()
	case errors.Is(err, ErrRefused):
		p.k.metrics.refused.Inc()
	}
	e.done(seq, err)
}

// encode makes batches of what is in the window until the bus is closed.
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
	var entries []*kafkaEntry
	p.mu.Lock()
	bytes, bound := 0, int(min(kafkaBatchBytes, p.k.limit.Load()))
	for _, e := range p.entries {
		if e.batched || e.err != nil {
			continue
		}
		bytes += len(e.m.Data) + len(e.m.Subject) + recordOverhead
		if len(entries) == kafkaBatchMessages || len(entries) > 0 && bytes > bound {
			break
		}
		e.batched, e.encoding = true, true
		entries = append(entries, e)
	}
	p.mu.Unlock()
	if len(entries) == 0 {
		return nil
	}
	return p.encodeNow(entries)
}

// encodeNow writes messages that are marked as being encoded.
func (p *kafkaPublisher) encodeNow(entries []*kafkaEntry) *kafkaBatch {
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
	var gone []*kafkaEntry
	for _, e := range entries {
		if e.encoding = false; e.err != nil {
			gone = append(gone, e)
		}
	}
	p.mu.Unlock()
	for _, e := range gone {
		p.finish(e, 0, e.err)
	}
	return b
}

// alone makes a batch of one message, nil when it was given up.
func (p *kafkaPublisher) alone(e *kafkaEntry) *kafkaBatch {
	p.mu.Lock()
	wanted := e.err == nil
	e.encoding = wanted
	p.mu.Unlock()
	if !wanted {
		return nil
	}
	return p.encodeNow([]*kafkaEntry{e})
}

// wanted says whether anybody waits for a batch still.
func (p *kafkaPublisher) wanted(b *kafkaBatch) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(b.entries, func(e *kafkaEntry) bool { return e.err == nil })
}

// drop takes what is finished off the front of the window. Callers hold the lock.
func (p *kafkaPublisher) drop() {
	n := 0
	for n < len(p.entries) && p.entries[n].finished {
		n++
	}
	if n == 0 {
		return
	}
	for i, e := range p.entries[:n] {
		p.bytes -= int64(len(e.m.Data))
		p.entries[i] = nil
	}
	p.entries = p.entries[n:]
	close(p.room)
	p.room = make(chan struct{})
	p.k.metrics.window.Set(float64(p.bytes))
}

// send repeats a batch until the broker took it, refused it, or nobody waits for it.
func (p *kafkaPublisher) send(b *kafkaBatch) {
	r := kafkaRecovery{p: p}
	defer p.k.size.settled()
	for p.k.ctx.Err() == nil && p.wanted(b) {
		if bound := p.k.o.MaxBytes; bound > 0 && !p.k.size.fits(uint64(len(b.bytes)), uint64(bound)) {
			if len(b.entries) > 1 { // a part of it may fit
				p.sendEach(b)
				return
			}
			r.full()
			continue
		}
		p.k.size.begin()
		offset, err := p.k.produce(p.k.ctx, p.k.o.Stream, b.bytes)
		switch {
		case err == nil:
			p.k.size.sent(offset, len(b.entries), uint64(len(b.bytes)))
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

// say keeps why nothing was taken for a while, "" when something was.
func (p *kafkaPublisher) say(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stuck = why
}

func (p *kafkaPublisher) trouble() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stuck
}

func (p *kafkaPublisher) acknowledged(b *kafkaBatch, offset int64) {
	p.say("")
	for i, e := range b.entries {
		p.finish(e, uint64(offset)+uint64(i)+1, nil)
	}
	p.mu.Lock()
	p.drop()
	p.mu.Unlock()
	if b.failed {
		return
	}
	// The broker answered the only attempt, so that nothing reads the batch any more.
	select {
	case p.buffers <- b.bytes:
	default:
	}
}

// close gives up everything.
func (p *kafkaPublisher) close() {
	p.mu.Lock()
	p.closed = true
	entries := append([]*kafkaEntry(nil), p.entries...)
	p.mu.Unlock()
	for _, e := range entries {
		p.giveUp(e, ErrClosed)
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
		k.log.Warn("the stream is full; publishing waits until it is trimmed", "max_bytes", k.o.MaxBytes)
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
	_, _ = k.look(ctx)
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
		k.log.Warn("the bus does not take messages; publishing waits", "reason", reason, "error", err)
	}
	sleep(k.ctx, r.wait)
	if errors.Is(err, kafka.UnknownTopicOrPartition) || noSuchTopic(err) {
		ctx, cancel := context.WithTimeout(k.ctx, callTimeout)
		defer cancel()
		if _, err := k.ensure(ctx, k.o.Stream); err != nil && k.ctx.Err() == nil && !r.told {
			k.log.Warn("look for the topic", "error", err)
		}
	}
}
