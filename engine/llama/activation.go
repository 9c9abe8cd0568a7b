package llama

import (
	"math"

	"sonde/dot"
)

// exp is e to the x with a relative error below 2^-22, several times as fast as
// math.Exp: 2^n times the Taylor series of what is left, |r| < 0.35, where the
// first term left out is r^8/8! < 2^-27.
func exp(x float32) float32 {
	if !(x > -87 && x < 88) { // the result is subnormal, infinite or NaN
		return float32(math.Exp(float64(x)))
	}
	const (
		log2e = 1.4426950408889634
		// ln 2 in two parts, of which the first has so few bits that n times it is exact.
		ln2High = 0.693359375
		ln2Low  = math.Ln2 - ln2High
		// Added to a small number, this leaves its nearest integer in the low bits.
		toInteger = 3 << 22
	)
	shifted := float32(x*log2e) + toInteger
	n := shifted - toInteger
	r := x - n*ln2High - n*float32(ln2Low)
	p := float32(1.0/5040)*r + 1.0/720
	p = p*r + 1.0/120
	p = p*r + 1.0/24
	p = p*r + 1.0/6
	p = p*r + 0.5
	p = p*r + 1
	p = p*r + 1
	return p * math.Float32frombits(uint32(int32(n)+127)<<23)
}

// gated sets gate to silu(gate) * up.
func gated(gate, up []float32) {
	for i, g := range gate {
		gate[i] = g / (1 + exp(-g)) * up[i]
	}
}

// normalise sets dst to the root mean square norm of x, times the weights.
func normalise(dst, x, weights []float32, epsilon float64) {
	mean := float64(dot.F32(x, x)) / float64(len(x))
	scale := float32(1 / math.Sqrt(mean+epsilon))
	for i, w := range weights {
		dst[i] = w * (x[i] * scale)
	}
}

// softmax sets scores to their softmax after multiplication by scale, but for a
// common factor, which it returns.
func softmax(scores []float32, scale float32) (factor float32) {
	highest := scores[0]
	for _, s := range scores[1:] {
		highest = max(highest, s) // a NaN stays
	}
	var sum float32
	for i, s := range scores {
		e := exp((s - highest) * scale)
		scores[i] = e
		sum += e
	}
	return 1 / sum
}
