package detector

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/goccy/go-yaml"
)

// A manifest from anywhere is refused, or means the same when it is written again.
func FuzzManifest(f *testing.F) {
	b := write(f, draft())
	for _, dir := range []string{b.Dir, "../../detectors/german"} {
		text, err := os.ReadFile(filepath.Join(dir, manifestFile))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseManifest(text)
		if err != nil {
			return
		}
		if state := m.Aggregation.start(); math.IsNaN(state.add(1)) {
			t.Fatalf("aggregation %+v of 1 is no number", m.Aggregation)
		}
		again, err := yaml.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseManifest(again); err != nil {
			t.Fatalf("it is accepted, and refused when it is written again: %v\n%s", err, again)
		}
	})
}

// FuzzBundle gets past the digests: weights and test rows are refused, or make a
// probe that gives numbers.
func FuzzBundle(f *testing.F) {
	d := draft()
	weights, err := encodeWeights(d)
	if err != nil {
		f.Fatal(err)
	}
	vectors, err := encodeTestRows(d)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(weights, vectors)
	f.Add(weights, vectors[:len(vectors)-7])
	f.Add(weights[:len(weights)-1], vectors)
	f.Fuzz(func(t *testing.T, weights, vectors []byte) {
		b := Bundle{Manifest: d.Manifest}
		rows, err := decodeTestRows(vectors, d.Manifest.Binding)
		for _, row := range rows {
			if len(row.vec) != 4*d.Manifest.Binding.Width {
				t.Fatalf("a test row has %d bytes", len(row.vec))
			}
		}
		if b.loadWeights(weights) != nil {
			return
		}
		if len(b.Probe.Weight) != d.Manifest.Binding.Width || math.IsNaN(float64(b.Probe.Score(d.Rows[0]))) {
			t.Fatalf("the probe %+v gives no number", b.Probe)
		}
		if err == nil {
			_ = b.selfTest(rows) // A bundle may be wrong; it must not be more than that.
		}
	})
}
