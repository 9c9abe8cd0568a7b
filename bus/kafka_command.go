package bus

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// commandLife is how long a command waits for its reply at most. A command that
	// is older is not carried out.
	commandLife = 5 * time.Second
	// clockSkew is how much the clocks of two machines may differ on top of that.
	clockSkew = time.Minute

	headerCommand = "sonde-command" // id of a command, on the command itself
	headerReply   = "sonde-reply"   // the same id, on its reply
)

// kafkaCommands carries commands, their replies and broadcasts through one topic, which
// each process that sends, serves or listens follows.
type kafkaCommands struct {
	k     *Kafka
	topic string

	mu        sync.Mutex // a leaf
	tail      *kafkaTail
	servers   map[*kafkaServed]bool
	listeners map[*kafkaListening]bool
	waiting   map[string]chan []byte // by id of the command
}

// kafkaServed is a subject whose commands are answered, one at a time.
type kafkaServed struct {
	subject string
	handle  func([]byte) []byte
	queue   chan command

	mu      sync.Mutex // held while a command is handled
	stopped bool
}

type command struct {
	id   string
	data []byte
}

func newKafkaCommands(k *Kafka) *kafkaCommands {
	return &kafkaCommands{k: k, topic: k.o.Stream + commandsSuffix, servers: map[*kafkaServed]bool{},
		listeners: map[*kafkaListening]bool{}, waiting: map[string]chan []byte{}}
}

// follow starts to read the topic, once.
func (c *kafkaCommands) follow() *kafkaTail {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tail == nil {
		c.tail = c.k.newTail(c.topic, 0, c.take, nil)
		tail := c.tail
		c.k.workers.Go(func() { tail.run(c.k.ctx) })
	}
	return c.tail
}

// Request implements Bus. A command is sent once: where that fails, it may have
// been carried out. That nobody serves it shows only in that no reply comes.
func (k *Kafka) Request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	reply, err := k.commands.request(ctx, subject, data)
	switch {
	case err == nil:
		k.metrics.requests.WithLabelValues("answered").Inc()
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		k.metrics.requests.WithLabelValues("nobody").Inc()
	default:
		k.metrics.requests.WithLabelValues("failed").Inc()
	}
	if err != nil && !errors.Is(err, ErrClosed) {
		err = fmt.Errorf("request %s: %w: %w", subject, ErrNoReply, err)
	}
	return reply, err
}

func (c *kafkaCommands) request(ctx context.Context, subject string, data []byte) ([]byte, error) {
	if c.k.ctx.Err() != nil {
		return nil, ErrClosed
	}
	tail := c.follow()
	ctx, cancel := context.WithTimeout(ctx, commandLife)
	defer cancel()
	select { // the reply must not come before somebody looks for it
	case <-tail.ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.k.ctx.Done():
		return nil, ErrClosed
	}
	var random [16]byte
	rand.Read(random[:])
	id := hex.EncodeToString(random[:])
	reply := make(chan []byte, 1)
	c.mu.Lock()
	c.waiting[id] = reply
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}()
	if err := c.send(ctx, subject, headerCommand, id, data); err != nil {
		return nil, err
	}
	select {
	case data := <-reply:
		return data, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.k.ctx.Done():
		return nil, ErrClosed
	}
}

func (c *kafkaCommands) send(ctx context.Context, subject, header, id string, data []byte) error {
	batch := encodeBatch(nil, time.Now().UnixMilli(), []batchRecord{{key: subject, value: data,
		headers: [][2]string{{header, id}}}})
	_, err := c.k.produce(ctx, c.topic, 0, batch)
	return err
}

// Serve implements Bus.
func (k *Kafka) Serve(subject string, handle func(data []byte) []byte) (stop func(), err error) {
	if !ValidSubject(subject) {
		return nil, fmt.Errorf("serve %q: that is no subject", subject)
	}
	if k.ctx.Err() != nil {
		return nil, ErrClosed
	}
	c := k.commands
	s := &kafkaServed{subject: subject, handle: handle, queue: make(chan command, maxCommands)}
	c.mu.Lock()
	c.servers[s] = true
	c.mu.Unlock()
	k.workers.Go(func() { c.serve(s) })
	c.awaitTail()
	return sync.OnceFunc(func() { c.stop(s) }), nil
}

func (c *kafkaCommands) stop(s *kafkaServed) {
	c.mu.Lock()
	delete(c.servers, s)
	close(s.queue)
	c.mu.Unlock()
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
}

// take hands a command to who serves it, and a reply to who waits for it.
func (c *kafkaCommands) take(r *fetchedRecord) {
	if id := r.header(headerReply); id != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if reply := c.waiting[string(id)]; reply != nil {
			delete(c.waiting, string(id)) // the first reply counts
			reply <- r.value
		}
		return
	}
	id := r.header(headerCommand)
	if id == nil {
		if r.header(headerBroadcast) != nil {
			c.spread(r)
		}
		return
	}
	if age := time.Since(msTime(r.time)); age > commandLife+clockSkew {
		c.k.log.Warn("a command is too old to be carried out", "subject", r.key, "age_s", age.Seconds())
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.servers {
		if s.subject != r.key {
			continue
		}
		select {
		case s.queue <- command{id: string(id), data: r.value}:
		default:
			c.k.log.Warn("too many commands wait; one is lost", "subject", r.key, "waiting", maxCommands)
		}
	}
}

// serve answers the commands of one subject until it is stopped.
func (c *kafkaCommands) serve(s *kafkaServed) {
	for {
		select {
		case <-c.k.ctx.Done():
			return
		case m, ok := <-s.queue:
			if !ok {
				return
			}
			if reply, ok := s.answer(m.data); ok {
				c.reply(s.subject, m.id, reply)
			}
		}
	}
}

func (s *kafkaServed) answer(data []byte) (reply []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, false
	}
	return s.handle(data), true
}

// reply tries until nobody waits for it any more.
func (c *kafkaCommands) reply(subject, id string, data []byte) {
	ctx, cancel := context.WithTimeout(c.k.ctx, commandLife)
	defer cancel()
	for wait := firstRedial; ctx.Err() == nil; wait = min(2*wait, lastRedial) {
		if err := c.send(ctx, subject, headerReply, id, data); err == nil {
			return
		}
		sleep(ctx, wait)
	}
}
