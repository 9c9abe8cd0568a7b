package training

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestUpperBoundsAreThoseOfClopperAndPearson(t *testing.T) {
	for _, c := range []struct {
		k, n int
		want float64
	}{{0, 60, 1 - math.Pow(0.05, 1.0/60)}, {0, 1, 0.95}, {0, 299, 1 - math.Pow(0.05, 1.0/299)}, {1, 20, 0.2161}, {3, 100,
		0.0757},
		{20, 20, 1}, {19, 20, 1 - (1 - math.Pow(0.95, 1.0/20))}, {0, 0, 1}, {100, 10000, 0.01182}} {
		if got := upperBound(c.k, c.n); math.Abs(got-c.want) > 1e-4 {
			t.Errorf("%d of %d: at most %v, want %v", c.k, c.n, got, c.want)
		}
	}
}

// The claim behind the stated bound: although the clean requests choose the
// threshold, the true rate is below the bound in 95 of 100 datasets.
func TestTheBoundHoldsAlthoughTheSameRequestsChoseTheThreshold(t *testing.T) {
	const seed, datasets = 5, 1000
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, c := range []struct {
		n      int
		target float64
		shown  bool
	}{{60, 0.05, true}, {60, 0.01, false}, {200, 0.02, true}, {300, 0.05, true}, {7, 0.3, false}, {9, 0.3, true}} {
		held, sum := 0, 0.0
		for range datasets {
			var clean []float64
			var drawn []*heldOut
			for range c.n {
				score := random.Float32() // uniform: the true rate of a threshold x is 1-x
				clean = append(clean, float64(score))
				drawn = append(drawn, &heldOut{most: score, samples: [][]float32{{0, score, 0}}})
			}
			o := operate(drawn, clean, nil, c.target, 0.5)
			rate := 1 - float64(o.Threshold)
			sum += rate
			if rate <= o.Measured.UpperBound95+1e-4 {
				held++
			}
		}
		if share := float64(held) / datasets; share < 0.93 || share > 0.97 {
			t.Errorf("%d clean requests, aim %v: the bound holds in %v of the datasets, want 0.95", c.n, c.target, share)
		}
		if mean := sum / datasets; mean > math.Max(c.target, 1/float64(c.n+1))*1.05 {
			t.Errorf("%d clean requests, aim %v: the mean rate is %v", c.n, c.target, mean)
		}
		if bound := operate(requests(c.n), ramp(c.n), nil, c.target, 0).Measured.UpperBound95; bound > c.target == c.shown {
			t.Errorf("%d clean requests, aim %v: the bound is %v", c.n, c.target, bound)
		}
	}
}

func ramp(n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = float64(i)
	}
	return out
}

func requests(n int) []*heldOut {
	out := make([]*heldOut, n)
	for i, score := range ramp(n) {
		out[i] = &heldOut{samples: [][]float32{{float32(score)}}}
	}
	return out
}

func TestTiesNeverAlarmMoreThanAllowed(t *testing.T) {
	clean := []float64{1, 1, 1, 1, 1, 1, 1, 1, 0, 0}
	var requests []*heldOut
	for _, c := range clean {
		requests = append(requests, &heldOut{samples: [][]float32{{float32(c)}}})
	}
	if o := operate(requests, clean, nil, 0.5, 0.5); o.Measured.FalseAlarms != 0 || o.Threshold != 1 {
		t.Errorf("%+v", o)
	}
}

// The gap between the classes belongs to neither: the threshold stands inside it, and
// never below what the clean requests allow.
func TestTheThresholdStandsInTheGap(t *testing.T) {
	clean := []float64{-3, -2, -1}
	positive := []float64{-5, 9, 9, 9, 9, 9, 9, 9, 9, 9, 3}
	if o := operate(nil, clean, positive, 0.01, 0.5); o.Threshold != 1 {
		t.Errorf("threshold %v, want the middle between -1 and 3", o.Threshold)
	}
	if o := operate(nil, clean, []float64{-2, -2}, 0.01, 0.5); o.Threshold != -1 {
		t.Errorf("threshold %v of classes that overlap, want -1", o.Threshold)
	}
}

func TestTheFirstSampleToCrossCounts(t *testing.T) {
	h := &heldOut{samples: [][]float32{{0, 0, 0, 2}, {0, 2}, {0}}}
	if got := h.crossing(1); got != 2 {
		t.Errorf("crossed after %d tokens, want 2", got)
	}
	if got := h.crossing(2); got != 0 {
		t.Errorf("a score at the threshold crossed after %d tokens", got)
	}
}

func TestAUROCIsTheShareOfWonPairs(t *testing.T) {
	random := rand.New(rand.NewPCG(6, 0))
	for range 50 {
		var positive, clean []float64
		for range 1 + random.IntN(20) {
			positive = append(positive, float64(random.IntN(8)))
		}
		for range 1 + random.IntN(20) {
			clean = append(clean, float64(random.IntN(6)))
		}
		won := 0.0
		for _, p := range positive {
			for _, c := range clean {
				switch {
				case p > c:
					won++
				case p == c:
					won += 0.5
				}
			}
		}
		if got, want := auroc(slices.Clone(positive), clean),
			won/float64(len(positive)*len(clean)); math.Abs(got-want) > 1e-12 {
			t.Fatalf("%v against %v is %v, want %v", positive, clean, got, want)
		}
	}
}
