package table

import (
	"encoding/binary"
	"math"
	"testing"
)

// Every pattern of the one- and two-byte dtypes, so also every NaN payload, every
// denormal and both zeros.
func TestEveryPatternOfASmallDTypeComesBack(t *testing.T) {
	for _, dtype := range []string{"bf16", "f16", "f8e4m3", "f8e5m2", "u8", "i8", "u16"} {
		c := codecs[dtype]
		n := 1 << (8 * c.bytes)
		src := make([]byte, n*c.bytes)
		for i := range n {
			c.store(src, i, uint32(i))
		}
		values := make([]float32, n)
		c.widen(values, src)
		seen := map[uint32]bool{}
		for _, v := range values {
			seen[math.Float32bits(v)] = true
		}
		if len(seen) != n {
			t.Errorf("%s: %d patterns widen to only %d values", dtype, n, len(seen))
		}
		got, err := c.narrow(values)
		if err != nil {
			t.Errorf("%s: %v", dtype, err)
		} else if string(got) != string(src) {
			t.Errorf("%s: other bytes came back", dtype)
		}
	}
}

func TestWidenedValuesAreTheNumbersThatTheDTypeMeans(t *testing.T) {
	for _, c := range []struct {
		dtype string
		bits  uint32
		want  float64
	}{
		{"f16", 0x3c00, 1}, {"f16", 0xc000, -2}, {"f16", 0x0001, math.Ldexp(1, -24)}, {"f16", 0x7bff, 65504},
		{"f16", 0x03ff, math.Ldexp(1023, -24)}, {"f16", 0x7c00, math.Inf(1)},
		{"bf16", 0x3f80, 1}, {"bf16", 0xff80, math.Inf(-1)},
		{"f8e4m3", 0x38, 1}, {"f8e4m3", 0x7e, 448}, {"f8e4m3", 0x01, math.Ldexp(1, -9)}, {"f8e4m3", 0x87, -math.Ldexp(7, -9)},
		{"f8e5m2", 0x3c, 1}, {"f8e5m2", 0x7b, 57344}, {"f8e5m2", 0x7c, math.Inf(1)}, {"f8e5m2", 0x01, math.Ldexp(1, -16)},
		{"u8", 255, 255}, {"i8", 0x80, -128}, {"i8", 0xff, -1}, {"u16", 0xffff, 65535},
	} {
		src, dst := make([]byte, codecs[c.dtype].bytes), make([]float32, 1)
		codecs[c.dtype].store(src, 0, c.bits)
		codecs[c.dtype].widen(dst, src)
		if float64(dst[0]) != c.want {
			t.Errorf("%s 0x%x widens to %v, want %v", c.dtype, c.bits, dst[0], c.want)
		}
	}
	for _, bits := range []uint32{0x7f, 0xff} {
		var dst [1]float32
		codecs["f8e4m3"].widen(dst[:], []byte{byte(bits)})
		if dst[0] == dst[0] {
			t.Errorf("f8e4m3 0x%x widens to %v, want NaN", bits, dst[0])
		}
	}
}

func TestSignallingNaNOfF32StaysSignalling(t *testing.T) {
	src := binary.LittleEndian.AppendUint32(nil, 0x7f800001)
	dst := make([]float32, 1)
	codecs["f32"].widen(dst, src)
	got, err := codecs["f32"].narrow(dst)
	if err != nil || string(got) != string(src) {
		t.Fatalf("got %x, %v; want %x", got, err, src)
	}
}

func TestAValueThatIsNoneOfTheDTypeIsAnErrorNotARoundedOne(t *testing.T) {
	for dtype, values := range map[string][]float32{
		"bf16":   {math.Float32frombits(0x3f800001)},
		"f16":    {65536, 1e-9, math.Float32frombits(0x3f800001), math.Float32frombits(0x33800001), 1e30},
		"f8e4m3": {449, float32(math.Inf(1)), 1.0001},
		"f8e5m2": {1.1},
		"u8":     {256, -1, 0.5, float32(math.Copysign(0, -1))},
		"i8":     {128, -129},
		"u16":    {65536, -1, 0.5, float32(math.NaN()), float32(math.Copysign(0, -1))},
	} {
		for _, v := range values {
			if got, err := codecs[dtype].narrow([]float32{v}); err == nil {
				t.Errorf("%s: %v (0x%08x) became %x", dtype, v, math.Float32bits(v), got)
			}
		}
	}
}
