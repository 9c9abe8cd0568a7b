package recording

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sonde/ring2"
)

var quiet = slog.New(slog.DiscardHandler)

// source is a session whose records stand in a list. It releases like a ring: to
// the last step boundary below.
type source struct {
	config   ring2.Config
	snapshot []ring2.Record
	batches  [][]ring2.Record
	lostIn   map[int][]uint64 // lost records that show with a batch
	err      error            // behind the last batch; nil blocks until ctx ends

	lost     []uint64
	at       int
	seq      uint64 // of the next record
	released uint64
	asked    []uint64 // arguments of Release
}

func (s *source) Config() ring2.Config     { return s.config }
func (s *source) Snapshot() []ring2.Record { return s.snapshot }
func (s *source) ReleaseSeq() uint64       { return s.released }
func (s *source) ClaimSeq() uint64         { return 1000 }
func (s *source) Lost() []uint64           { return s.lost }
func (s *source) Close() error             { return nil }
func (s *source) Producer() ring2.ProducerCounters {
	return ring2.ProducerCounters{CapturedRows: 100 * uint64(s.at), Steps: uint64(s.at), Closing: s.err == io.EOF}
}

func (s *source) Next(ctx context.Context, dst []ring2.Record) ([]ring2.Record, error) {
	if s.at == len(s.batches) {
		if s.err == nil {
			<-ctx.Done()
			return dst, ctx.Err()
		}
		return dst, s.err
	}
	s.lost = append(s.lost, s.lostIn[s.at]...)
	dst = append(dst, s.batches[s.at]...)
	s.at++
	return dst, nil
}

func (s *source) Release(seq uint64) {
	s.asked = append(s.asked, seq)
	boundary, end := s.released, uint64(0)
	for _, b := range s.batches[:s.at] {
		for i := range b {
			r := &b[i]
			if r.Kind == ring2.KindStep {
				step, _ := ring2.ParseStep(r.Payload)
				end = step.Layouts[len(step.Layouts)-1].CaptureSeq + 1
			}
			if r.Seq+1 >= end && r.Seq < seq {
				boundary = r.Seq + 1
			}
		}
	}
	s.released = boundary
}

// newSource is a session of some steps, of two captures each, in batches of one
// step. The first record has seq 10.
func newSource(steps int) *source {
	s := &source{config: ring2.Config{ABIMajor: 1, DescCount: 64, DataBytes: 1 << 20, Epoch: 0xabc, RankCount: 1,
		EngineInstance: "engine-ä", WallMinusMonoNS: 1e18, ProducerPID: 7}, seq: 10, released: 10}
	layout := ring2.AppendLayout(nil, ring2.Layout{ID: 1, Entries: []ring2.LayoutEntry{{Hook: "h", Layer: 1,
		DType: ring2.F32, Shape: []uint32{4}}}})
	s.snapshot = []ring2.Record{{Seq: 3, Kind: ring2.KindLayout, Flags: ring2.FlagPayloadCRC, Payload: layout}}
	for i := range steps {
		s.batches = append(s.batches, s.step(uint64(i)))
	}
	return s
}

func (s *source) record(kind ring2.Kind, payload []byte) ring2.Record {
	r := ring2.Record{Seq: s.seq, Kind: kind, Flags: ring2.FlagPayloadCRC, CaptureNS: 1e9 + s.seq*1e6, Payload: payload}
	s.seq++
	return r
}

func (s *source) step(n uint64) []ring2.Record {
	payload := ring2.AppendStep(nil, ring2.Step{Step: n, Layouts: []ring2.StepLayout{{Layout: 1, CaptureSeq: s.seq + 1},
		{Layout: 1, CaptureSeq: s.seq + 2}}, Ranges: []ring2.StepRange{{Number: 5, Position: uint32(n), Count: 1,
		LayoutMask: 3}}})
	out := []ring2.Record{s.record(ring2.KindStep, payload)}
	out[0].Step = n
	for i := range 2 {
		row := make([]byte, 64)
		for j := range row {
			row[j] = byte(n) + byte(i*j)
		}
		c := s.record(ring2.KindCapture, row)
		c.Step, c.Layout, c.Rows, c.Flags = n, 1, 1, 0
		out = append(out, c)
	}
	return out
}

func (s *source) all() []ring2.Record { return slices.Concat(s.batches...) }

// record records a source, until its end or, when it has none, until nothing more
// comes.
func record(t testing.TB, dir string, o Options, s *source) error {
	t.Helper()
	r, err := NewRecorder(dir, o, quiet)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	if s.err == nil {
		stop()
	}
	defer stop()
	err = r.Record(ctx, s)
	if closeErr := r.Close(); closeErr != nil {
		t.Error(closeErr)
	}
	return err
}

// readAll reads a session to its end and releases everything at once. stopped says
// that it has none.
func readAll(t testing.TB, s *Session) (records []ring2.Record, r *Reader, err error) {
	t.Helper()
	r, err = s.Read(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		<-r.Done()
		stop()
	}()
	for {
		before := len(records)
		records, err = r.Next(ctx, records)
		if err != nil {
			return records, r, err
		}
		if len(records) == before {
			t.Fatal("Next returned nothing")
		}
		r.Release(records[len(records)-1].Seq + 1)
		if errors.Is(r.Quarantined(), ErrCorrupt) {
			return records, r, r.Quarantined()
		}
	}
}

func mustOpen(t testing.TB, dir string) *Recording {
	t.Helper()
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func sameRecords(t testing.TB, got, want []ring2.Record) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d records; want %d", len(got), len(want))
	}
	for i := range want {
		g, w := got[i], want[i]
		if !slices.Equal(g.Payload, w.Payload) || (g.Payload == nil) != (w.Payload == nil) {
			t.Errorf("record %d: another payload", w.Seq)
		}
		g.Payload, w.Payload = nil, nil
		if g.Seq != w.Seq || g.Kind != w.Kind || g.Flags != w.Flags || g.CaptureNS != w.CaptureNS || g.Step != w.Step ||
			g.Layout != w.Layout || g.Rows != w.Rows {
			t.Errorf("got %+v; want %+v", g, w)
		}
	}
}

// segmentFiles lists the files of a recording.
func segmentFiles(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "*"+segmentSuffix))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d segments, %v", len(files), err)
	}
	return files
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustWrite(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
