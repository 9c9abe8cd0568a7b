package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/engine/arithmetic"
	"sonde/engine/model"
	"sonde/engine/scheduler"
	"sonde/engine/witness"
	"sonde/ring2"
)

// identity is what a row is about.
type identity struct {
	request                string
	sample, position, pass int
	hook                   string
	layer                  int
}

// reader is an agent that understands every record and keeps every row.
type reader struct {
	session  *ring2.Session
	model    ring2.Model
	layouts  map[uint32]ring2.Layout
	opens    map[uint64]ring2.RequestOpen
	ends     map[uint64]ring2.RequestEnd
	steps    map[uint64]ring2.Step
	amends   []ring2.Amend
	rows     map[identity][]byte
	expected uint64 // rows that the steps announce
	dropped  uint64 // of them, those that were dropped
	bye      bool
	twice    []identity
	freeze   func() bool // true: do not release
}

func newReader(s *ring2.Session) *reader {
	return &reader{session: s, layouts: map[uint32]ring2.Layout{}, opens: map[uint64]ring2.RequestOpen{},
		ends: map[uint64]ring2.RequestEnd{}, steps: map[uint64]ring2.Step{}, rows: map[identity][]byte{}}
}

// run reads until the engine is gone.
func (r *reader) run(ctx context.Context) error {
	for _, record := range r.session.Snapshot() {
		if err := r.take(&record); err != nil {
			return err
		}
	}
	var records []ring2.Record
	for next := uint64(0); ; {
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond) // A freeze may end with nothing new to read.
		var err error
		records, err = r.session.Next(short, records[:0])
		cancel()
		for i := range records {
			next = records[i].Seq + 1
			if err := r.take(&records[i]); err != nil {
				return err
			}
		}
		if r.freeze == nil || !r.freeze() {
			r.session.Release(next)
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && short.Err() == nil || ctx.Err() != nil:
			return err
		}
	}
}

func (r *reader) take(rec *ring2.Record) (err error) {
	switch rec.Kind {
	case ring2.KindModel:
		r.model, err = ring2.ParseModel(rec.Payload)
	case ring2.KindLayout:
		var l ring2.Layout
		l, err = ring2.ParseLayout(rec.Payload)
		r.layouts[l.ID] = l
	case ring2.KindRequestOpen:
		var o ring2.RequestOpen
		o, err = ring2.ParseRequestOpen(rec.Payload)
		r.opens[o.Number] = o
	case ring2.KindRequestEnd:
		var e ring2.RequestEnd
		e, err = ring2.ParseRequestEnd(rec.Payload)
		r.ends[e.Number] = e
	case ring2.KindAmend:
		var a ring2.Amend
		a, err = ring2.ParseAmend(rec.Payload)
		r.amends = append(r.amends, a)
	case ring2.KindStep:
		var s ring2.Step
		s, err = ring2.ParseStep(rec.Payload)
		r.steps[s.Step] = s
		r.count(&s)
	case ring2.KindMissing:
		var m ring2.Missing
		m, err = ring2.ParseMissing(rec.Payload)
		for _, g := range m.Ranges {
			r.expected += g.Rows
			r.dropped += g.Rows
		}
	case ring2.KindCapture:
		if !rec.Aborted() {
			err = r.capture(rec)
		}
	case ring2.KindBye:
		r.bye = true
	default:
		err = fmt.Errorf("record of kind %v", rec.Kind)
	}
	return err
}

func (r *reader) count(s *ring2.Step) {
	for i, l := range s.Layouts {
		layout := r.layouts[l.Layout]
		for _, e := range layout.Entries {
			n := uint64(s.EntryRows(i, e.Select))
			r.expected += n
			if l.Outcome != ring2.ReasonNone {
				r.dropped += n
			}
		}
	}
}

// capture files the rows of a CAPTURE under what its STEP says about them.
func (r *reader) capture(rec *ring2.Record) error {
	step, layout := r.steps[rec.Step], r.layouts[rec.Layout]
	index := slices.IndexFunc(step.Layouts, func(l ring2.StepLayout) bool { return l.Layout == rec.Layout })
	entries, err := ring2.SplitCapture(&layout, &step, index, rec.Payload)
	if err != nil {
		return err
	}
	for i := range entries {
		e, row := layout.Entries[i], 0
		for _, g := range step.Ranges {
			first := 0
			switch {
			case g.LayoutMask>>index&1 == 0:
				continue
			case e.Select == ring2.SelectSampled && !g.Sampled:
				continue
			case e.Select == ring2.SelectSampled:
				first = int(g.Count) - 1
			}
			o := r.opens[g.Number]
			for j := first; j < int(g.Count); j++ {
				id := identity{o.ExternalID, int(o.Sample), int(g.Position) + j, int(g.Pass), e.Hook, e.Layer}
				if _, again := r.rows[id]; again {
					r.twice = append(r.twice, id)
				}
				r.rows[id] = slices.Clone(entries[i].Row(row))
				row++
			}
		}
		if row != entries[i].Rows {
			return fmt.Errorf("entry %s has %d rows, the step names %d", e.Hook, entries[i].Rows, row)
		}
	}
	return nil
}

// wrong lists the rows whose bytes do not belong to their identity. tokens are
// the real ones, by request and sample.
func wrong(rows map[identity][]byte, tokens map[string][][]int32) []identity {
	var out []identity
	for id, row := range rows {
		h, ok := arithmetic.HookOf(id.hook, id.layer)
		want := arithmetic.Row(nil, h, id.request, id.sample, id.position, id.pass)
		if id.hook == "token_ids" {
			want = binary.LittleEndian.AppendUint32(nil, uint32(tokens[id.request][id.sample][id.position]))
		}
		if !ok || !slices.Equal(row, want) {
			out = append(out, id)
		}
	}
	return out
}

// rig is an engine with an agent.
type rig struct {
	t         *testing.T
	ring      *ring2.Writer
	capture   *Capture
	scheduler *scheduler.Scheduler
	reader    *reader
	registry  *prometheus.Registry
	witness   string
	stop      context.CancelFunc
	ran, read chan error
}

type config struct {
	ring                 ring2.WriterOptions
	blocks, prefillChunk int
	freeze               func() bool // while true, the agent releases nothing
}

func newRig(t *testing.T, c config) *rig {
	t.Helper()
	g := &rig{t: t, witness: filepath.Join(t.TempDir(), "witness"), registry: prometheus.NewRegistry(),
		ran: make(chan error, 1), read: make(chan error, 1)}
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := ring2.Listen(socket, ring2.ListenerOptions{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	c.ring.Socket, c.ring.EngineInstance, c.ring.Logger = socket, "engine-1", slog.New(slog.DiscardHandler)
	// Stored below, loaded on the ring's goroutine.
	var running atomic.Pointer[scheduler.Scheduler]
	c.ring.OnAbort = func(a ring2.Abort) (ring2.AbortOutcome, uint32) {
		outcome, n := running.Load().AbortSequence(a)
		return outcome, uint32(n)
	}
	if g.ring, err = ring2.NewWriter(c.ring); err != nil {
		t.Fatal(err)
	}
	m := arithmetic.New(arithmetic.Options{Layers: 2})
	selection, err := Select(m, nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := witness.Create(g.witness, g.ring.Epoch(), selection.Hooks())
	if err != nil {
		t.Fatal(err)
	}
	if g.capture, err = New(selection, g.ring, w, "test"); err != nil {
		t.Fatal(err)
	}
	g.registry.MustRegister(NewMetrics(g.ring.Stats))
	g.scheduler, err = scheduler.New(scheduler.Options{Model: m, Tokenizer: arithmetic.Tokenizer{}, Recorder: g.capture,
		Epoch: g.ring.Epoch(), Blocks: c.blocks, BlockTokens: 4, PrefillChunk: c.prefillChunk, MaxBatch: 12, MaxOpen: 1000,
		PrefixCache: true, Registerer: g.registry, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	running.Store(g.scheduler)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	session, err := listener.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	g.reader = newReader(session)
	g.reader.freeze = c.freeze
	run, stop := context.WithCancel(ctx)
	g.stop = stop
	go func() { g.ran <- g.scheduler.Run(run) }()
	go func() { g.read <- g.reader.run(ctx) }()
	t.Cleanup(func() {
		_ = session.Close() // Both were used up by the test.
		_ = listener.Close()
	})
	return g
}

// finish ends the engine, and waits until the agent has read its end.
func (g *rig) finish() {
	g.t.Helper()
	g.stop()
	if err := <-g.ran; err != nil {
		g.t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := g.ring.Close(ctx); err != nil {
		g.t.Error(err)
	}
	if err := <-g.read; err != nil {
		g.t.Error(err)
	}
}

// complete runs a request and returns the tokens of its samples, prompt included.
func (g *rig) complete(r scheduler.Request) [][]int32 {
	ticket, err := g.scheduler.Submit(r)
	if err != nil {
		g.t.Error(err)
		return nil
	}
	out := make([][]int32, r.Samples)
	for i := range out {
		out[i] = slices.Clone(r.Prompt)
	}
	for {
		events, err := ticket.Next(context.Background())
		if err != nil {
			return out
		}
		for _, e := range events {
			if e.Token >= 0 {
				out[e.Sample] = append(out[e.Sample], e.Token)
			}
		}
	}
}

var _ model.Tap = (*Capture)(nil)
var _ scheduler.Recorder = (*Capture)(nil)
