package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"sonde/ring2"
	"sonde/schema"
)

// ringToArrow is section a.
func (b *bench) ringToArrow(ctx context.Context) (*section, error) {
	shape := standardShape
	s := &section{Title: "ring to Arrow bytes: read records, divide captures into rows, collect by hook, encode",
		header: []string{"message", "GB/s", "to arrow-go's writer alone", "noise", "CPU to arrow-go's", "to memcpy",
			"allocations a row"}}
	s.notef("%d sequences, %d hooks, rows of %d bytes; arrow-go's writer gets ready batches.", shape.sequences,
		shape.hooks, shape.rowBytes())
	r, err := newArrowRig(ctx, b, shape)
	if err != nil {
		return nil, err
	}
	defer r.close()
	total := float64(b.sizes.fillSteps * shape.stepBytes())
	for _, size := range []int{64 << 10, 256 << 10, 1 << 20} {
		if err := r.prepare(ctx, size); err != nil {
			return nil, err
		}
		rounds, err := b.compare(ctx, "a: messages of "+sizeName(size), arm{"ours", r.drained},
			arm{"arrow-go", timed(r.writeBatches)}, arm{"arrow-go again", timed(r.writeBatches)},
			arm{"memcpy", timed(r.copyRows)})
		if err != nil {
			return nil, err
		}
		id := "a." + sizeID(size) + "."
		speed := figure{ID: id + "speed_to_arrow", spread: rounds.speed("ours", "arrow-go"), Unit: "ratio"}
		speed = speed.atLeast(0.5)
		memcpy := figure{ID: id + "speed_to_memcpy", spread: rounds.speed("ours", "memcpy"), Unit: "ratio"}
		rate := figure{ID: id + "gb_per_s", spread: rounds.rate("ours", total/1e9), Unit: "GB/s"}
		allocations := figure{ID: id + "allocations_per_row", spread: spreadOf(r.allocations), Unit: "count"}
		cpu := figure{ID: id + "cpu_to_arrow", spread: rounds.cpu("ours", "arrow-go"), Unit: "ratio"}
		s.keep(speed, memcpy, rate, allocations, cpu)
		s.row(sizeName(size), fmt.Sprintf("%.1f", rate.Median), judged(speed),
			percent(rounds.noise("arrow-go", "arrow-go again")), ratio(cpu.spread), ratio(memcpy.spread),
			fmt.Sprintf("%.4f", allocations.Median))
	}
	return s, nil
}

// arrowRig is a source, its session, and the encoders of the chains, as the agent
// has them.
type arrowRig struct {
	listener *ring2.Listener
	source   *source
	session  *ring2.Session
	fill     int // steps of a run
	size     int // of a message

	encoders []*schema.VectorEncoder
	prev     schema.Cursor
	names    []string // of requests
	records  []ring2.Record
	step     ring2.Step
	entries  []ring2.EntryRows
	payloads [][]byte // of the captures of the last run
	out      [][]byte // memory of messages, reused from run to run
	used     int

	batches     []batch
	target      []byte // of memcpy
	allocations []float64
}

type batch struct {
	schema *arrow.Schema
	rec    arrow.RecordBatch
}

func newArrowRig(ctx context.Context, b *bench, s shape) (*arrowRig, error) {
	r := &arrowRig{fill: b.sizes.fillSteps, target: make([]byte, b.sizes.fillSteps*s.stepBytes())}
	socket := socketPath()
	var err error
	r.listener, err = ring2.Listen(socket, ring2.ListenerOptions{Name: "bench", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	if r.source, err = newSource(socket, s, 0, 1, len(r.target)); err != nil {
		return nil, err
	}
	if r.session, err = r.listener.Accept(ctx); err != nil {
		return nil, err
	}
	for i := range s.hooks {
		e, err := schema.NewVectorEncoder(schema.Header{Tenant: "acme", Engine: "bench", Epoch: r.source.writer.Epoch(),
			Hook: "resid_post", Layer: i, DType: "bf16", Shape: []int{s.elements}, Model: "bench",
			PolicyVersion: "0123456789abcdef"})
		if err != nil {
			return nil, err
		}
		r.encoders = append(r.encoders, e)
	}
	for i := range s.sequences {
		r.names = append(r.names, requestName(i))
	}
	return r, nil
}

func (r *arrowRig) close() {
	for _, b := range r.batches {
		b.rec.Release()
	}
	r.source.abandon()
	_ = r.session.Close()
	_ = r.listener.Close()
}

// prepare makes of one run's messages what arrow-go's writer works on.
func (r *arrowRig) prepare(ctx context.Context, size int) error {
	r.size, r.allocations = size, nil
	for _, b := range r.batches {
		b.rec.Release()
	}
	r.batches = nil
	if err := r.source.steps(r.fill); err != nil {
		return err
	}
	if err := r.drain(ctx); err != nil {
		return err
	}
	rows := 0
	for _, m := range r.out[:r.used] {
		reader, err := ipc.NewReader(bytes.NewReader(slices.Clone(m)))
		if err != nil {
			return fmt.Errorf("read a message with arrow-go: %w", err)
		}
		if !reader.Next() {
			return fmt.Errorf("read a message with arrow-go: %w", reader.Err())
		}
		rec := reader.RecordBatch()
		rec.Retain()
		r.batches = append(r.batches, batch{reader.Schema(), rec})
		rows += int(rec.NumRows())
		reader.Release()
	}
	if want := r.fill * r.source.stepRows(); rows != want {
		return fmt.Errorf("the messages hold %d rows of %d in the ring", rows, want)
	}
	r.allocations = nil
	return nil
}

// drained is the arm of ours: the ring is filled first.
func (r *arrowRig) drained(ctx context.Context) (s sample, err error) {
	if err := r.source.steps(r.fill); err != nil {
		return s, err
	}
	runtime.GC()
	before, cpu, began := mallocs(), processCPU(), time.Now()
	err = r.drain(ctx)
	s = sample{time.Since(began).Seconds(), processCPU() - cpu}
	r.allocations = append(r.allocations, float64(mallocs()-before)/float64(r.fill*r.source.stepRows()))
	return s, err
}

func mallocs() uint64 {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.Mallocs
}

// drain reads what the source wrote and makes messages of it, as the agent does.
// They are valid until the next drain.
func (r *arrowRig) drain(ctx context.Context) error {
	r.used, r.payloads = 0, r.payloads[:0]
	for steps := 0; steps < r.fill; {
		var err error
		if r.records, err = r.session.Next(ctx, r.records[:0]); err != nil {
			return err
		}
		for i := range r.records {
			rec := &r.records[i]
			switch rec.Kind {
			case ring2.KindStep:
				err = ring2.ParseStepInto(&r.step, rec.Payload)
			case ring2.KindCapture:
				steps++
				err = r.capture(rec)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// capture puts the rows of one capture into their chains, and closes what is full.
// All chains grow alike, so their records are released together.
func (r *arrowRig) capture(rec *ring2.Record) (err error) {
	r.entries, err = ring2.AppendEntries(r.entries[:0], &r.source.layout, &r.step, 0, rec.Payload)
	if err != nil {
		return err
	}
	r.payloads = append(r.payloads, rec.Payload)
	for i := range r.entries {
		rows, encoder := &r.entries[i], r.encoders[i]
		for row := range rows.Rows {
			rg := &r.step.Ranges[row]
			err := encoder.Append(schema.VectorRow{Seq: rec.Seq, Row: uint32(row), Number: rg.Number,
				Request: r.names[rg.Number], Position: int32(rg.Position), Pass: int32(rg.Pass), Phase: uint8(rg.Phase),
				CaptureNS: int64(rec.CaptureNS), Vec: rows.Row(row)})
			if err != nil {
				return err
			}
		}
		if encoder.Rows()*r.source.rowBytes() < r.size {
			continue
		}
		if r.used == len(r.out) {
			r.out = append(r.out, nil)
		}
		if r.out[r.used], _, err = encoder.EncodeTo(r.out[r.used], r.prev); err != nil {
			return err
		}
		encoder.Reset()
		r.used++
		if i == len(r.entries)-1 {
			r.session.Release(rec.Seq + 1)
		}
	}
	return nil
}

// copyRows copies the rows of each step and hook out of the ring.
func (r *arrowRig) copyRows(context.Context) error {
	at, hook := 0, r.source.sequences*r.source.rowBytes()
	for _, p := range r.payloads {
		for ; len(p) > 0; p = p[hook:] {
			at += copy(r.target[at:], p[:hook])
		}
	}
	return nil
}

// writeBatches writes to memory that other messages have used before.
func (r *arrowRig) writeBatches(context.Context) error {
	for i, b := range r.batches {
		into := sliceWriter(r.out[i][:0])
		w := ipc.NewWriter(&into, ipc.WithSchema(b.schema))
		if err := w.Write(b.rec); err != nil {
			return fmt.Errorf("write a batch with arrow-go: %w", err)
		}
		if err := w.Close(); err != nil {
			return fmt.Errorf("write a batch with arrow-go: %w", err)
		}
		r.out[i] = into
	}
	return nil
}

type sliceWriter []byte

func (s *sliceWriter) Write(p []byte) (int, error) { *s = append(*s, p...); return len(p), nil }
