package producer

import (
	"encoding/binary"
	"math"

	"sonde/ring2"
	"sonde/schema"
)

// statsBlockBytes of a row are widened at a time, so that figures of a huge row cost
// no memory. It is a whole number of elements of every dtype.
const statsBlockBytes = 1 << 18

// statsOf computes the figures of one row, in float64 and in two passes: the
// first finds mean, extremes and counts, the second the squared deviations from
// the mean, so that a large mean costs no digits. NaN and infinities are counted
// and left out of everything else. row has a whole number of elements. scratch
// is reused memory; the grown one is returned.
func statsOf(row []byte, dtype ring2.DType, out *schema.StatsRow, scratch []float64) []float64 {
	var sum, squares, absMax float64
	out.Dim, out.ArgMax, out.Zeros, out.NonFinite = int32(len(row)/dtype.Size()), -1, 0, 0
	for at, rest := int32(0), row; len(rest) > 0; at += int32(len(scratch)) {
		block := rest[:min(len(rest), statsBlockBytes)]
		rest = rest[len(block):]
		scratch = widen(scratch[:0], block, dtype)
		for i, x := range scratch {
			if x-x != 0 { // NaN or infinite
				out.NonFinite++
				continue
			}
			if x == 0 {
				out.Zeros++
			}
			if a := math.Abs(x); a > absMax || out.ArgMax < 0 {
				absMax, out.ArgMax = a, at+int32(i)
			}
			sum += x
			squares += x * x
		}
	}
	mean, deviations := 0.0, 0.0
	if n := out.Dim - out.NonFinite; n > 0 {
		mean = sum / float64(n)
		for rest := row; len(rest) > 0; {
			block := rest[:min(len(rest), statsBlockBytes)]
			rest = rest[len(block):]
			if len(row) > statsBlockBytes { // else it is still there
				scratch = widen(scratch[:0], block, dtype)
			}
			for _, x := range scratch {
				if x-x == 0 {
					deviations += (x - mean) * (x - mean)
				}
			}
		}
		deviations /= float64(n)
	}
	out.L2, out.Mean = float32(math.Sqrt(squares)), float32(mean)
	out.Std, out.AbsMax = float32(math.Sqrt(deviations)), float32(absMax)
	return scratch
}

// widen appends the elements of row. Every dtype but i64 beyond 2^53 is exact in
// float64.
func widen(dst []float64, row []byte, dtype ring2.DType) []float64 {
	switch dtype {
	case ring2.F32:
		for ; len(row) >= 4; row = row[4:] {
			dst = append(dst, float64(math.Float32frombits(binary.LittleEndian.Uint32(row))))
		}
	case ring2.BF16:
		for ; len(row) >= 2; row = row[2:] {
			dst = append(dst, float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(row))<<16)))
		}
	case ring2.F16:
		for ; len(row) >= 2; row = row[2:] {
			dst = append(dst, float16(binary.LittleEndian.Uint16(row)))
		}
	case ring2.I32:
		for ; len(row) >= 4; row = row[4:] {
			dst = append(dst, float64(int32(binary.LittleEndian.Uint32(row))))
		}
	case ring2.I64:
		for ; len(row) >= 8; row = row[8:] {
			dst = append(dst, float64(int64(binary.LittleEndian.Uint64(row))))
		}
	case ring2.U16:
		for ; len(row) >= 2; row = row[2:] {
			dst = append(dst, float64(binary.LittleEndian.Uint16(row)))
		}
	default:
		for _, b := range row {
			dst = append(dst, byteElement(b, dtype))
		}
	}
	return dst
}

// byteElement widens the dtypes of one byte.
func byteElement(b byte, dtype ring2.DType) float64 {
	switch dtype {
	case ring2.F8E4M3:
		return float8E4M3(b)
	case ring2.F8E5M2:
		return float16(uint16(b) << 8) // e5m2 is the upper half of an f16
	case ring2.I8:
		return float64(int8(b))
	}
	return float64(b)
}

// float16 widens an IEEE 754 half: 5 bits of exponent, 10 of fraction.
func float16(h uint16) float64 {
	sign, exponent, fraction := 1.0, int(h>>10&31), float64(h&1023)
	if h>>15 == 1 {
		sign = -1
	}
	switch exponent {
	case 0:
		return math.Copysign(math.Ldexp(fraction, -24), sign)
	case 31:
		if fraction != 0 {
			return math.NaN()
		}
		return math.Inf(int(sign))
	}
	return sign * math.Ldexp(1024+fraction, exponent-25)
}

// float8E4M3 widens the OCP format without infinities: 4 bits of exponent, 3 of
// fraction, NaN only where all seven are set.
func float8E4M3(b uint8) float64 {
	sign, exponent, fraction := 1.0, int(b>>3&15), float64(b&7)
	if b>>7 == 1 {
		sign = -1
	}
	switch {
	case b&0x7f == 0x7f:
		return math.NaN()
	case exponent == 0:
		return math.Copysign(math.Ldexp(fraction, -9), sign)
	}
	return sign * math.Ldexp(8+fraction, exponent-10)
}

// RowStats computes the figures of one row, as a rule with AsStats publishes them.
func RowStats(row []byte, dtype ring2.DType) schema.StatsRow {
	var out schema.StatsRow
	statsOf(row, dtype, &out, nil)
	return out
}
