package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sonde/trials/fleet"
)

// sample is what was seen at one moment.
type sample struct {
	at      time.Duration // since the first sample
	tokens  float64       // captured so far
	commits float64       // of the lake so far
	values  map[string]float64
	totals  totals
}

// totals only rise; gauges are made of their differences.
type totals struct{ lakeFiles, lakeBytes, logBytes float64 }

const mebibyte = 1 << 20

// window is over how many commits the lake is measured: from one checkpoint of its
// log to the next, so that each window holds one.
const window = 64

// look takes a sample. earlier are those before it.
func look(pipe *fleet.Pipeline, began time.Time, earlier []*sample) (*sample, error) {
	run, err := pipe.AgentMetrics()
	if err != nil {
		return nil, fmt.Errorf("sample sonde run: %w", err)
	}
	engine, err := pipe.EngineMetrics()
	if err != nil {
		return nil, fmt.Errorf("sample the engine: %w", err)
	}
	s := &sample{at: time.Since(began), tokens: capturedTokens(engine), commits: run["sonde_lake_version"],
		values: map[string]float64{}}
	for name, m := range map[string]map[string]float64{"run": run, "engine": engine} {
		s.values[name+": resident memory"] = m["process_resident_memory_bytes"] / mebibyte
		s.values[name+": goroutines"] = m["go_goroutines"]
		s.values[name+": open files"] = m["process_open_fds"]
	}
	if err := s.count(pipe.Dir); err != nil {
		return nil, err
	}
	s.compare(earlier)
	return s, nil
}

// compare fills the gauges of the lake with what the last window of commits added.
// Samples of the first window have none.
func (s *sample) compare(earlier []*sample) {
	for _, before := range slices.Backward(earlier) {
		commits := s.commits - before.commits
		if commits < window || s.tokens <= before.tokens {
			continue
		}
		s.values["lake: files per commit"] = (s.totals.lakeFiles - before.totals.lakeFiles) / commits
		s.values["lake: log per commit"] = (s.totals.logBytes - before.totals.logBytes) / commits / 1024
		s.values["lake: bytes per token"] = (s.totals.lakeBytes - before.totals.lakeBytes) / (s.tokens - before.tokens)
		return
	}
}

// capturedTokens are those whose rows the ring took.
func capturedTokens(engine map[string]float64) float64 {
	offered := engine["sonde_engine_ring_captured_rows_total"]
	if offered == 0 {
		return 0
	}
	return engine["sonde_engine_tokens_total"] * (1 - engine["sonde_engine_ring_dropped_rows_total"]/offered)
}

// count adds up the files of a trial. What vanishes meanwhile is not counted.
func (s *sample) count(dir string) error {
	files, bytes := map[string]float64{}, map[string]float64{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		kind := kindOf(filepath.ToSlash(rel))
		files[kind]++
		bytes[kind] += float64(info.Size())
		return err
	})
	if err != nil {
		return fmt.Errorf("count the files in %s: %w", dir, err)
	}
	s.totals = totals{files["lake"] + files["lake log"], bytes["lake"], bytes["lake log"]}
	for _, kind := range []string{"bus store", "journal", "logs, dead letters"} {
		s.values[kind] = bytes[kind] / mebibyte
		s.values[kind+": files"] = files[kind]
	}
	return nil
}

// kindOf says what a file is, by its path below the folder of the trial.
func kindOf(path string) string {
	switch top, rest, _ := strings.Cut(path, "/"); {
	case top == "lake" && strings.HasPrefix(rest, "_log/"):
		return "lake log"
	case top == "lake":
		return "lake"
	case top == "bus":
		return "bus store"
	case top == "engine-state":
		return "journal"
	case top == "witness": // It grows with every row: it is the trial's own.
		return "witness"
	}
	return "logs, dead letters"
}

// series are the points of a gauge, of the samples that have it.
func series(samples []*sample, g gauge) []point {
	var out []point
	for _, s := range samples {
		if v, ok := s.values[g.name]; ok {
			out = append(out, point{s.at, v})
		}
	}
	return out
}
