package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"
)

// sample is what one run of an arm took.
type sample struct {
	seconds float64 // wall clock
	cpu     float64 // seconds of all cores, of the process that the arm is about; 0: not measured
}

// arm is one of the things that are compared. run may prepare for as long as it
// likes: it says itself what the measured part took.
type arm struct {
	name string
	run  func(ctx context.Context) (sample, error)
}

// timed makes an arm's run of something that is measured from start to end.
func timed(f func(ctx context.Context) error) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		cpu, began := processCPU(), time.Now()
		err := f(ctx)
		return sample{time.Since(began).Seconds(), processCPU() - cpu}, err
	}
}

// rounds are the samples of some arms: index i of each is of the same round.
type rounds map[string][]sample

// interleave runs every arm once a round, in a random order, so that whatever else
// the machine does meets all of them alike. A round before the first only warms up.
func interleave(ctx context.Context, r *rand.Rand, runs int, progress func(round int), arms ...arm) (rounds, error) {
	out := rounds{}
	for round := range runs + 1 {
		progress(round)
		for _, i := range r.Perm(len(arms)) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			runtime.GC() // the garbage of one arm is not collected on the clock of another
			s, err := arms[i].run(ctx)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", arms[i].name, err)
			}
			if round > 0 {
				out[arms[i].name] = append(out[arms[i].name], s)
			}
		}
	}
	return out, nil
}

// spread is a median with the lowest and the highest figure of all rounds.
type spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

func spreadOf(figures []float64) spread {
	if len(figures) == 0 {
		return spread{math.NaN(), math.NaN(), math.NaN()}
	}
	return spread{median(figures), slices.Min(figures), slices.Max(figures)}
}

// median is the middle figure, or the mean of the two in the middle.
func median(figures []float64) float64 {
	s := slices.Sorted(slices.Values(figures))
	n := len(s)
	if n == 0 {
		return math.NaN()
	}
	return (s[(n-1)/2] + s[n/2]) / 2
}

// speed is how fast an arm is, as a multiple of another, round by round: 2 means in
// half the time.
func (r rounds) speed(of, than string) spread {
	return spreadOf(r.eachRound(of, than, func(a, b sample) float64 { return b.seconds / a.seconds }))
}

// noise is how far the speed of two arms that do the same is from 1, in the
// average round: what a ratio of this table may be off by.
func (r rounds) noise(one, other string) float64 {
	return median(r.eachRound(one, other, func(a, b sample) float64 { return math.Abs(a.seconds/b.seconds - 1) }))
}

// cpu is the CPU time of an arm as a multiple of another's.
func (r rounds) cpu(of, than string) spread {
	return spreadOf(r.eachRound(of, than, func(a, b sample) float64 { return a.cpu / b.cpu }))
}

func (r rounds) eachRound(one, other string, f func(a, b sample) float64) []float64 {
	a, b := r[one], r[other]
	if len(a) != len(b) {
		panic(fmt.Sprintf("BUG: %d rounds of %s and %d of %s", len(a), one, len(b), other))
	}
	out := make([]float64, len(a))
	for i := range a {
		out[i] = f(a[i], b[i])
	}
	return out
}

// rate is how many of something an arm does in a second of wall clock.
func (r rounds) rate(of string, amount float64) spread {
	return spreadOf(each(r[of], func(s sample) float64 { return amount / s.seconds }))
}

// cores is how many cores an arm keeps busy.
func (r rounds) cores(of string) spread {
	return spreadOf(each(r[of], func(s sample) float64 { return s.cpu / s.seconds }))
}

// cpuPer is the CPU time of an arm for one of something.
func (r rounds) cpuPer(of string, amount float64) spread {
	return spreadOf(each(r[of], func(s sample) float64 { return s.cpu / amount }))
}

func each(samples []sample, f func(sample) float64) []float64 {
	out := make([]float64, len(samples))
	for i, s := range samples {
		out[i] = f(s)
	}
	return out
}
