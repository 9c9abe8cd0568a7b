package llama

import "math"

// rotary holds the cosine and sine of each position's angles: half a head of
// each a position.
type rotary struct {
	half     int
	cos, sin []float32
}

// newRotary rounds to float32 where Hugging Face does: the frequencies, and the
// angles.
func newRotary(c *config) rotary {
	r := rotary{half: c.HeadDim / 2}
	r.cos = make([]float32, c.Context*r.half)
	r.sin = make([]float32, c.Context*r.half)
	for j := range r.half {
		frequency := float32(1 / math.Pow(c.RopeTheta, float64(2*j)/float64(c.HeadDim)))
		for p := range c.Context {
			sin, cos := math.Sincos(float64(float32(p) * frequency))
			r.cos[p*r.half+j], r.sin[p*r.half+j] = float32(cos), float32(sin)
		}
	}
	return r
}

// rotate turns each head of x, which stands at a position: element j of a head
// with element j + half.
func (r *rotary) rotate(x []float32, position int) {
	cos := r.cos[position*r.half:][:r.half]
	sin := r.sin[position*r.half:][:r.half]
	for len(x) > 0 {
		low, high := x[:r.half], x[r.half:2*r.half]
		for j, a := range low {
			b := high[j]
			low[j] = a*cos[j] - b*sin[j]
			high[j] = b*cos[j] + a*sin[j]
		}
		x = x[2*r.half:]
	}
}
