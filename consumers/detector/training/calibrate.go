package training

import (
	"math"
	"slices"
	"sort"

	"sonde/consumers/detector"
)

// confidence of the stated bounds.
const confidence = 0.95

// Operating is a threshold and what it does to the held-out requests.
type Operating struct {
	Threshold    float32
	Target       float64 // false-alarm rate aimed at
	Measured     detector.Measured
	MedianTokens int // judged tokens until a detected positive request crossed, half of them earlier
	// Shown is how many clean requests without a false alarm it would take to show the
	// target with 95 % confidence.
	Shown int
}

func (o Operating) level(name string) detector.Level {
	return detector.Level{Name: name, Threshold: o.Threshold, FalseAlarmRate: o.Target, Measured: o.Measured}
}

// operate picks the threshold for a false-alarm rate and judges every request by it.
//
// A request alarms when its largest aggregated score is above the threshold. The
// lowest threshold that is allowed is the (k+1)-th largest score of the n clean
// requests, so that k of them alarm. For a continuous score the rate of a future
// clean request is then Beta(k+1, n-k) distributed. The quantile of that distribution
// is the Clopper-Pearson upper bound for k of n, so the bound holds although the same
// requests chose the threshold (Wilks, "Determination of sample sizes for setting
// tolerance limits", 1941). k is the largest for which the bound does not exceed the
// target; with too few clean requests it is 0, and the target is not shown.
//
// Where the classes leave a gap, the threshold stands inside it, at the given share of
// the way to the score that nine in ten positive requests reach: a higher threshold
// only lowers the false alarms, and one at the edge would fire on the first token that
// looks a little unlike the clean requests of the dataset.
func operate(requests []*heldOut, clean, positive []float64, target, inGap float64) Operating {
	sorted := slices.Clone(clean)
	sort.Sort(sort.Reverse(sort.Float64Slice(sorted)))
	n := len(sorted)
	most := min(n, int(target*float64(n))+1) // beyond, k of n itself is above the target
	k := max(0, sort.Search(most, func(k int) bool { return upperBound(k, n) > target })-1)
	threshold := sorted[k]
	if reached := ninetieth(positive); reached > threshold {
		threshold += inGap * (reached - threshold)
	}
	o := Operating{Threshold: float32(threshold), Target: target,
		Shown: int(math.Ceil(math.Log(1-confidence) / math.Log1p(-target)))}
	o.Measured.CleanRequests = n
	var tokens []int
	for _, r := range requests {
		crossed := r.crossing(o.Threshold)
		switch {
		case r.positive:
			o.Measured.Positives++
			if crossed > 0 {
				o.Measured.Detected++
				tokens = append(tokens, crossed)
			}
		case crossed > 0:
			o.Measured.FalseAlarms++
		}
	}
	o.Measured.UpperBound95 = rounded(upperBound(k, n))
	if len(tokens) > 0 {
		sort.Ints(tokens)
		o.MedianTokens = tokens[(len(tokens)-1)/2]
	}
	return o
}

// ninetieth is the score that nine in ten requests reach.
func ninetieth(scores []float64) float64 {
	if len(scores) == 0 {
		return math.Inf(-1)
	}
	sorted := slices.Clone(scores)
	sort.Float64s(sorted)
	return sorted[len(sorted)/10]
}

// crossing is after how many judged tokens the first sample of a request crossed; 0:
// never.
func (h *heldOut) crossing(threshold float32) int {
	first := 0
	for _, scores := range h.samples {
		for i, s := range scores {
			if s > threshold && (first == 0 || i+1 < first) {
				first = i + 1
			}
		}
	}
	return first
}

// upperBound is the upper end of the one-sided Clopper-Pearson interval for k of n:
// the share at which k or fewer would be seen with probability 1 - confidence.
func upperBound(k, n int) float64 {
	if k >= n {
		return 1
	}
	low, high := 0.0, 1.0
	for range 60 {
		if p := (low + high) / 2; atMost(k, n, p) > 1-confidence {
			low = p
		} else {
			high = p
		}
	}
	return high
}

// atMost is the probability of at most k successes in n trials.
func atMost(k, n int, p float64) float64 {
	if p <= 0 {
		return 1
	}
	term := float64(n) * math.Log1p(-p) // logarithm of the probability of i successes
	sum, odds := math.Exp(term), math.Log(p)-math.Log1p(-p)
	for i := range k {
		term += math.Log(float64(n-i)/float64(i+1)) + odds
		sum += math.Exp(term)
	}
	return sum
}

// auroc is the chance that a positive request scores above a clean one, ties counting
// half.
func auroc(positive, clean []float64) float64 {
	all := make([]float64, 0, len(positive)+len(clean))
	all = append(append(all, positive...), clean...)
	sort.Float64s(all)
	ranks := 0.0 // of the positives, from 1, ties sharing their mean
	for _, v := range positive {
		below := sort.SearchFloat64s(all, v)
		upTo := sort.Search(len(all), func(i int) bool { return all[i] > v })
		ranks += float64(below+1+upTo) / 2
	}
	p, c := float64(len(positive)), float64(len(clean))
	return (ranks - p*(p+1)/2) / (p * c)
}
