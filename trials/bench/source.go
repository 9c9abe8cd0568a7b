package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"sonde/ring2"
)

// shape is what a step of a source captures: one token of each sequence at each
// hook, of elements bf16.
type shape struct {
	sequences, hooks, elements int
}

func (s shape) rowBytes() int  { return 2 * s.elements }
func (s shape) stepRows() int  { return s.sequences * s.hooks }
func (s shape) stepBytes() int { return s.stepRows() * s.rowBytes() }

// standardShape is that of the sections in which the shape does not change.
var standardShape = shape{sequences: 16, hooks: 8, elements: 2048}

// source is an engine that only writes: a ring, requests, and steps of one token
// of each.
type source struct {
	shape
	writer   *ring2.Writer
	layout   ring2.Layout
	ranges   []ring2.StepRange
	position uint32
	pattern  []byte // the rows of a hook
}

// newSource makes a ring that holds bytes of rows, and at least a few steps, and
// announces layout and requests. rank counts from 0.
func newSource(socket string, s shape, rank, ranks, bytes int) (*source, error) {
	data := 1 << 20
	for data < max(bytes+bytes/4, 4*s.stepBytes()) { // a reserve for control records
		data *= 2
	}
	w, err := ring2.NewWriter(ring2.WriterOptions{Socket: socket, EngineInstance: "bench", Rank: rank, RankCount: ranks,
		DataBytes: data, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	r := &source{shape: s, writer: w, pattern: make([]byte, s.sequences*s.rowBytes())}
	for i := range r.pattern {
		r.pattern[i] = byte(i * 31)
	}
	if err := r.announce(); err != nil {
		r.abandon()
		return nil, err
	}
	return r, nil
}

func (r *source) announce() error {
	for i := range r.hooks {
		r.layout.Entries = append(r.layout.Entries, ring2.LayoutEntry{Hook: "resid_post", Layer: i, DType: ring2.BF16,
			Shape: []uint32{uint32(r.elements)}})
	}
	var err error
	if r.layout.ID, err = r.writer.DefineLayout(r.layout.Entries); err != nil {
		return err
	}
	for i := range r.sequences {
		err := r.writer.OpenRequest(ring2.RequestOpen{Number: uint64(i), ExternalID: requestName(i), Tenant: "acme"})
		if err != nil {
			return err
		}
		r.ranges = append(r.ranges, ring2.StepRange{Number: uint64(i), Count: 1, Phase: ring2.PhaseDecode, LayoutMask: 1})
	}
	return nil
}

// steps writes n steps, for which the ring must have room.
func (r *source) steps(n int) error {
	for range n {
		for i := range r.ranges {
			r.ranges[i].Position = r.position
		}
		r.position++
		s, err := r.writer.BeginStep(r.ranges, []uint32{r.layout.ID})
		if err != nil {
			return err
		}
		if !s.Captured(0) {
			return fmt.Errorf("the ring has no room for step %d: it was made too small", s.Step())
		}
		for entry := range r.hooks {
			copy(s.Span(0, entry), r.pattern)
		}
		s.Commit()
	}
	return nil
}

// drained waits until the agent is there and has released everything.
func (r *source) drained(ctx context.Context) error {
	for {
		if s := r.writer.Stats(); s.Attached && s.Release == s.Claim && s.PendingControl == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the agent did not release everything: %w", ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// abandon ends a ring without waiting for the agent.
func (r *source) abandon() {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = r.writer.Close(ended) // what the ring still holds is of no interest
}
