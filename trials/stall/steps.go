package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// step is one line of the engine's step log.
type step struct {
	wallNS     int64 // wall clock at its start
	durationNS int64
	tokens     int
	sequences  int
}

// readSteps reads the engine's step log: wall ns, duration ns, tokens and
// sequences of one step a line. A torn last line is ignored.
func readSteps(path string) ([]step, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the engine's step log: %w", err)
	}
	defer f.Close()
	var out []step
	for scan := bufio.NewScanner(f); scan.Scan(); {
		var s step
		if _, err := fmt.Sscan(scan.Text(), &s.wallNS, &s.durationNS, &s.tokens, &s.sequences); err == nil {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the engine's step log %s holds no step", path)
	}
	return out, nil
}

// window is a part of a run in which the agent ran, or was stopped.
type window struct{ from, to time.Time }

// arm is the step times of one way of running.
type arm struct {
	name      string
	durations []time.Duration // ascending
}

// alike keeps the steps of some windows that did the same work: one token of
// each of sequences.
func alike(name string, steps []step, sequences int, windows ...window) arm {
	a := arm{name: name}
	for _, w := range windows {
		for _, s := range steps {
			if s.wallNS >= w.from.UnixNano() && s.wallNS < w.to.UnixNano() && s.tokens == sequences &&
				s.sequences == sequences {
				a.durations = append(a.durations, time.Duration(s.durationNS))
			}
		}
	}
	slices.Sort(a.durations)
	return a
}

// quantile is the smallest step time that at least a share q of the steps do not
// exceed; 0 without steps.
func (a *arm) quantile(q float64) time.Duration {
	if len(a.durations) == 0 {
		return 0
	}
	at := int(q*float64(len(a.durations))+0.999999) - 1
	return a.durations[min(max(at, 0), len(a.durations)-1)]
}

func (a *arm) String() string {
	return fmt.Sprintf("%-28s %7d steps  median %8v  p99 %8v", a.name, len(a.durations), round(a.quantile(0.5)),
		round(a.quantile(0.99)))
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Nanosecond) }

// compare writes how the step times of two arms relate.
func compare(what string, a, b *arm) string {
	ratio := func(q float64) string {
		if a.quantile(q) == 0 || b.quantile(q) == 0 {
			return "none"
		}
		return fmt.Sprintf("%.3f", float64(a.quantile(q))/float64(b.quantile(q)))
	}
	return strings.TrimSpace(fmt.Sprintf("%-36s median %s  p99 %s", what, ratio(0.5), ratio(0.99)))
}
