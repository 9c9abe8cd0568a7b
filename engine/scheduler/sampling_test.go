package scheduler

import (
	"math"
	"testing"
)

var inf = float32(math.Inf(1))
var nan = float32(math.NaN())

// A model that gives one bad logit must not decide what is said.
func TestLogitsThatAreNotFiniteAreNeverChosen(t *testing.T) {
	for _, how := range []Sampling{{Temperature: 0, TopP: 1}, {Temperature: 1, TopP: 1}, {Temperature: 1, TopP: 0.5},
		{Temperature: math.SmallestNonzeroFloat64, TopP: 1}, {Temperature: math.MaxFloat32, TopP: 0.9}} {
		for seed := range uint64(200) {
			how.Seed = seed
			var s sampler
			id, err := s.draw([]float32{nan, inf, 1, -inf, 1.5, nan}, how, 0, 0)
			if err != nil || id != 2 && id != 4 {
				t.Fatalf("%+v: token %d, %v", how, id, err)
			}
		}
	}
	var s sampler
	if id, err := s.draw([]float32{nan, inf, -inf}, Sampling{Temperature: 1, TopP: 1}, 0, 0); err == nil {
		t.Errorf("token %d was chosen without a finite logit", id)
	}
}

// A sampler that is off by one draws from another distribution and nobody sees it.
func TestDrawsFollowTheDistribution(t *testing.T) {
	logits := []float32{0, 1, 2, 3}
	sum := 0.0
	for _, l := range logits {
		sum += math.Exp(float64(l))
	}
	for _, c := range []struct {
		topP float64
		want []float64
	}{
		{1, []float64{1 / sum, math.E / sum, math.Exp(2) / sum, math.Exp(3) / sum}},
		{0.8, []float64{0, 0, 1 / (1 + math.E), math.E / (1 + math.E)}},
		{0.1, []float64{0, 0, 0, 1}},
	} {
		const n = 40000
		var s sampler
		counts := make([]float64, len(logits))
		for position := range n {
			id, err := s.draw(logits, Sampling{Temperature: 1, TopP: c.topP, Seed: 9}, 3, position)
			if err != nil {
				t.Fatal(err)
			}
			counts[id]++
		}
		for i := range counts {
			if d := counts[i]/n - c.want[i]; math.Abs(d) > 0.01 {
				t.Errorf("top_p %v: token %d was drawn %v of the time, not %v", c.topP, i, counts[i]/n, c.want[i])
			}
		}
	}
}

func TestEqualLogitsAreChosenInOrder(t *testing.T) {
	var s sampler
	if id, err := s.draw([]float32{1, 5, 5}, Sampling{TopP: 1}, 0, 0); id != 1 || err != nil {
		t.Errorf("greedy chose %d, %v", id, err)
	}
	if id, err := s.draw([]float32{5, 1, 5, 5}, Sampling{Temperature: 1, TopP: 0.01}, 0, 0); id != 0 || err != nil {
		t.Errorf("top_p chose %d, %v", id, err)
	}
}

func TestDrawsOfSeedsSamplesAndPositionsDiffer(t *testing.T) {
	seen := map[float64]bool{}
	for seed := range uint64(20) {
		for sample := range 20 {
			for position := range 20 {
				u := uniform(seed, sample, position)
				if seen[u] || u < 0 || u >= 1 {
					t.Fatalf("uniform(%d, %d, %d) = %v", seed, sample, position, u)
				}
				seen[u] = true
			}
		}
	}
}

func BenchmarkDraw(b *testing.B) {
	logits := make([]float32, 4096)
	for i := range logits {
		logits[i] = float32(mix(uint64(i))>>40) * 12 / (1 << 24)
	}
	for _, c := range []struct {
		name string
		topP float64
	}{{"whole", 1}, {"top_p", 0.9}} {
		b.Run(c.name, func(b *testing.B) {
			var s sampler
			for i := 0; b.Loop(); i++ {
				if _, err := s.draw(logits, Sampling{Temperature: 0.8, TopP: c.topP}, 0, i); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
