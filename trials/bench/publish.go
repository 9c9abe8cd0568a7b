package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// agentCost is what section b saw of the agent.
type agentCost struct {
	rows    [][]string
	figures []figure
}

// ringToAck is section b.
func (b *bench) ringToAck(ctx context.Context) (*section, error) {
	s := &section{Title: "ring to JetStream acknowledgement: agent, broker and engine are processes of their own",
		header: []string{"sync", "message", "MB/s", "to the bare nats.go client", "noise"}}
	s.notef("The bare client publishes the same messages, ready made, to the same broker with the same window (%d MiB).",
		inflightBytes>>20)
	cost := &agentCost{}
	for _, sync := range []string{"always", "interval"} {
		for _, size := range b.sizes.messageBytes {
			if err := b.ackOf(ctx, s, cost, sync, size); err != nil {
				return nil, fmt.Errorf("sync %s, messages of %s: %w", sync, sizeName(size), err)
			}
		}
	}
	b.agent = cost
	s.afterf("MB/s are of the rows. sync always is the default: the broker syncs its file before each acknowledgement.")
	return s, nil
}

func (b *bench) ackOf(ctx context.Context, s *section, cost *agentCost, sync string, size int) error {
	shape := standardShape
	steps := max(b.sizes.wireBytes/shape.stepBytes(), 1)
	payload := float64(steps * shape.stepBytes())
	w, err := b.newWire(ctx, sync, size)
	if err != nil {
		return err
	}
	defer w.close()
	// One run to have messages for the bare client.
	if _, err := w.ours(ctx, shape, 1, steps); err != nil {
		return err
	}
	messages, err := w.messages(ctx)
	if err != nil {
		return err
	}
	messages = messages[len(messages)/2:] // the first half are of the pages' first use
	if len(messages) == 0 {
		return errors.New("the stream holds no vectors")
	}
	window := max(inflightBytes/size, 1)
	bare := func(ctx context.Context) (sample, error) { return w.bare(ctx, messages, window) }
	watch := watchMemory(w.agent.PID())
	r, err := b.compare(ctx, fmt.Sprintf("b: sync %s, messages of %s", sync, sizeName(size)),
		arm{"ours", func(ctx context.Context) (sample, error) { return w.ours(ctx, shape, 1, steps) }},
		arm{"bare", bare}, arm{"bare again", bare})
	peak := watch()
	if err != nil {
		return err
	}
	id := fmt.Sprintf("%s.%s.", sync, sizeID(size))
	speed := figure{ID: "b." + id + "speed_to_bare", spread: r.speed("ours", "bare"), Unit: "ratio"}.atLeast(0.9)
	rate := figure{ID: "b." + id + "mb_per_s", spread: r.rate("ours", payload/1e6), Unit: "MB/s"}
	s.keep(speed, rate)
	s.row(sync, sizeName(size), fmt.Sprintf("%.0f", rate.Median), judged(speed), percent(r.noise("bare", "bare again")))
	cost.add(id, sync, size, r, payload/1e9, peak)
	return nil
}

// add keeps what a comparison says of the agent.
func (c *agentCost) add(id, sync string, size int, r rounds, gb float64, peak usage) {
	cpu, cores := r.cpuPer("ours", gb), r.cores("ours")
	bare := r.cpuPer("bare", gb)
	mib := func(n int64) float64 { return float64(n) / (1 << 20) }
	rss, anon := mib(peak.rss), mib(peak.anon)
	c.figures = append(c.figures, figure{ID: "e." + id + "cpu_s_per_gb", spread: cpu, Unit: "s/GB"},
		figure{ID: "e." + id + "cores", spread: cores, Unit: "cores"},
		figure{ID: "e." + id + "peak_rss", spread: spread{rss, rss, rss}, Unit: "MiB"},
		figure{ID: "e." + id + "peak_anon", spread: spread{anon, anon, anon}, Unit: "MiB"})
	c.rows = append(c.rows, []string{sync, sizeName(size), ratio(cpu), ratio(bare), ratio(cores), fmt.Sprintf("%.0f", rss),
		fmt.Sprintf("%.0f", anon)})
}

// agentCost is section e.
func (b *bench) agentCost(ctx context.Context) (*section, error) {
	if b.agent == nil {
		if _, err := b.ringToAck(ctx); err != nil {
			return nil, err
		}
	}
	s := &section{Title: "CPU and memory of the agent during b", rows: b.agent.rows, figures: b.agent.figures,
		header: []string{"sync", "message", "CPU s/GB", "bare client's", "cores", "peak RSS MiB", "of it its own"}}
	s.afterf("RSS counts the pages of the ring, which the agent shares with the engine; its own are without them.")
	return s, nil
}

// watchMemory looks at the memory of a process until the returned function is
// called, which tells the most that was seen.
func watchMemory(pid int) (stop func() usage) {
	var ended atomic.Bool
	seen := make(chan usage)
	go func() {
		var most usage
		for !ended.Load() {
			if u, err := usageOf(pid); err == nil {
				most.rss, most.anon = max(most.rss, u.rss), max(most.anon, u.anon)
			}
			time.Sleep(5 * time.Millisecond)
		}
		seen <- most
	}()
	return func() usage { ended.Store(true); return <-seen }
}
