package training

import (
	"context"
	"math"
	"math/rand/v2"
	"testing"
)

func randomMatrix(seed uint64, n, width int) *matrix {
	random := rand.New(rand.NewPCG(seed, 0))
	m := &matrix{n: n, width: width, stride: 1}
	for range n {
		positive := random.IntN(3) == 0
		m.positive = append(m.positive, positive)
		for k := range width {
			x := 5*float64(k) + random.NormFloat64()
			if positive && k == 0 {
				x++
			}
			m.x = append(m.x, float32(x))
		}
	}
	return m
}

func TestTheGradientIsThatOfTheLoss(t *testing.T) {
	m := randomMatrix(1, 57, 5)
	f := newObjective(m)
	random := rand.New(rand.NewPCG(2, 0))
	w, gradient, ignored := make([]float64, 6), make([]float64, 6), make([]float64, 6)
	for k := range w {
		w[k] = random.NormFloat64()
	}
	f.value(w, gradient)
	const h = 1e-6
	for k := range w {
		old := w[k]
		w[k] = old + h
		above := f.value(w, ignored)
		w[k] = old - h
		below := f.value(w, ignored)
		w[k] = old
		if numeric := (above - below) / (2 * h); math.Abs(numeric-gradient[k]) > 1e-6 {
			t.Errorf("derivative %d is %v, by differences %v", k, gradient[k], numeric)
		}
	}
}

func TestTheMinimumIsReached(t *testing.T) {
	for _, width := range []int{1, 5, 40} {
		f := newObjective(randomMatrix(3, 300, width))
		w, iterations, err := minimise(context.Background(), width+1, f.value, func(int) {})
		if err != nil {
			t.Fatal(err)
		}
		gradient := make([]float64, width+1)
		if f.value(w, gradient); largest(gradient) > smallGradient || iterations == maxIterations {
			t.Errorf("width %d: gradient %v after %d iterations", width, largest(gradient), iterations)
		}
	}
}

func TestALinearFunctionThatNeverEndsIsGivenUp(t *testing.T) {
	_, iterations, err := minimise(context.Background(), 1, func(w, g []float64) float64 { g[0] = 1; return w[0] },
		func(int) {})
	if err != nil || iterations != maxIterations {
		t.Errorf("%d iterations, %v", iterations, err)
	}
	_, iterations, err = minimise(context.Background(), 1, func(_, g []float64) float64 { g[0] = 1; return math.NaN() },
		func(int) {})
	if err != nil || iterations != 0 {
		t.Errorf("a loss that is not a number: %d iterations, %v", iterations, err)
	}
}

func TestFeaturesThatNeverVaryGetNoWeight(t *testing.T) {
	m := randomMatrix(4, 100, 3)
	for i := range m.n {
		m.row(i)[1] = 7
	}
	p, _, err := fit(context.Background(), m, nil)
	if err != nil || math.Abs(float64(p.Weight[1])) > 1e-9 || p.Weight[0] == 0 {
		t.Errorf("weights %v, %v", p.Weight, err)
	}
}

func TestTheLossNeverOverflows(t *testing.T) {
	for m, want := range map[float64]float64{0: math.Ln2, 800: 0, -800: 800, 1e300: 0, -1e300: 1e300} {
		if loss, slope := logistic(m); math.Abs(loss-want) > 1e-12*math.Max(1, want) || slope > 0 || slope < -1 {
			t.Errorf("at margin %v the loss is %v and the slope %v", m, loss, slope)
		}
	}
}
