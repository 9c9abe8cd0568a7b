package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"

	"sonde/ring2"
	"sonde/schema"
)

// rig is a writer and a session of one ring in shared memory, and the encoders
// of the chains, as the agent has them.
type rig struct {
	dir      string
	listener *ring2.Listener
	writer   *ring2.Writer
	session  *ring2.Session

	layout   ring2.Layout
	ranges   []ring2.StepRange
	position uint32
	pattern  []byte // what the rows hold

	encoders [hooks]*schema.VectorEncoder
	prev     schema.Cursor
	records  []ring2.Record
	step     ring2.Step
	entries  []ring2.EntryRows
	payloads [][]byte // of the captures of the last drain; fill overwrites them
	out      [][]byte // memory of messages, reused from turn to turn
	used     int
	target   []byte // of memcpy
}

func newRig(ctx context.Context) (*rig, error) {
	dir, err := os.MkdirTemp("", "sonde-bench")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the socket: %w", err)
	}
	r := &rig{dir: dir, target: make([]byte, fillSteps*stepBytes)}
	quiet := slog.New(slog.DiscardHandler)
	socket := filepath.Join(dir, "sock")
	if r.listener, err = ring2.Listen(socket, ring2.ListenerOptions{Name: "bench", Logger: quiet}); err != nil {
		return nil, err
	}
	o := ring2.WriterOptions{Socket: socket, EngineInstance: "bench", Logger: quiet}
	if r.writer, err = ring2.NewWriter(o); err != nil {
		return nil, err
	}
	if r.session, err = r.listener.Accept(ctx); err != nil {
		return nil, err
	}
	return r, r.define()
}

func (r *rig) close() {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_ = r.writer.Close(ended) // What the ring still holds is of no interest.
	_ = r.session.Close()
	_ = r.listener.Close()
	_ = os.RemoveAll(r.dir)
}

// define announces layout and requests, and makes the encoders.
func (r *rig) define() error {
	for i := range hooks {
		r.layout.Entries = append(r.layout.Entries, ring2.LayoutEntry{Hook: "resid_post", Layer: i, DType: ring2.BF16,
			Shape: []uint32{elements}})
		var err error
		r.encoders[i], err = schema.NewVectorEncoder(schema.Header{Tenant: "acme", Engine: "bench",
			Epoch: r.writer.Epoch(), Hook: "resid_post", Layer: i, DType: "bf16", Shape: []int{elements}, Model: "bench",
			PolicyVersion: "0123456789abcdef"})
		if err != nil {
			return err
		}
	}
	id, err := r.writer.DefineLayout(r.layout.Entries)
	if err != nil {
		return err
	}
	r.layout.ID = id
	for i := range sequences {
		open := ring2.RequestOpen{Number: uint64(i), ExternalID: requestID(i), Tenant: "acme"}
		if err := r.writer.OpenRequest(open); err != nil {
			return err
		}
		r.ranges = append(r.ranges, ring2.StepRange{Number: uint64(i), Count: 1, Phase: ring2.PhaseDecode, LayoutMask: 1})
	}
	r.pattern = make([]byte, sequences*rowBytes)
	for i := range r.pattern {
		r.pattern[i] = byte(i * 31)
	}
	return nil
}

var requestIDs [sequences]string

func requestID(i int) string {
	if requestIDs[i] == "" {
		requestIDs[i] = fmt.Sprintf("req-%08d", i)
	}
	return requestIDs[i]
}

// fill writes fillSteps steps.
func (r *rig) fill() error {
	for range fillSteps {
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
		for entry := range hooks {
			copy(s.Span(0, entry), r.pattern)
		}
		s.Commit()
	}
	return nil
}

// drain is what is measured: it reads what fill wrote and makes messages of size
// bytes of rows. The messages are valid until the next drain.
func (r *rig) drain(ctx context.Context, size int) ([][]byte, error) {
	r.used, r.payloads = 0, r.payloads[:0]
	for steps := 0; steps < fillSteps; {
		var err error
		if r.records, err = r.session.Next(ctx, r.records[:0]); err != nil {
			return nil, err
		}
		for i := range r.records {
			rec := &r.records[i]
			switch rec.Kind {
			case ring2.KindStep:
				err = ring2.ParseStepInto(&r.step, rec.Payload)
			case ring2.KindCapture:
				steps++
				err = r.capture(rec, size)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return r.out[:r.used], nil
}

// capture puts the rows of one capture into their chains, and closes what is
// full. All chains grow alike, so their records are released together.
func (r *rig) capture(rec *ring2.Record, size int) error {
	entries, err := ring2.AppendEntries(r.entries[:0], &r.layout, &r.step, 0, rec.Payload)
	r.entries = entries
	if err != nil {
		return err
	}
	r.payloads = append(r.payloads, rec.Payload)
	for i := range entries {
		rows, encoder := &entries[i], r.encoders[i]
		for row := range rows.Rows {
			rg := &r.step.Ranges[row]
			err := encoder.Append(schema.VectorRow{Seq: rec.Seq, Row: uint32(row), Number: rg.Number,
				Request: requestID(int(rg.Number)), Position: int32(rg.Position), Pass: int32(rg.Pass), Phase: uint8(rg.Phase),
				CaptureNS: int64(rec.CaptureNS), Vec: rows.Row(row)})
			if err != nil {
				return err
			}
		}
		if encoder.Rows()*rowBytes < size {
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
		if i == hooks-1 {
			r.session.Release(rec.Seq + 1)
		}
	}
	return nil
}

// batches makes of the messages what arrow-go's writer works on.
func (r *rig) batches(messages [][]byte) ([]batch, error) {
	var out []batch
	rows := 0
	for _, m := range messages {
		reader, err := ipc.NewReader(bytes.NewReader(m))
		if err != nil {
			return nil, fmt.Errorf("read a message with arrow-go: %w", err)
		}
		if !reader.Next() {
			return nil, fmt.Errorf("read a message with arrow-go: %w", reader.Err())
		}
		rec := reader.RecordBatch()
		rec.Retain()
		out = append(out, batch{reader.Schema(), rec})
		rows += int(rec.NumRows())
		reader.Release()
	}
	if rows*rowBytes != fillSteps*stepBytes {
		return nil, fmt.Errorf("the messages hold %d rows of %d bytes, of %d bytes in the ring", rows, rowBytes,
			fillSteps*stepBytes)
	}
	return out, nil
}

type batch struct {
	schema *arrow.Schema
	rec    arrow.RecordBatch
}

// copyRows is the first baseline: the rows of each step and hook, copied out of
// the ring.
func (r *rig) copyRows() {
	at := 0
	for _, p := range r.payloads {
		for ; len(p) > 0; p = p[sequences*rowBytes:] {
			at += copy(r.target[at:], p[:sequences*rowBytes])
		}
	}
}

// writeBatches is the second baseline. It writes to memory that the messages
// have used before.
func (r *rig) writeBatches(batches []batch) error {
	for i, b := range batches {
		into := sliceWriter(r.out[i][:0])
		w := ipc.NewWriter(&into, ipc.WithSchema(b.schema))
		if err := w.Write(b.rec); err != nil {
			return fmt.Errorf("write a batch with arrow-go: %w", err)
		}
		if err := w.Close(); err != nil {
			return fmt.Errorf("write a batch with arrow-go: %w", err)
		}
		b.rec.Release()
		r.out[i] = into
	}
	return nil
}

type sliceWriter []byte

func (s *sliceWriter) Write(p []byte) (int, error) { *s = append(*s, p...); return len(p), nil }
