package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// history makes a run of minutes with one sample each 5 s. value is asked with
// the share of the run that is over.
func history(samples int, value func(done float64) float64) []point {
	var out []point
	for i := range samples {
		out = append(out, point{time.Duration(i) * 5 * time.Second, value(float64(i) / float64(samples-1))})
	}
	return out
}

// named finds a gauge of the trial.
func named(t *testing.T, name string) gauge {
	t.Helper()
	for _, g := range gauges {
		if g.name == name {
			return g
		}
	}
	t.Fatalf("there is no gauge %q", name)
	return gauge{}
}

func verdictOf(t *testing.T, name string, points []point) verdict {
	t.Helper()
	v, err := judge(named(t, name), points)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A run of 100 samples has about 500 commits, 10,000 requests and 40,000 steps. The
// smallest leak that matters is one of something for each commit.
func TestALeakIsNotTakenForNoise(t *testing.T) {
	const seed = 1
	r := rand.New(rand.NewPCG(seed, seed))
	noise := func(of float64) float64 { return of * (r.Float64() - 0.5) }
	for _, c := range []struct {
		what, gauge string
		value       func(done float64) float64
	}{
		{"an open file for each commit", "run: open files", func(d float64) float64 { return 40 + 500*d + noise(6) }},
		{"an open file for each tenth commit", "run: open files",
			func(d float64) float64 { return 40 + 50*d + noise(6) }},
		{"a goroutine for each batch", "run: goroutines", func(d float64) float64 { return 90 + 40_000*d + noise(10) }},
		{"a goroutine for each commit", "engine: goroutines", func(d float64) float64 { return 60 + 500*d + noise(40) }},
		{"10 KiB for each request", "run: resident memory",
			func(d float64) float64 { return 120 + 10*10_000/1024*d + noise(30) }},
		{"a log entry that holds all before", "lake: log per commit",
			func(d float64) float64 { return 4 + 20*d + noise(2) }},
		{"segments that nobody removes", "bus store", func(d float64) float64 { return 150 * d }},
		{"a dead letter now and then", "logs, dead letters: files",
			func(d float64) float64 { return 8 + float64(int(20*d)) }},
		{"files that shrink", "lake: files per commit", func(d float64) float64 { return 4 + 3*d }},
	} {
		if v := verdictOf(t, c.gauge, history(100, c.value)); v.flat() {
			t.Errorf("%s: taken for flat, drift %v, allowed %v (seed %d)", c.what, v.drift, v.allowed, seed)
		}
	}
}

func TestNoiseIsNotTakenForALeak(t *testing.T) {
	const seed = 2
	r := rand.New(rand.NewPCG(seed, seed))
	for _, c := range []struct {
		what, gauge string
		value       func(done float64) float64
	}{
		{"a steady value", "run: open files", func(float64) float64 { return 40 }},
		{"memory between two collections", "run: resident memory", func(float64) float64 { return 120 + 40*r.Float64() }},
		{"caches that fill in the first third", "run: resident memory",
			func(d float64) float64 { return 60 + 240*min(d, 0.33) }},
		{"connections that come and go", "engine: goroutines", func(float64) float64 { return 60 + float64(r.IntN(30)) }},
		{"a store that is trimmed segment by segment", "bus store", func(d float64) float64 {
			return 16 + 8*(20*d-float64(int(20*d)))
		}},
		{"a few outliers", "run: goroutines", func(float64) float64 {
			if r.IntN(10) == 0 {
				return 5000
			}
			return 90
		}},
		{"something that falls", "journal", func(d float64) float64 { return 64 - 60*d }},
	} {
		if v := verdictOf(t, c.gauge, history(100, c.value)); !v.flat() {
			t.Errorf("%s: not taken for flat, drift %v, allowed %v (seed %d)", c.what, v.drift, v.allowed, seed)
		}
	}
}

// Gauges that nobody fills would pass for flat.
func TestTooFewSamplesAreNoVerdict(t *testing.T) {
	for _, points := range [][]point{nil, history(minSamples-1, func(float64) float64 { return 1 })} {
		if _, err := judge(gauges[0], points); err == nil || !strings.Contains(err.Error(), "samples") {
			t.Errorf("of %d samples: %v", len(points), err)
		}
	}
	if _, err := judge(gauges[0], history(30, func(d float64) float64 { return (d - d) / (d - d) })); err == nil {
		t.Error("samples that are no numbers got a verdict")
	}
}

func TestFilesAreCountedAsWhatTheyAre(t *testing.T) {
	dir := t.TempDir()
	for path, bytes := range map[string]int{"lake/_log/1.json": 2048, "lake/vectors/a.parquet": 100,
		"lake/tokens/b.parquet": 50, "bus/jetstream/1.blk": mebibyte, "engine-state/j/1": 2 * mebibyte,
		"witness/x.witness": 7, "run.log": mebibyte, "dead-letter/agent/1": mebibyte} {
		file := filepath.Join(dir, filepath.FromSlash(path))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, make([]byte, bytes), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := &sample{values: map[string]float64{}}
	if err := s.count(dir); err != nil {
		t.Fatal(err)
	}
	if want := (totals{lakeFiles: 3, lakeBytes: 150, logBytes: 2048}); s.totals != want {
		t.Errorf("the lake counts as %+v, want %+v", s.totals, want)
	}
	for name, want := range map[string]float64{"bus store": 1, "bus store: files": 1, "journal": 2, "journal: files": 1,
		"logs, dead letters": 2, "logs, dead letters: files": 2} {
		if s.values[name] != want {
			t.Errorf("%s is %v, want %v", name, s.values[name], want)
		}
	}
}

// Between two checkpoints the log hardly grows: a checkpoint that holds all before
// must show all the same.
func TestCheckpointsOfTheLogAreNotOverlooked(t *testing.T) {
	var samples []*sample
	for commits := range 8 * window {
		s := &sample{commits: float64(commits), tokens: float64(1 + 1000*commits), at: time.Duration(commits) * time.Second,
			values: map[string]float64{}}
		if commits > 0 {
			s.totals = samples[commits-1].totals
		}
		s.totals.logBytes += 1024
		if commits%window == 0 {
			s.totals.logBytes += float64(commits) * 4096
		}
		s.compare(samples)
		samples = append(samples, s)
	}
	if v := verdictOf(t, "lake: log per commit", series(samples, named(t, "lake: log per commit"))); v.flat() {
		t.Errorf("checkpoints that grow are taken for flat: drift %v, allowed %v", v.drift, v.allowed)
	}
	if _, early := samples[window-1].values["lake: log per commit"]; early {
		t.Error("a sample of the first window compares with nothing")
	}
}

func TestTokensThatTheRingDroppedAreNotCaptured(t *testing.T) {
	m := map[string]float64{"sonde_engine_tokens_total": 1000, "sonde_engine_ring_captured_rows_total": 4000,
		"sonde_engine_ring_dropped_rows_total": 1000}
	if n := capturedTokens(m); n != 750 {
		t.Errorf("%v tokens, want 750", n)
	}
	if n := capturedTokens(nil); n != 0 {
		t.Errorf("%v tokens before the first", n)
	}
}

func TestTheReportNamesWhatGrows(t *testing.T) {
	var samples []*sample
	for i := range 40 {
		s := &sample{at: time.Duration(i) * time.Second, tokens: float64(i), commits: float64(i),
			values: map[string]float64{}}
		for _, g := range gauges {
			s.values[g.name] = 10
		}
		s.values["run: open files"] = float64(10 + 10*i)
		samples = append(samples, s)
	}
	dir := t.TempDir()
	err := report(dir, samples)
	if err == nil || !strings.Contains(err.Error(), "not flat: run: open files;") {
		t.Errorf("the report says %v", err)
	}
	for _, file := range []string{"soak.svg", "report.html"} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), "<polyline"); n != len(gauges) || strings.Count(string(text), "NOT FLAT") != 1 {
			t.Errorf("%s draws %d of %d gauges", file, n, len(gauges))
		}
	}
	delete(samples[0].values, "journal")
	for _, s := range samples {
		delete(s.values, "lake: files per commit")
		s.values["run: open files"] = 10
	}
	if err := report(dir, samples); err == nil || !strings.Contains(err.Error(), "lake: files per commit: 0 samples") {
		t.Errorf("a gauge without samples: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "report.html"))
	if err != nil {
		t.Fatal(err)
	}
	if page := string(text); !strings.Contains(page, "too short to tell") || !strings.Contains(page, "0 samples") ||
		strings.Count(page, "<polyline") != len(gauges)-1 {
		t.Errorf("the page of a run that was too short claims more than it knows:\n%s", page)
	}
}
