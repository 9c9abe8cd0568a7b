package training

import (
	"context"
	"fmt"
	"math"
	"sync"

	"sonde/consumers/detector"
)

// chunks is how many parts a pass over the rows has. Their sums are added in order,
// so the result does not depend on how many processors there are.
const chunks = 16

// objective is L2-regularised logistic regression on standardised features: the mean
// of log(1 + exp(-y z)) over the tokens, with the classes weighted to halves, plus
// l2/2 |w|^2. The last parameter is the bias, which is not regularised.
type objective struct {
	m            *matrix
	mean, spread []float64  // of the features
	weight       [2]float64 // of a token, by class
	parts        [chunks]part
	folded       []float64
}

// part is the sum over the rows of a chunk.
type part struct {
	loss, residual float64
	gradient       []float64
}

func newObjective(m *matrix) *objective {
	positives := count(m.positive)
	f := &objective{m: m, mean: make([]float64, m.width), spread: make([]float64, m.width), folded: make([]float64,
		m.width),
		weight: [2]float64{0.5 / float64(m.n-positives), 0.5 / float64(positives)}}
	for i := range f.parts {
		f.parts[i].gradient = make([]float64, m.width)
	}
	for i := range m.n {
		for k, x := range m.row(i) {
			f.mean[k] += float64(x) / float64(m.n)
		}
	}
	for i := range m.n {
		for k, x := range m.row(i) {
			d := float64(x) - f.mean[k]
			f.spread[k] += d * d / float64(m.n)
		}
	}
	for k := range f.spread {
		if f.spread[k] = math.Sqrt(f.spread[k]); f.spread[k] < 1e-12 {
			f.spread[k] = 1 // a feature that never varies says nothing
		}
	}
	return f
}

func (m *matrix) row(i int) []float32 { return m.x[i*m.width : (i+1)*m.width : (i+1)*m.width] }

// fold turns parameters on standardised features into ones on raw features.
func (f *objective) fold(w []float64) (weight []float64, bias float64) {
	bias = w[f.m.width]
	for k := range f.folded {
		f.folded[k] = w[k] / f.spread[k]
		bias -= f.folded[k] * f.mean[k]
	}
	return f.folded, bias
}

// value computes the objective and its gradient at w, which has width+1 elements.
func (f *objective) value(w, gradient []float64) float64 {
	weight, bias := f.fold(w)
	var workers sync.WaitGroup
	for c := range chunks {
		workers.Go(func() { f.chunk(c, weight, bias) })
	}
	workers.Wait()
	loss, residual := 0.0, 0.0
	clear(gradient)
	for c := range f.parts {
		p := &f.parts[c]
		loss, residual = loss+p.loss, residual+p.residual
		for k, g := range p.gradient {
			gradient[k] += g
		}
	}
	for k := range f.mean {
		gradient[k] = (gradient[k]-residual*f.mean[k])/f.spread[k] + l2*w[k]
		loss += l2 / 2 * w[k] * w[k]
	}
	gradient[f.m.width] = residual
	return loss
}

// chunk sums loss, residuals and their products with the raw features.
func (f *objective) chunk(c int, weight []float64, bias float64) {
	p := &f.parts[c]
	p.loss, p.residual = 0, 0
	clear(p.gradient)
	for i := c * f.m.n / chunks; i < (c+1)*f.m.n/chunks; i++ {
		x := f.m.row(i)
		z := bias
		for k, v := range x {
			z += weight[k] * float64(v)
		}
		y, share := -1.0, f.weight[0]
		if f.m.positive[i] {
			y, share = 1, f.weight[1]
		}
		loss, slope := logistic(y * z)
		r := share * y * slope
		p.loss += share * loss
		p.residual += r
		for k, v := range x {
			p.gradient[k] += r * float64(v)
		}
	}
}

// logistic is log(1 + exp(-m)) and its derivative, without overflow.
func logistic(m float64) (loss, slope float64) {
	e := math.Exp(-math.Abs(m))
	loss = math.Log1p(e)
	if m < 0 {
		return loss - m, -1 / (1 + e)
	}
	return loss, -e / (1 + e)
}

// fit finds the probe and folds the standardisation into it.
func fit(ctx context.Context, m *matrix, progress func(string, int)) (detector.Probe, int, error) {
	f := newObjective(m)
	w, iterations, err := minimise(ctx, m.width+1, f.value, func(i int) {
		if progress != nil {
			progress("fitting", i)
		}
	})
	if err != nil {
		return detector.Probe{}, 0, err
	}
	weight, bias := f.fold(w)
	p := detector.Probe{Weight: make([]float32, m.width), Bias: float32(bias)}
	for k, v := range weight {
		if p.Weight[k] = float32(v); math.IsInf(float64(p.Weight[k]), 0) || math.IsNaN(v) {
			return p, 0, fmt.Errorf("train a detector: the weight of feature %d is %v: its values are too small for float32",
				k, v)
		}
	}
	return p, iterations, nil
}
