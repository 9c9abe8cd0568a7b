package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"sonde/bus"
	"sonde/schema"
)

// order watches the stream: in each chain, what is new stands behind all before it.
type order struct {
	mu                       sync.Mutex
	last                     map[schema.ChainKey]schema.Cursor
	seen                     map[string]bool // ids of messages
	messages, copies, strays int
	failed                   error
}

// watchOrder reads the stream until ctx ends.
func watchOrder(ctx context.Context, url string) (*order, error) {
	b, err := bus.OpenNATS(ctx, bus.NATSOptions{URL: url, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	s, err := b.Subscribe(ctx, bus.SubscribeOptions{Filters: []string{"sonde.v1.*.*.*.vectors.>"}})
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	o := &order{last: map[schema.ChainKey]schema.Cursor{}, seen: map[string]bool{}}
	go func() {
		defer b.Close()
		defer s.Close()
		for {
			d, err := s.Next(ctx)
			if err == nil {
				err = o.take(d.Data)
			}
			if err != nil {
				o.fail(ctx, err)
				return
			}
		}
	}()
	return o, nil
}

func (o *order) fail(ctx context.Context, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ctx.Err() == nil {
		o.failed = err
	}
}

func (o *order) take(data []byte) error {
	h, err := schema.DecodeHeader(data)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.messages++
	if id := schema.MessageID(h); o.seen[id] {
		o.copies++
		return nil
	} else {
		o.seen[id] = true
	}
	if h.First().Less(o.last[h.Chain()]) {
		o.strays++
	}
	o.last[h.Chain()] = h.Last()
	return nil
}

func (o *order) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return fmt.Sprintf("order: %d messages of vectors in %d chains, %d of them copies, %d before their turn", o.messages,
		len(o.last), o.copies, o.strays)
}

func (o *order) err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.strays > 0 {
		return errors.Join(o.failed, fmt.Errorf("%d messages came before their turn", o.strays))
	}
	return o.failed
}
