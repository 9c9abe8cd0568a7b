package recording

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"sonde/ring2"
)

// captures is a source of large records, a batch at a time.
type captures struct {
	*source
	batch []ring2.Record
	left  int
}

func (s *captures) Release(uint64) {}

func (s *captures) Next(_ context.Context, dst []ring2.Record) ([]ring2.Record, error) {
	if s.left == 0 {
		return dst, io.EOF
	}
	s.left--
	for i := range s.batch {
		s.batch[i].Seq = s.seq
		s.seq++
	}
	return append(dst, s.batch...), nil
}

// The bare baseline of BenchmarkRecord is BenchmarkBareWrite: the same bytes with
// plain writes, and as many syncs.
const (
	benchRecords = 16
	benchBytes   = 64 << 10
)

func BenchmarkRecord(b *testing.B) {
	dir := b.TempDir()
	s := &captures{source: newSource(0), left: b.N}
	s.config.DataBytes = 64 << 20
	for range benchRecords {
		s.batch = append(s.batch, ring2.Record{Kind: ring2.KindCapture, Payload: make([]byte, benchBytes)})
	}
	r, err := NewRecorder(dir, Options{}, quiet)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	b.SetBytes(benchRecords * benchBytes)
	b.ResetTimer()
	if err := r.Record(b.Context(), s); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkBareWrite(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	payload := make([]byte, benchRecords*benchBytes)
	b.SetBytes(benchRecords * benchBytes)
	for b.Loop() {
		if _, err := f.Write(payload); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	s := newSource(0)
	s.config.DataBytes = 64 << 20
	for range 64 {
		s.batches = append(s.batches, []ring2.Record{s.record(ring2.KindModel, make([]byte, 1<<20))})
	}
	s.err = io.EOF
	if err := record(b, dir, Options{}, s); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(64 << 20)
	for b.Loop() {
		mustOpen(b, dir)
	}
}
