package arithmetic

import (
	"encoding/binary"

	"sonde/engine/model"
	"sonde/ring2"
)

// Row appends the row that the model shows at a hook to dst. It returns nil for
// the hook token_ids, whose values depend on the tokens: the engine's witness
// vouches for those.
func Row(dst []byte, hook model.Hook, request string, sample, position, pass int) []byte {
	if hook.Name == tokenIDs {
		return nil
	}
	n := units(&hook, position) * hook.RowBytes()
	start := len(dst)
	dst = append(dst, make([]byte, n)...)
	fill(dst[start:], hook.DType, rowKey(sequenceKey(request, sample), position, pass)^hookKey(&hook))
	return dst
}

// golden is 2^64 divided by the golden ratio, the increment of SplitMix64.
const golden = 0x9e3779b97f4a7c15

// mix is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection
// in which every input bit reaches every output bit.
func mix(x uint64) uint64 {
	x += golden
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func textKey(s string) uint64 {
	h := uint64(len(s))
	for i := 0; i < len(s); i++ {
		h = mix(h ^ uint64(s[i]))
	}
	return h
}

func sequenceKey(request string, sample int) uint64 { return mix(textKey(request) ^ uint64(sample)) }

func rowKey(sequence uint64, position, pass int) uint64 {
	return mix(mix(sequence^uint64(position)) ^ uint64(pass))
}

func hookKey(h *model.Hook) uint64 { return mix(textKey(h.Name) ^ uint64(int64(h.Layer))) }

// fill writes elements 0, 1, 2, … of the row with this key.
func fill(dst []byte, t ring2.DType, key uint64) {
	size := t.Size()
	for i := 0; i < len(dst); i += size {
		bits := element(t, mix(key))
		key += golden
		switch size {
		case 1:
			dst[i] = byte(bits)
		case 2:
			binary.LittleEndian.PutUint16(dst[i:], uint16(bits))
		case 4:
			binary.LittleEndian.PutUint32(dst[i:], uint32(bits))
		default:
			binary.LittleEndian.PutUint64(dst[i:], bits)
		}
	}
}

// floatFormat holds what differs between the wide float types.
type floatFormat struct {
	mantissa, exponent uint   // bits
	low, span          uint64 // of the biased exponent: span is a power of two
}

var (
	f32Format  = floatFormat{mantissa: 23, exponent: 8, low: 119, span: 16}
	bf16Format = floatFormat{mantissa: 7, exponent: 8, low: 119, span: 16}
	f16Format  = floatFormat{mantissa: 10, exponent: 5, low: 11, span: 8}
)

// element turns a hash into the bits of an element. Wide floats are mostly of a
// size between 1/256 and 256; one in 256 is a value that careless code alters: an
// infinity, a quiet or signalling NaN with a payload, a negative zero, a
// subnormal, the largest number. Other types take the hash as it is.
func element(t ring2.DType, w uint64) uint64 {
	switch t {
	case ring2.F32:
		return f32Format.element(w)
	case ring2.BF16:
		return bf16Format.element(w)
	case ring2.F16:
		return f16Format.element(w)
	}
	return w
}

func (f *floatFormat) element(w uint64) uint64 {
	sign := w >> 63 << (f.mantissa + f.exponent)
	fraction := w & (1<<f.mantissa - 1)
	if w>>32&255 == 0 {
		return sign | f.special(w>>40&7, fraction)
	}
	return sign | (f.low+(w>>48&(f.span-1)))<<f.mantissa | fraction
}

func (f *floatFormat) special(which, fraction uint64) uint64 {
	ones := uint64(1<<f.exponent-1) << f.mantissa
	quiet := uint64(1) << (f.mantissa - 1)
	switch which {
	case 0, 1:
		return ones
	case 2, 3:
		return ones | quiet | fraction
	case 4:
		return ones | fraction&^quiet | 1 // signalling
	case 5:
		return 0
	case 6:
		return fraction | 1 // subnormal
	default:
		return ones - 1 // the largest number
	}
}

// logit turns a hash into a logit between -6 and 6.
func logit(w uint64) float32 { return float32(w>>40)*(12.0/(1<<24)) - 6 }
