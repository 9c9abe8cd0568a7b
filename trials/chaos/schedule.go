package main

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"time"
)

// fault is one entry of a schedule: what is done, to whom, and for how long. Everything
// about it comes from the seed, nothing from what the pipeline does.
type fault struct {
	Number   int // in its run, from 0
	Kind     *kind
	Target   int           // which of several processes or links, as the kind counts them
	Before   time.Duration // calm before it
	Hold     time.Duration // how long it lasts
	Amount   float64       // in [0,1): how much of it
	Together bool          // it begins while the one before it lasts
}

func (f fault) String() string {
	with := ""
	if f.Together {
		with = ", together with the one before"
	}
	return fmt.Sprintf("%3d  %-34s target %d, after %v, for %v, amount %.2f%s", f.Number, f.Kind.name, f.Target,
		f.Before.Round(time.Millisecond), f.Hold.Round(time.Millisecond), f.Amount, with)
}

// newSchedule draws the faults of a run on one bus. Each kind that the bus has comes
// once before any comes again, as far as the number goes. One in six begins while the one
// before it lasts, where the two may overlap, so that recoveries meet faults.
func newSchedule(seed uint64, on busName, faults int, only *regexp.Regexp) []fault {
	random := rand.New(rand.NewPCG(seed, uint64(len(on))<<8|uint64(on[0])))
	var all, deck []*kind
	for i := range kinds {
		if kinds[i].has(on) && only.MatchString(kinds[i].name) {
			all = append(all, &kinds[i])
		}
	}
	if len(all) == 0 {
		return nil
	}
	out := make([]fault, 0, faults)
	for n := range faults {
		if len(deck) == 0 {
			deck = append(deck, all...)
			random.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		k := deck[0]
		deck = deck[1:]
		f := fault{Number: n, Kind: k, Target: random.IntN(1 << 16), Before: between(random, 200, 1500),
			Hold: between(random, k.holdMS[0], k.holdMS[1]), Amount: random.Float64()}
		together := random.IntN(6) == 0
		if n > 0 && !out[n-1].Together && k.group != out[n-1].Kind.group && k.mixes && out[n-1].Kind.mixes {
			f.Together = together
		}
		out = append(out, f)
	}
	return out
}

func between(r *rand.Rand, fromMS, toMS int) time.Duration {
	return time.Duration(fromMS+r.IntN(max(1, toMS-fromMS))) * time.Millisecond
}
