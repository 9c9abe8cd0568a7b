package dot

import (
	"encoding/binary"
	"math"
	"unsafe"
)

// plain is the kernel in Go. Eight sums that do not wait for each other are as
// fast as Go gets without vector instructions.
func plain(e element, row unsafe.Pointer, w []float32) float32 {
	bytes := unsafe.Slice((*byte)(row), len(w)*e.size())
	switch e {
	case f32:
		return plainF32(bytes, w)
	case bf16:
		return plainBF16(bytes, w)
	default:
		return plainF16(bytes, w)
	}
}

func plainF32(row []byte, w []float32) float32 {
	var s [8]float32
	for len(w) >= 8 {
		r, v := row[:32:32], w[:8:8]
		s[0] += math.Float32frombits(binary.LittleEndian.Uint32(r[0:])) * v[0]
		s[1] += math.Float32frombits(binary.LittleEndian.Uint32(r[4:])) * v[1]
		s[2] += math.Float32frombits(binary.LittleEndian.Uint32(r[8:])) * v[2]
		s[3] += math.Float32frombits(binary.LittleEndian.Uint32(r[12:])) * v[3]
		s[4] += math.Float32frombits(binary.LittleEndian.Uint32(r[16:])) * v[4]
		s[5] += math.Float32frombits(binary.LittleEndian.Uint32(r[20:])) * v[5]
		s[6] += math.Float32frombits(binary.LittleEndian.Uint32(r[24:])) * v[6]
		s[7] += math.Float32frombits(binary.LittleEndian.Uint32(r[28:])) * v[7]
		row, w = row[32:], w[8:]
	}
	return finish(f32, &s, row, w)
}

func plainBF16(row []byte, w []float32) float32 {
	var s [8]float32
	for len(w) >= 8 {
		r, v := row[:16:16], w[:8:8]
		s[0] += fromBF16(binary.LittleEndian.Uint16(r[0:])) * v[0]
		s[1] += fromBF16(binary.LittleEndian.Uint16(r[2:])) * v[1]
		s[2] += fromBF16(binary.LittleEndian.Uint16(r[4:])) * v[2]
		s[3] += fromBF16(binary.LittleEndian.Uint16(r[6:])) * v[3]
		s[4] += fromBF16(binary.LittleEndian.Uint16(r[8:])) * v[4]
		s[5] += fromBF16(binary.LittleEndian.Uint16(r[10:])) * v[5]
		s[6] += fromBF16(binary.LittleEndian.Uint16(r[12:])) * v[6]
		s[7] += fromBF16(binary.LittleEndian.Uint16(r[14:])) * v[7]
		row, w = row[16:], w[8:]
	}
	return finish(bf16, &s, row, w)
}

func plainF16(row []byte, w []float32) float32 {
	var s [8]float32
	for len(w) >= 8 {
		for j := range s {
			s[j] += fromF16(binary.LittleEndian.Uint16(row[2*j:])) * w[j]
		}
		row, w = row[16:], w[8:]
	}
	return finish(f16, &s, row, w)
}

// finish adds the sums up in pairs, and then what is left of the row.
func finish(e element, s *[8]float32, row []byte, w []float32) float32 {
	sum := ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]))
	for i, v := range w {
		sum += at(e, row, i) * v
	}
	return sum
}

// at is element i of a row.
func at(e element, row []byte, i int) float32 {
	switch e {
	case f32:
		return math.Float32frombits(binary.LittleEndian.Uint32(row[4*i:]))
	case bf16:
		return fromBF16(binary.LittleEndian.Uint16(row[2*i:]))
	default:
		return fromF16(binary.LittleEndian.Uint16(row[2*i:]))
	}
}

func fromBF16(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

// fromF16 widens a binary16: its bits, moved, are a float32 whose exponent is 112
// too small, also when it is subnormal; Inf and NaN get the highest exponent.
func fromF16(h uint16) float32 {
	v := math.Float32frombits(uint32(h&0x7fff)<<13) * 0x1p112
	bits := math.Float32bits(v) | uint32(h&0x8000)<<16
	if h&0x7c00 == 0x7c00 {
		bits |= 0x7f800000
	}
	return math.Float32frombits(bits)
}
