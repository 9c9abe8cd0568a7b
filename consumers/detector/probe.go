package detector

import (
	"encoding/binary"
	"math"

	"sonde/dot"
)

// Probe is a linear feature: dot(row, Weight) + Bias, a logit.
type Probe struct {
	DType  string    // of the rows: f32 | f16 | bf16
	Weight []float32 // as many as a row has elements
	Bias   float32
}

// Score judges one row of len(Weight) elements.
func (p *Probe) Score(row []byte) float32 {
	switch p.DType {
	case "f32":
		return dot.F32Bytes(row, p.Weight) + p.Bias
	case "f16":
		return dot.F16(row, p.Weight) + p.Bias
	case "bf16":
		return dot.BF16(row, p.Weight) + p.Bias
	}
	panic("BUG: a probe of dtype " + p.DType + " passed the check of its bundle")
}

// exact is Score in float64, and the sum of the magnitudes that it adds: what the
// rounding of Score is measured by.
func (p *Probe) exact(row []byte) (score, magnitude float64) {
	x := Elements(make([]float64, len(p.Weight)), p.DType, row)
	score, magnitude = float64(p.Bias), math.Abs(float64(p.Bias))
	for i, w := range p.Weight {
		score += x[i] * float64(w)
		magnitude += math.Abs(x[i] * float64(w))
	}
	return score, magnitude
}

// Elements widens a row of dtype f32, f16 or bf16 exactly into dst, which has the
// row's length, and returns dst.
func Elements(dst []float64, dtype string, row []byte) []float64 {
	for i := range dst {
		switch dtype {
		case "f32":
			dst[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(row[4*i:])))
		case "bf16":
			dst[i] = float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(row[2*i:])) << 16))
		case "f16":
			dst[i] = half(binary.LittleEndian.Uint16(row[2*i:]))
		default:
			panic("BUG: dtype " + dtype + " has no elements that can be scored")
		}
	}
	return dst
}

// half is the value of an IEEE 754 binary16.
func half(bits uint16) float64 {
	exponent, fraction := int(bits>>10&31), float64(bits&1023)
	var v float64
	switch exponent {
	case 0:
		v = math.Ldexp(fraction, -24)
	case 31:
		v = math.Inf(1)
		if fraction != 0 {
			v = math.NaN()
		}
	default:
		v = math.Ldexp(1024+fraction, exponent-25)
	}
	if bits>>15 == 1 {
		return -v
	}
	return v
}
