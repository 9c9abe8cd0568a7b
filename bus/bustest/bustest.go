// Package bustest is a bus in memory for tests, whose broker fails, delays,
// duplicates, refuses, forgets and is made anew on command.
package bustest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"sonde/bus"
)

// Fate is what the broker does with one attempt to publish a message.
type Fate int

// The fates.
const (
	Take      Fate = iota // stored and acknowledged
	Fail                  // not stored; the client tries again
	Duplicate             // stored twice, acknowledged once
	Refuse                // ErrRefused

	// LoseAcks stores this message and all that wait behind it, but no acknowledgement
	// arrives: the client publishes them all again.
	LoseAcks
)

// Bus is a bus.Bus. The zero value is not usable.
type Bus struct {
	mu          sync.Mutex
	changed     chan struct{} // closed and made anew whenever something changes
	hook        func(m bus.Message, attempt int) Fate
	delay       time.Duration
	stopped     bool
	closed      bool
	window      int
	maxBytes    uint64
	partitions  []partition
	pending     []*pending
	pendingSize int
	servers     map[string]func([]byte) []byte
	open        map[*subscription]bool
	hearings    map[*hearing]bool
	worker      sync.WaitGroup
}

// partition is what one partition of the stream holds.
type partition struct {
	incarnation int
	first       uint64 // position of messages[0]
	bytes       uint64
	messages    []bus.Delivery
}

func (p *partition) name() string { return fmt.Sprintf("incarnation-%d", p.incarnation) }

// end is the position that the next message gets.
func (p *partition) end() uint64 { return p.first + uint64(len(p.messages)) }

// pending is a message that is not acknowledged.
type pending struct {
	ctx      context.Context
	m        bus.Message
	attempts int
	done     func(uint64, error)
	stopWait func() bool
}

// New is a bus of one partition whose broker runs and takes everything at once.
func New() *Bus { return NewPartitioned(1) }

// NewPartitioned is one of so many partitions.
func NewPartitioned(partitions int) *Bus {
	b := &Bus{changed: make(chan struct{}), window: 64 << 20, partitions: make([]partition, partitions),
		servers: map[string]func([]byte) []byte{}, open: map[*subscription]bool{}, hearings: map[*hearing]bool{}}
	for i := range b.partitions {
		b.partitions[i] = partition{incarnation: 1, first: 1}
	}
	b.worker.Go(b.work)
	return b
}

// Partitions implements bus.Bus.
func (b *Bus) Partitions() int { return len(b.partitions) }

// OnPublish sets what decides the fate of each attempt, counted from 1 for each
// message. It must not call the bus. nil takes everything.
func (b *Bus) OnPublish(f func(m bus.Message, attempt int) Fate) { b.set(func() { b.hook = f }) }

// SetDelay makes the broker wait before each acknowledgement.
func (b *Bus) SetDelay(d time.Duration) { b.set(func() { b.delay = d }) }

// SetWindow bounds the bytes that are published and not acknowledged.
func (b *Bus) SetWindow(n int) { b.set(func() { b.window = n }) }

// SetMaxBytes bounds the stream, each partition to its share. A full partition takes
// nothing until Trim. 0: no bound.
func (b *Bus) SetMaxBytes(n uint64) { b.set(func() { b.maxBytes = n }) }

// Stop takes the broker away: nothing is taken, delivered or answered.
func (b *Bus) Stop() { b.set(func() { b.stopped = true }) }

// Start brings the broker back with what it held.
func (b *Bus) Start() { b.set(func() { b.stopped = false }) }

// Recreate makes all partitions anew: they are empty, and positions start over.
func (b *Bus) Recreate() {
	for i := range b.partitions {
		b.RecreatePartition(i)
	}
}

// RecreatePartition makes one partition anew.
func (b *Bus) RecreatePartition(i int) {
	b.set(func() { b.partitions[i] = partition{incarnation: b.partitions[i].incarnation + 1, first: 1} })
}

// Messages is what the stream holds, partition by partition. Their data must not be
// changed.
func (b *Bus) Messages() (all []bus.Delivery) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.partitions {
		all = append(all, b.partitions[i].messages...)
	}
	return all
}

func (b *Bus) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	b.wake()
}

// wake tells everybody who waits that something changed. Callers hold the lock.
func (b *Bus) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Publish implements bus.Bus.
func (b *Bus) Publish(ctx context.Context, m bus.Message, done func(uint64, error)) error {
	err := b.wait(ctx, func() (bool, error) {
		if b.pendingSize > 0 && b.pendingSize+len(m.Data) > b.window {
			return false, nil
		}
		p := &pending{ctx: ctx, m: m, done: done}
		b.pending = append(b.pending, p)
		b.pendingSize += len(m.Data)
		p.stopWait = context.AfterFunc(ctx, func() { b.set(func() {}) })
		b.wake()
		return true, nil
	})
	return err
}

// wait calls try under the lock until it is done, the bus is closed or ctx ends.
func (b *Bus) wait(ctx context.Context, try func() (bool, error)) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		b.mu.Lock()
		changed, closed := b.changed, b.closed
		var done bool
		var err error
		if !closed {
			done, err = try()
		}
		b.mu.Unlock()
		switch {
		case closed:
			return bus.ErrClosed
		case done || err != nil:
			return err
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// answer is a call of done that is due.
type answer struct {
	p   *pending
	seq uint64
	err error
}

// work takes messages in the order of the calls until the bus is closed.
func (b *Bus) work() {
	for {
		b.mu.Lock()
		changed, closed, delay := b.changed, b.closed, b.delay
		answers, busy := b.step()
		b.mu.Unlock()
		for _, a := range answers {
			a.p.stopWait()
			if delay > 0 {
				time.Sleep(delay)
			}
			a.p.done(a.seq, a.err)
		}
		if closed {
			return
		}
		if !busy && len(answers) == 0 {
			<-changed
		}
	}
}

// step answers what ended and tries the first message once whose partition has room.
// busy asks to be called again at once.
func (b *Bus) step() (answers []answer, busy bool) {
	b.pending = slices.DeleteFunc(b.pending, func(p *pending) bool {
		err := p.ctx.Err()
		if b.closed {
			err = bus.ErrClosed
		}
		if err != nil {
			b.leave(p)
			answers = append(answers, answer{p, 0, err})
		}
		return err != nil
	})
	if len(b.pending) == 0 || b.stopped || len(answers) > 0 {
		return answers, false
	}
	i := b.firstWithRoom()
	if i < 0 {
		return nil, false
	}
	p := b.pending[i]
	if refused(&p.m) {
		return []answer{b.settle(p, 0, fmt.Errorf("publish to %q: %w", p.m.Subject, bus.ErrRefused))}, true
	}
	p.attempts++
	fate := Take
	if b.hook != nil {
		fate = b.hook(p.m, p.attempts)
	}
	switch fate {
	case Fail:
		return nil, true
	case LoseAcks:
		for _, p := range b.pending[i:] {
			b.store(p.m)
		}
		return nil, true
	case Refuse:
		return []answer{b.settle(p, 0, fmt.Errorf("publish to %q: %w", p.m.Subject, bus.ErrRefused))}, true
	case Duplicate:
		b.store(p.m)
	}
	return []answer{b.settle(p, b.store(p.m), nil)}, true
}

func refused(m *bus.Message) bool {
	return !bus.ValidSubject(m.Subject) || !bus.Match(bus.Subjects, m.Subject) || len(m.Data) > bus.MaxPayloadBytes
}

// firstWithRoom is the first message that can be answered now, -1 for none: its
// partition takes it, or nobody ever does. Nothing overtakes in a partition.
func (b *Bus) firstWithRoom() int {
	full := make([]bool, len(b.partitions))
	for i, p := range b.pending {
		at := b.partitionOf(p.m.Subject)
		switch {
		case full[at]:
		case b.maxBytes == 0 || refused(&p.m) || b.partitions[at].bytes+uint64(len(p.m.Data)) <= b.share():
			return i
		default:
			full[at] = true
		}
	}
	return -1
}

func (b *Bus) partitionOf(subject string) int { return bus.PartitionOf(subject, len(b.partitions)) }

// share is the bound of each partition.
func (b *Bus) share() uint64 { return b.maxBytes / uint64(len(b.partitions)) }

// settle takes a message out of the window.
func (b *Bus) settle(p *pending, seq uint64, err error) answer {
	b.pending = slices.DeleteFunc(b.pending, func(q *pending) bool { return q == p })
	b.leave(p)
	return answer{p, seq, err}
}

func (b *Bus) leave(p *pending) {
	b.pendingSize -= len(p.m.Data)
	b.wake()
}

func (b *Bus) store(m bus.Message) uint64 {
	i := b.partitionOf(m.Subject)
	p := &b.partitions[i]
	seq := p.end()
	p.messages = append(p.messages, bus.Delivery{Partition: i, Seq: seq, Subject: m.Subject, Data: bytes.Clone(m.Data),
		Stored: time.Now()})
	p.bytes += uint64(len(m.Data))
	for h := range b.hearings {
		h.put(m)
	}
	b.wake()
	return seq
}

// Info implements bus.Bus.
func (b *Bus) Info(ctx context.Context, partition int) (info bus.StreamInfo, err error) {
	if err := b.check(partition); err != nil {
		return info, err
	}
	err = b.wait(ctx, func() (bool, error) {
		p := &b.partitions[partition]
		info = bus.StreamInfo{Name: "TEST", Partition: partition, Incarnation: p.name(), First: p.first, Last: p.end() - 1,
			Messages: uint64(len(p.messages)), Bytes: p.bytes, MaxBytes: b.share()}
		return !b.stopped, nil
	})
	return info, err
}

func (b *Bus) check(partition int) error {
	if partition < 0 || partition >= len(b.partitions) {
		return fmt.Errorf("stream TEST has no partition %d; it has %d, counted from 0", partition, len(b.partitions))
	}
	return nil
}

// Trim implements bus.Bus.
func (b *Bus) Trim(ctx context.Context, partition int, below uint64) error {
	if err := b.check(partition); err != nil {
		return err
	}
	return b.wait(ctx, func() (bool, error) {
		if b.stopped {
			return false, nil
		}
		p := &b.partitions[partition]
		for s := range b.open {
			if s.partition == partition && s.incarnation != p.name() {
				return false, fmt.Errorf("the stream is %s, not %s: %w", p.name(), s.incarnation, bus.ErrIncarnation)
			}
		}
		n := int(min(max(below, p.first), p.end()) - p.first)
		for _, m := range p.messages[:n] {
			p.bytes -= uint64(len(m.Data))
		}
		p.messages = slices.Clone(p.messages[n:])
		p.first += uint64(n)
		b.wake()
		return true, nil
	})
}

// Connected implements bus.Bus.
func (b *Bus) Connected() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.stopped && !b.closed
}

// Close implements bus.Bus.
func (b *Bus) Close() error {
	b.set(func() { b.closed = true })
	b.worker.Wait()
	return nil
}
