package training

import (
	"context"
	"math"
)

// Bounds of the search.
const (
	maxIterations  = 500
	historyLength  = 10
	smallGradient  = 1e-6 // largest element at the minimum, where the loss starts at log 2
	maxHalvings    = 40
	enoughDecrease = 1e-4 // Armijo's constant
)

// minimise finds the minimum of a smooth convex function by L-BFGS (Nocedal and
// Wright, Numerical Optimization, algorithms 7.4 and 7.5) with backtracking, from 0.
// value fills in the gradient.
func minimise(ctx context.Context, n int, value func(w, gradient []float64) float64,
	each func(iteration int)) ([]float64,
	int, error) {
	w, gradient := make([]float64, n), make([]float64, n)
	next, nextGradient := make([]float64, n), make([]float64, n)
	var h history
	loss := value(w, gradient)
	for i := range maxIterations {
		if err := ctx.Err(); err != nil {
			return nil, i, err
		}
		if largest(gradient) < smallGradient {
			return w, i, nil
		}
		direction := h.direction(gradient)
		slope := dot(direction, gradient)
		step := 1.0
		if i == 0 {
			step = 1 / math.Max(1, math.Sqrt(dot(gradient, gradient)))
		}
		var nextLoss float64
		halvings := 0
		for ; halvings < maxHalvings; halvings++ {
			for k := range w {
				next[k] = w[k] + step*direction[k]
			}
			if nextLoss = value(next, nextGradient); nextLoss <= loss+enoughDecrease*step*slope {
				break
			}
			step /= 2
		}
		if halvings == maxHalvings { // no step makes it smaller: the minimum, as far as float64 goes
			return w, i, nil
		}
		h.add(w, next, gradient, nextGradient)
		w, next, gradient, nextGradient, loss = next, w, nextGradient, gradient, nextLoss
		each(i + 1)
	}
	return w, maxIterations, nil
}

// history is the last steps and the changes of the gradient over them.
type history struct{ steps, changes [][]float64 }

func (h *history) add(from, to, gradientFrom, gradientTo []float64) {
	s, y := make([]float64, len(from)), make([]float64, len(from))
	for k := range s {
		s[k], y[k] = to[k]-from[k], gradientTo[k]-gradientFrom[k]
	}
	if dot(s, y) <= 1e-12*dot(y, y) {
		return // no curvature to learn from: rounding
	}
	h.steps, h.changes = append(h.steps, s), append(h.changes, y)
	if len(h.steps) > historyLength {
		h.steps, h.changes = h.steps[1:], h.changes[1:]
	}
}

// direction is minus the approximate inverse Hessian times the gradient.
func (h *history) direction(gradient []float64) []float64 {
	q := make([]float64, len(gradient))
	for k, g := range gradient {
		q[k] = -g
	}
	alpha := make([]float64, len(h.steps))
	for i := len(h.steps) - 1; i >= 0; i-- {
		alpha[i] = dot(h.steps[i], q) / dot(h.changes[i], h.steps[i])
		add(q, -alpha[i], h.changes[i])
	}
	if i := len(h.steps) - 1; i >= 0 {
		scale := dot(h.steps[i], h.changes[i]) / dot(h.changes[i], h.changes[i])
		for k := range q {
			q[k] *= scale
		}
	}
	for i, s := range h.steps {
		beta := dot(h.changes[i], q) / dot(h.changes[i], s)
		add(q, alpha[i]-beta, s)
	}
	return q
}

func add(to []float64, times float64, x []float64) {
	for k, v := range x {
		to[k] += times * v
	}
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for k, v := range a {
		sum += v * b[k]
	}
	return sum
}

func largest(x []float64) float64 {
	most := 0.0
	for _, v := range x {
		most = math.Max(most, math.Abs(v))
	}
	return most
}
