package table

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"
)

// codec turns elements of a dtype into float32 and back. Every element has its own
// float32, so that the original bits come back exactly, NaN payloads included:
// floats are widened by moving bits, never by arithmetic, which would make a
// signalling NaN quiet.
type codec struct {
	bytes int                                  // of one element
	widen func(dst []float32, src []byte)      // len(src) == len(dst)*bytes
	check func(bits uint32) (uint32, bool)     // the element of a float32, if there is one
	store func(dst []byte, i int, elem uint32) // puts element i
}

// codecs has no i32 and no i64: float32 cannot hold them.
var codecs = map[string]*codec{
	"f32":    {4, widenF32, func(b uint32) (uint32, bool) { return b, true }, store32},
	"bf16":   {2, widenBF16, func(b uint32) (uint32, bool) { return b >> 16, b&0xffff == 0 }, store16},
	"f16":    {2, widenF16, narrowF16, store16},
	"f8e4m3": {1, func(dst []float32, src []byte) { widenBytes(dst, src, &e4m3Bits) }, narrowTable(&e4m3Bits), store8},
	"f8e5m2": {1, func(dst []float32, src []byte) { widenBytes(dst, src, &e5m2Bits) }, narrowTable(&e5m2Bits), store8},
	"u8":     {1, func(dst []float32, src []byte) { widenBytes(dst, src, &u8Bits) }, narrowTable(&u8Bits), store8},
	"i8":     {1, func(dst []float32, src []byte) { widenBytes(dst, src, &i8Bits) }, narrowTable(&i8Bits), store8},
	"u16":    {2, widenU16, narrowU16, store16},
}

func store8(dst []byte, i int, e uint32)  { dst[i] = byte(e) }
func store16(dst []byte, i int, e uint32) { binary.LittleEndian.PutUint16(dst[2*i:], uint16(e)) }
func store32(dst []byte, i int, e uint32) { binary.LittleEndian.PutUint32(dst[4*i:], e) }

// Widen makes float32 of the elements of a row, exactly. ok is false for dtypes
// that float32 cannot hold, which are i32 and i64.
func Widen(dtype string, raw []byte) (values []float32, ok bool) {
	c := codecs[dtype]
	if c == nil || len(raw)%c.bytes != 0 {
		return nil, false
	}
	values = make([]float32, len(raw)/c.bytes)
	c.widen(values, raw)
	return values, true
}

// narrow makes the bytes of the elements again. Values that no element widens to
// are an error: the file is damaged, or its dtype column is wrong.
func (c *codec) narrow(values []float32) ([]byte, error) {
	out := make([]byte, len(values)*c.bytes)
	for i, v := range values {
		e, ok := c.check(math.Float32bits(v))
		if !ok {
			return nil, fmt.Errorf("element %d, float32 0x%08x, is no value of the dtype", i, math.Float32bits(v))
		}
		c.store(out, i, e)
	}
	return out, nil
}

func widenF32(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

// widenBF16 takes four elements per load: this is the dtype of most models.
func widenBF16(dst []float32, src []byte) {
	for len(dst) >= 4 {
		v := binary.LittleEndian.Uint64(src)
		dst[0] = math.Float32frombits(uint32(v) << 16)
		dst[1] = math.Float32frombits(uint32(v) & 0xffff0000)
		dst[2] = math.Float32frombits(uint32(v>>32) << 16)
		dst[3] = math.Float32frombits(uint32(v>>32) & 0xffff0000)
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
	}
}

func widenF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(f16Bits(binary.LittleEndian.Uint16(src[2*i:])))
	}
}

func widenU16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func narrowU16(b uint32) (uint32, bool) {
	v := math.Float32frombits(b)
	return uint32(v), v >= 0 && v <= math.MaxUint16 && float32(uint16(v)) == v && b>>31 == 0
}

func widenBytes(dst []float32, src []byte, table *[256]uint32) {
	for i := range dst {
		dst[i] = math.Float32frombits(table[src[i]])
	}
}

// f16Bits is the float32 of an IEEE half: 5 exponent bits, 10 of mantissa. The
// payload of a NaN moves to the top of the longer mantissa.
func f16Bits(h uint16) uint32 {
	sign, exp, mant := uint32(h>>15)<<31, uint32(h>>10)&31, uint32(h)&1023
	switch {
	case exp == 31:
		return sign | 0x7f800000 | mant<<13
	case exp != 0:
		return sign | (exp+127-15)<<23 | mant<<13
	case mant == 0:
		return sign
	}
	exp = 127 - 14
	for mant&1024 == 0 { // a denormal half is a normal float32
		mant <<= 1
		exp--
	}
	return sign | exp<<23 | mant&1023<<13
}

func narrowF16(b uint32) (uint32, bool) {
	sign, exp, mant := b>>31<<15, b>>23&255, b&0x7fffff
	switch {
	case exp == 255:
		return sign | 31<<10 | mant>>13, mant&0x1fff == 0
	case exp > 127-15 && exp < 127+16:
		return sign | (exp-127+15)<<10 | mant>>13, mant&0x1fff == 0
	case exp == 0 && mant == 0:
		return sign, true
	case exp > 127-25 && exp <= 127-15:
		mant |= 0x800000
		shift := 13 + (127 - 14 - exp)
		return sign | mant>>shift, mant&(1<<shift-1) == 0
	}
	return 0, false
}

var e4m3Bits, e5m2Bits, u8Bits, i8Bits = byteTables()

// byteTables lists the float32 bits of all values of the one-byte dtypes.
func byteTables() (e4m3, e5m2, u8, i8 [256]uint32) {
	for i := range 256 {
		e4m3[i] = e4m3Value(byte(i))
		e5m2[i] = f16Bits(uint16(i) << 8) // a half without its low mantissa byte
		u8[i] = math.Float32bits(float32(i))
		i8[i] = math.Float32bits(float32(int8(i)))
	}
	return e4m3, e5m2, u8, i8
}

// e4m3Value is the float32 of a float8 of the OCP's kind: bias 7, no infinity, and
// one NaN for each sign.
func e4m3Value(b byte) uint32 {
	sign, exp, mant := uint32(b>>7)<<31, uint32(b>>3)&15, uint32(b)&7
	switch {
	case exp == 15 && mant == 7:
		return sign | 0x7fc00000
	case exp != 0:
		return sign | (exp+127-7)<<23 | mant<<20
	}
	return sign | math.Float32bits(float32(mant)/512) // a denormal: mant x 2^-9
}

// narrowTable inverts a table of one-byte values. None of them uses the low 16
// bits of its float32, so the high ones find it.
func narrowTable(table *[256]uint32) func(uint32) (uint32, bool) {
	inverse := sync.OnceValue(func() *[1 << 16]int16 {
		var out [1 << 16]int16
		for i := range out {
			out[i] = -1
		}
		for i, bits := range table {
			out[bits>>16] = int16(i)
		}
		return &out
	})
	return func(b uint32) (uint32, bool) {
		e := inverse()[b>>16]
		return uint32(e), e >= 0 && b&0xffff == 0
	}
}
