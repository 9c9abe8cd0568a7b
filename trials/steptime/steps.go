// Package steptime compares the step times of an engine between windows of one run, for
// trials that show what something costs it.
package steptime

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Step is one line of the engine's step log.
type Step struct {
	wallNS     int64 // wall clock at its start
	durationNS int64
	tokens     int
	sequences  int
}

// Read reads the engine's step log: wall ns, duration ns, tokens and
// sequences of one step a line. A torn last line is ignored.
func Read(path string) ([]Step, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the engine's step log: %w", err)
	}
	defer f.Close()
	var out []Step
	for scan := bufio.NewScanner(f); scan.Scan(); {
		var s Step
		if _, err := fmt.Sscan(scan.Text(), &s.wallNS, &s.durationNS, &s.tokens, &s.sequences); err == nil {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("the engine's step log %s holds no step", path)
	}
	return out, nil
}

// Window is a part of a run.
type Window struct{ From, To time.Time }

// Arm is the step times of one way of running.
type Arm struct {
	name      string
	Durations []time.Duration // ascending
}

// Alike keeps the steps of some windows that did the same work: one token of
// each of sequences.
func Alike(name string, steps []Step, sequences int, windows ...Window) Arm {
	a := Arm{name: name}
	for _, w := range windows {
		for _, s := range steps {
			if s.wallNS >= w.From.UnixNano() && s.wallNS < w.To.UnixNano() && s.tokens == sequences &&
				s.sequences == sequences {
				a.Durations = append(a.Durations, time.Duration(s.durationNS))
			}
		}
	}
	slices.Sort(a.Durations)
	return a
}

// Quantile is the smallest step time that at least a share q of the steps do not
// exceed; 0 without steps.
func (a *Arm) Quantile(q float64) time.Duration {
	if len(a.Durations) == 0 {
		return 0
	}
	at := int(q*float64(len(a.Durations))+0.999999) - 1
	return a.Durations[min(max(at, 0), len(a.Durations)-1)]
}

func (a *Arm) String() string {
	return fmt.Sprintf("%-28s %7d steps  median %8v  p99 %8v", a.name, len(a.Durations), round(a.Quantile(0.5)),
		round(a.Quantile(0.99)))
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Nanosecond) }

// Compare writes how the step times of two arms relate.
func Compare(what string, a, b *Arm) string {
	ratio := func(q float64) string {
		if a.Quantile(q) == 0 || b.Quantile(q) == 0 {
			return "none"
		}
		return fmt.Sprintf("%.3f", float64(a.Quantile(q))/float64(b.Quantile(q)))
	}
	return strings.TrimSpace(fmt.Sprintf("%-36s median %s  p99 %s", what, ratio(0.5), ratio(0.99)))
}
