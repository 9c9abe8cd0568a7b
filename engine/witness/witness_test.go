package witness

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sonde/engine/model"
	"sonde/ring2"
)

var hooks = []model.Hook{{Name: "embed", Layer: -1}, {Name: "final_logits", Layer: -1, Select: ring2.SelectSampled},
	{Name: "resid_post", Layer: 3}}

// write makes a file of some steps and returns the rows that it holds.
func write(t testing.TB, dir string, epoch uint64, steps int) []Row {
	t.Helper()
	w, err := Create(dir, epoch, hooks)
	if err != nil {
		t.Fatal(err)
	}
	var want []Row
	for step := range steps {
		ranges := []model.Range{
			{Request: "a", Sample: 1, Pass: 2, Position: 10 * step, Tokens: make([]int32, 3)},
			{Request: fmt.Sprint("b", step), Position: step, Tokens: make([]int32, 2), Logits: []float32{}},
		}
		w.Step(ranges)
		for _, h := range hooks {
			for _, r := range ranges {
				for i := range r.Tokens {
					if h.Select == ring2.SelectSampled && (r.Logits == nil || i < len(r.Tokens)-1) {
						continue
					}
					row := fmt.Appendf(nil, "%s %d %s %d", h.Name, h.Layer, r.Request, r.Position+i)
					w.Row(row)
					sum := sha256.Sum256(row)
					want = append(want, Row{epoch, r.Request, r.Sample, r.Position + i, r.Pass, h.Name, h.Layer, [16]byte(sum[:16])})
				}
			}
		}
		if err := w.End(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return want
}

func readAll(dir string) (rows []Row, err error) {
	err = Read(dir, func(r Row) error { rows = append(rows, r); return nil })
	return rows, err
}

func TestRowsComeBackUnderTheirNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "witness")
	want := append(write(t, dir, 1, 4), write(t, dir, 2, 3)...)
	got, err := readAll(dir)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("read %d rows, %v; wrote %d", len(got), err, len(want))
	}
}

// A process that dies while it writes must not take the rest of its file with it.
func TestTornTailGivesWhatStandsBefore(t *testing.T) {
	dir := t.TempDir()
	want := write(t, dir, 1, 3)
	name := filepath.Join(dir, "0000000000000001.witness")
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	last := -1
	for n := range len(whole) + 1 {
		if err := os.WriteFile(name, whole[:n], 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := readAll(dir)
		if err != nil || len(got) < last || !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("cut at %d: %d rows after %d, %v", n, len(got), last, err)
		}
		last = len(got)
	}
	if last != len(want) {
		t.Errorf("the whole file gave %d of %d rows", last, len(want))
	}
}

// A witness that was altered must not vouch for anything.
func TestAlteredFileIsAnError(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	want := write(t, dir, 1, 3)
	name := filepath.Join(dir, "0000000000000001.witness")
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		bad := slices.Clone(whole)
		at := random.IntN(len(bad))
		bad[at] ^= byte(1 + random.IntN(255))
		if err := os.WriteFile(name, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := readAll(dir)
		// A length that grew beyond the file looks like a torn tail.
		if err == nil && (len(got) >= len(want) || !slices.Equal(got, want[:len(got)])) {
			t.Fatalf("seed %d: byte %d altered, %d rows, no error", seed, at, len(got))
		}
	}
}

func TestForeignFilesAndFailingReadersAreErrors(t *testing.T) {
	if _, err := readAll(t.TempDir()); err == nil || !strings.Contains(err.Error(), "holds no") {
		t.Errorf("empty folder: %v", err)
	}
	dir := t.TempDir()
	write(t, dir, 1, 1)
	stop := errors.New("stop")
	if err := Read(dir, func(Row) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("reader's error: %v", err)
	}
	if _, err := Create(dir, 1, hooks); err == nil {
		t.Error("a second writer of an epoch was let in")
	}
}

// A count in a step must not make the reader invent rows or read past its bytes.
func FuzzStep(f *testing.F) {
	dir := f.TempDir()
	write(f, dir, 1, 1)
	whole, err := os.ReadFile(filepath.Join(dir, "0000000000000001.witness"))
	if err != nil {
		f.Fatal(err)
	}
	head := int(order.Uint32(whole))
	f.Add(whole[recordBytes+head+recordBytes:])
	f.Fuzz(func(t *testing.T, payload []byte) {
		var s steps
		if err := s.head(whole[recordBytes : recordBytes+head]); err != nil {
			t.Fatal(err)
		}
		rows := 0
		_ = s.step(payload, func(Row) error { rows++; return nil }) // Any error will do.
		if rows*hashBytes > len(payload) {
			t.Errorf("%d rows in %d bytes", rows, len(payload))
		}
	})
}

func BenchmarkRow(b *testing.B) {
	w, err := Create(b.TempDir(), 1, hooks[:1])
	if err != nil {
		b.Fatal(err)
	}
	row := make([]byte, 512)
	ranges := []model.Range{{Request: "r", Tokens: make([]int32, 256)}}
	b.SetBytes(256 * 512)
	for b.Loop() {
		w.Step(ranges)
		for range 256 {
			w.Row(row)
		}
		if err := w.End(); err != nil {
			b.Fatal(err)
		}
	}
}
