package detector

import (
	"math"
	"math/rand/v2"
	"sort"
	"testing"
)

// Each aggregation against its definition, computed anew from all scores so far.
func TestAggregationsAreTheirDefinitions(t *testing.T) {
	const seed = 3
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	window := func(x []float64, end, n int) float64 { // mean of the n scores before end; missing ones are 0
		sum := 0.0
		for i := max(0, end-n); i < end; i++ {
			sum += x[i]
		}
		return sum / float64(n)
	}
	for text, definition := range map[string]func(x []float64) float64{
		"ema:3": func(x []float64) float64 {
			sum, alpha := 0.0, 1-math.Pow(2, -1.0/3)
			for i, v := range x {
				sum += alpha * math.Pow(1-alpha, float64(len(x)-1-i)) * v
			}
			return sum
		},
		"mean:4": func(x []float64) float64 { return window(x, len(x), 4) },
		"max_rolling_mean:4": func(x []float64) float64 {
			most := 0.0
			for end := range len(x) + 1 {
				most = max(most, window(x, end, 4))
			}
			return most
		},
		"topk:2,3": func(x []float64) float64 {
			means := []float64{0, 0}
			for end := 3; end <= len(x); end += 3 {
				means = append(means, window(x, end, 3))
			}
			sort.Float64s(means)
			return (means[len(means)-1] + means[len(means)-2]) / 2
		},
		"cusum:0.5": func(x []float64) float64 {
			most := 0.0 // the largest sum of x-drift over any run of tokens up to the last
			for from := range x {
				sum := 0.0
				for _, v := range x[from:] {
					sum += v - 0.5
				}
				most = max(most, sum)
			}
			return most
		},
	} {
		a, err := ParseAggregation(text)
		if err != nil {
			t.Fatal(err)
		}
		if a.String() != text {
			t.Errorf("%s is written as %s", text, a)
		}
		state := a.start()
		var x []float64
		for range 100 {
			x = append(x, random.NormFloat64())
			if got, want := state.add(x[len(x)-1]), definition(x); math.Abs(got-want) > 1e-12 {
				t.Fatalf("%s after %d tokens is %v, want %v", text, len(x), got, want)
			}
		}
	}
}

func TestAlphaIsAHalfLife(t *testing.T) {
	byAlpha, byHalfLife := Aggregation{Kind: "ema", Alpha: 0.5}.start(), Aggregation{Kind: "ema", HalfLife: 1}.start()
	for range 5 {
		if a, b := byAlpha.add(1), byHalfLife.add(1); a != b {
			t.Errorf("alpha 0.5 gives %v, half-life 1 gives %v", a, b)
		}
	}
	if text := (Aggregation{Kind: "ema", Alpha: 0.5}).String(); text != "ema:1" {
		t.Errorf("alpha 0.5 is written as %s", text)
	}
}

func TestAggregationsThatMakeNoSenseAreRefused(t *testing.T) {
	for _, text := range []string{"", "median", "ema:0", "ema:-1", "ema:x", "ema:nan", "mean:0", "mean:99999999",
		"mean:1e300",
		"topk:0", "topk:5,0", "topk:999", "cusum:-1", "cusum:nan", "mean:"} {
		if a, err := ParseAggregation(text); err == nil {
			t.Errorf("%q is %+v", text, a)
		}
	}
	for _, text := range []string{"ema", "mean", "max_rolling_mean", "topk", "cusum"} {
		a, err := ParseAggregation(text)
		if err != nil || a.problem() != "" {
			t.Errorf("%s without parameters: %v %s", text, err, a.problem())
		}
	}
	if (Aggregation{Kind: "ema", Alpha: 0.1, HalfLife: 3}).problem() == "" {
		t.Error("alpha and half_life together are taken")
	}
}
