package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"sonde/bus"
)

const (
	pacedMessages = 300 // one each pace
	pace          = 10 * time.Millisecond
	pacedBytes    = 4 << 10
)

// kafkaLatency adds how long one message takes, at 100 a second, from Publish to its
// acknowledgement, to a listener and to a reader, and a command to its reply.
func (b *bench) kafkaLatency(ctx context.Context, s *section, address string) error {
	b.progress.Show("g: latency")
	k, err := bus.OpenKafka(ctx, bus.KafkaOptions{Brokers: []string{address}, Stream: "LATENCY",
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer k.Close()
	p := &paced{k: k, began: time.Now(), failed: make(chan error, 1), took: map[string]chan time.Duration{}}
	for _, way := range []string{"acknowledgement", "listener", "reader", "reply"} {
		p.took[way] = make(chan time.Duration, pacedMessages)
	}
	if err := p.messages(ctx, b.sizes.paced); err != nil {
		return err
	}
	if err := p.commands(ctx, b.sizes.paced); err != nil {
		return err
	}
	text := "ms at 100 messages a second, p50 and p99:"
	for _, way := range []string{"acknowledgement", "listener", "reader", "reply"} {
		all, err := p.all(ctx, way, b.sizes.paced)
		if err != nil {
			return fmt.Errorf("latency to the %s: %w", way, err)
		}
		for _, q := range []struct {
			name string
			at   int
		}{{"p50", len(all) / 2}, {"p99", len(all) * 99 / 100}} {
			ms := all[q.at].Seconds() * 1e3
			s.keep(figure{ID: "g.latency." + way + "." + q.name, spread: spread{ms, ms, ms}, Unit: "ms"})
			text += fmt.Sprintf(" %.1f", ms)
		}
		text += " to the " + way + ";"
	}
	s.afterf("%s.", text[:len(text)-1])
	return nil
}

// paced are messages and commands with a pause between them.
type paced struct {
	k      *bus.Kafka
	began  time.Time
	took   map[string]chan time.Duration
	failed chan error
}

const pacedSubject = "sonde.v1.acme.bench.0.x"

func (p *paced) messages(ctx context.Context, n int) error {
	since := func(data []byte) time.Duration {
		return time.Since(p.began) - time.Duration(binary.LittleEndian.Uint64(data))
	}
	stop, err := p.k.Hear([]string{pacedSubject}, func(_ string, data []byte) { p.took["listener"] <- since(data) })
	if err != nil {
		return err
	}
	defer stop()
	s, err := p.k.Subscribe(ctx, bus.SubscribeOptions{From: bus.FromNew})
	if err != nil {
		return err
	}
	defer s.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		for range n {
			d, err := s.Next(ctx)
			if err != nil {
				p.failed <- err
				return
			}
			p.took["reader"] <- since(d.Data)
		}
	}()
	for range n {
		data := make([]byte, pacedBytes)
		at := time.Since(p.began)
		binary.LittleEndian.PutUint64(data, uint64(at))
		if err := p.k.Publish(ctx, bus.Message{Subject: pacedSubject, Data: data}, func(_ uint64, err error) {
			if err == nil {
				p.took["acknowledgement"] <- time.Since(p.began) - at
			}
		}); err != nil {
			return err
		}
		time.Sleep(pace)
	}
	<-read
	return nil
}

func (p *paced) commands(ctx context.Context, n int) error {
	const command = "sonde.cmd.acme.bench.0.x"
	stop, err := p.k.Serve(command, func(data []byte) []byte { return data })
	if err != nil {
		return err
	}
	defer stop()
	for i := range n + 1 {
		began := time.Now()
		if _, err := p.k.Request(ctx, command, nil); err != nil {
			return err
		}
		if i > 0 { // the first one finds the end of the topic
			p.took["reply"] <- time.Since(began)
		}
		time.Sleep(pace)
	}
	return nil
}

// all waits for n times, in ascending order.
func (p *paced) all(ctx context.Context, way string, n int) (all []time.Duration, err error) {
	for range n {
		select {
		case d := <-p.took[way]:
			all = append(all, d)
		case err := <-p.failed:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	slices.Sort(all)
	return all, nil
}
