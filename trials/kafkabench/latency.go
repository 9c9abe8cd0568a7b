package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"sonde/bus"
)

const (
	paced      = 300 // messages, one each pace
	pace       = 10 * time.Millisecond
	pacedBytes = 4 << 10
)

// latency prints how long one message takes, at 100 a second, from Publish to its
// acknowledgement, to a listener and to a reader, and a command to its reply.
func (b *bench) latency(ctx context.Context) error {
	k, err := b.open(ctx, "LATENCY")
	if err != nil {
		return err
	}
	defer k.Close()
	began := time.Now()
	stamp := func(data []byte) time.Duration {
		return time.Since(began) - time.Duration(binary.LittleEndian.Uint64(data))
	}
	acked, heard, read := make(chan time.Duration, paced), make(chan time.Duration, paced), make(chan time.Duration, paced)
	stop, err := k.Hear([]string{subject}, func(_ string, data []byte) { heard <- stamp(data) })
	if err != nil {
		return err
	}
	defer stop()
	s, err := k.Subscribe(ctx, bus.SubscribeOptions{From: bus.FromNew})
	if err != nil {
		return err
	}
	defer s.Close()
	failed := make(chan error, 1)
	go func() {
		for range paced {
			d, err := s.Next(ctx)
			if err != nil {
				failed <- err
				return
			}
			read <- stamp(d.Data)
		}
	}()
	for range paced {
		data := make([]byte, pacedBytes)
		at := time.Since(began)
		binary.LittleEndian.PutUint64(data, uint64(at))
		if err := k.Publish(ctx, bus.Message{Subject: subject, Data: data}, func(_ uint64, err error) {
			if err == nil {
				acked <- time.Since(began) - at
			}
		}); err != nil {
			return err
		}
		time.Sleep(pace)
	}
	for _, way := range []struct {
		name string
		took chan time.Duration
	}{{"acknowledgement", acked}, {"listener", heard}, {"reader", read}} {
		if err := report(ctx, "message to "+way.name, way.took, paced, failed); err != nil {
			return err
		}
	}
	return b.commands(ctx, k)
}

func (b *bench) commands(ctx context.Context, k *bus.Kafka) error {
	const command = "sonde.cmd.bench"
	stop, err := k.Serve(command, func(data []byte) []byte { return data })
	if err != nil {
		return err
	}
	defer stop()
	took := make(chan time.Duration, paced)
	for n := range paced + 1 {
		began := time.Now()
		if _, err := k.Request(ctx, command, nil); err != nil {
			return err
		}
		if n > 0 { // the first one finds the end of the topic
			took <- time.Since(began)
		}
		time.Sleep(pace)
	}
	return report(ctx, "command to reply", took, paced, nil)
}

func report(ctx context.Context, what string, took chan time.Duration, n int, failed chan error) error {
	var all []time.Duration
	for range n {
		select {
		case d := <-took:
			all = append(all, d)
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	slices.Sort(all)
	ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 }
	fmt.Printf("%-28s p50 %7.1f ms   p99 %7.1f ms\n", what, ms(all[n/2]), ms(all[n*99/100]))
	return nil
}
