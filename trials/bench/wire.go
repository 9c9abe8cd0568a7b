package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sonde/trials/fleet"
)

// wire is a broker and an agent, each a process of its own, and the sources that
// feed the agent.
type wire struct {
	bus, agent *fleet.Process
	socket     string
	forget     func(ctx context.Context) error // what the stream holds
	nc         *nats.Conn
	js         jetstream.JetStream
	runs       int
}

// inflightBytes is the window of both the agent and the bare client.
const inflightBytes = 64 << 20

const wireConfig = `bus:
  embedded: {store_dir: %[1]s/bus, listen: "%[2]s", sync: %[3]s, max_bytes: 4GiB, retain_bytes: 16MiB}
agent:
  socket: %[4]s
  linger_ms: 50
  batch_bytes: %[5]d
  inflight_bytes: %[6]d
  dead_letter: {dir: %[1]s/dead-letter}
policy:
  rules:
    - {name: every row, hooks: ["*"]}
materializer: {lake: %[1]s/lake}
http: {listen: ""}
`

// newWire starts broker and agent. sync is that of bus.embedded.sync.
func (b *bench) newWire(ctx context.Context, sync string, batchBytes int) (w *wire, err error) {
	dir, err := b.folder("wire")
	if err != nil {
		return nil, err
	}
	address, err := fleet.FreeAddress()
	if err != nil {
		return nil, err
	}
	w = &wire{socket: socketPath()}
	w.forget = w.empty
	file := filepath.Join(dir, "sonde.yaml")
	text := fmt.Sprintf(wireConfig, dir, address, sync, w.socket, batchBytes, inflightBytes)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	w.bus = fleet.NewProcess("bus", dir, b.binary, "run", "--config", file, "--role", "bus")
	w.agent = fleet.NewProcess("agent", dir, b.binary, "run", "--config", file, "--role", "agent")
	for _, p := range []*fleet.Process{w.bus, w.agent} {
		if err := p.Start(); err != nil {
			w.close()
			return nil, err
		}
	}
	if err := w.connect(ctx, "nats://"+address); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// socketPath is short: that of a unix socket has at most 107 bytes, which a deep
// folder breaks.
func socketPath() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("sonde-bench-%d.sock", os.Getpid()))
}

// startTimeout is how long broker and agent may take to start.
const startTimeout = 30 * time.Second

// connect waits for the broker and for the stream, which the agent makes.
func (w *wire) connect(ctx context.Context, url string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err = nil
		if w.nc == nil {
			w.nc, err = nats.Connect(url)
		}
		if err == nil {
			if w.js, err = jetstream.New(w.nc, jetstream.WithPublishAsyncMaxPending(1)); err == nil {
				_, err = w.js.Stream(ctx, streamName)
			}
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the broker: %w; the bus said: %s; the agent said: %s", err, w.bus.Tail(), w.agent.Tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

const streamName = "SONDE"

func (w *wire) close() {
	if w.nc != nil {
		w.nc.Close()
	}
	for _, p := range []*fleet.Process{w.agent, w.bus} {
		if p.Running() {
			_ = p.Kill() // nothing that it holds is wanted
		}
	}
}

// empty forgets what the stream holds.
func (w *wire) empty(ctx context.Context) error {
	s, err := w.js.Stream(ctx, streamName)
	if err != nil {
		return err
	}
	return s.Purge(ctx)
}

// drainTimeout bounds a run of the agent.
const drainTimeout = 2 * time.Minute

// ours is the arm of the agent: rings that are full when the clock starts are read
// to their end, and every message is acknowledged when it stops. Each run has new
// rings, which were filled and emptied once before, so that their pages are there.
func (w *wire) ours(ctx context.Context, s shape, ranks, steps int) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	if err := w.forget(ctx); err != nil {
		return sample{}, err
	}
	var sources []*source
	defer func() {
		for _, r := range sources {
			r.abandon()
		}
	}()
	for i := range ranks {
		r, err := newSource(w.socket, s, i, ranks, steps*s.stepBytes())
		if err != nil {
			return sample{}, err
		}
		sources = append(sources, r)
		if err := r.steps(steps); err != nil {
			return sample{}, err
		}
	}
	for _, r := range sources {
		if err := r.drained(ctx); err != nil {
			return sample{}, fmt.Errorf("%w; it said: %s", err, w.agent.Tail())
		}
	}
	if err := w.agent.Signal(syscall.SIGSTOP); err != nil {
		return sample{}, err
	}
	for _, r := range sources {
		if err := r.steps(steps); err != nil {
			return sample{}, errors.Join(err, w.agent.Signal(syscall.SIGCONT))
		}
	}
	return w.drain(ctx, sources)
}

// drain lets the agent go and measures until all rings are closed.
func (w *wire) drain(ctx context.Context, sources []*source) (s sample, err error) {
	before, err := usageOf(w.agent.PID())
	if err != nil {
		return s, err
	}
	began := time.Now()
	if err := w.agent.Signal(syscall.SIGCONT); err != nil {
		return s, err
	}
	var wait sync.WaitGroup
	failed := make([]error, len(sources))
	for i, r := range sources {
		wait.Go(func() { failed[i] = r.writer.Close(ctx) })
	}
	wait.Wait()
	s.seconds = time.Since(began).Seconds()
	after, err := usageOf(w.agent.PID())
	s.cpu = after.cpu - before.cpu
	return s, errors.Join(append(failed, err)...)
}

// messages reads the vectors that the stream holds.
func (w *wire) messages(ctx context.Context) (out []*nats.Msg, err error) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	c, err := w.js.OrderedConsumer(ctx, streamName, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{"sonde.v1.*.*.*.vectors.>"}})
	if err != nil {
		return nil, err
	}
	info, err := c.Info(ctx)
	if err != nil {
		return nil, err
	}
	for pending := info.NumPending; pending > 0; {
		batch, err := c.FetchBytes(16 << 20)
		if err != nil {
			return nil, err
		}
		for m := range batch.Messages() {
			out = append(out, &nats.Msg{Subject: m.Subject(), Header: nats.Header{}, Data: m.Data()})
			pending--
		}
		if err := errors.Join(batch.Error(), ctx.Err()); err != nil {
			return nil, fmt.Errorf("read the stream back: %w", err)
		}
	}
	return out, nil
}

// bare is the arm of the bare client: the same messages, ready made, with ids for
// the broker's deduplication as ours have them, and the same window.
func (w *wire) bare(ctx context.Context, messages []*nats.Msg, window int) (s sample, err error) {
	if err := w.empty(ctx); err != nil {
		return s, err
	}
	js, err := jetstream.New(w.nc, jetstream.WithPublishAsyncMaxPending(window))
	if err != nil {
		return s, err
	}
	w.runs++
	cpu, began := processCPU(), time.Now()
	acks := make([]jetstream.PubAckFuture, len(messages))
	for i, m := range messages {
		m.Header.Set(nats.MsgIdHdr, fmt.Sprintf("bare-%08d-%08d-bench-resid_post-0123456789", w.runs, i))
		if acks[i], err = js.PublishMsgAsync(m, jetstream.WithStallWait(drainTimeout)); err != nil {
			return s, err
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
		return s, ctx.Err()
	}
	s = sample{time.Since(began).Seconds(), processCPU() - cpu}
	for _, a := range acks {
		select {
		case <-a.Ok():
		case err := <-a.Err():
			return s, err
		}
	}
	return s, nil
}
