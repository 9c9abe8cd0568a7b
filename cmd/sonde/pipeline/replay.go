package pipeline

import (
	"context"
	"sync/atomic"

	"sonde/bus"
	"sonde/consumers/detector"
	"sonde/producer"
)

// Attach has the agent read a session until its epoch is closed or ctx ends.
func (p *Pipeline) Attach(ctx context.Context, s producer.Session) { p.agent.Attach(ctx, s) }

// scoredBus is the bus of an agent whose rows are scored in the same process: it
// notes how far the detector must come.
type scoredBus struct {
	bus.Bus
	detector *detector.Detector
	filters  []string
	last     []atomic.Uint64 // by partition
}

// Publish implements bus.Bus.
func (b *scoredBus) Publish(ctx context.Context, m bus.Message, done func(uint64, error)) error {
	if !bus.MatchAny(b.filters, m.Subject) {
		return b.Bus.Publish(ctx, m, done)
	}
	at := &b.last[bus.PartitionOf(m.Subject, len(b.last))]
	return b.Bus.Publish(ctx, m, func(seq uint64, err error) {
		for err == nil {
			if last := at.Load(); seq <= last || at.CompareAndSwap(last, seq) {
				break
			}
		}
		done(seq, err)
	})
}

// settled says whether everything that was acknowledged so far is scored.
func (b *scoredBus) settled() bool {
	for partition := range b.last {
		if !b.detector.Settled(partition, b.last[partition].Load()) {
			return false
		}
	}
	return true
}
