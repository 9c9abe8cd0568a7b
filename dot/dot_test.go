package dot

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"sonde/internal/notrun"
)

// atEachLevel runs a test with every kernel that this processor has.
func atEachLevel(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	for _, l := range []level{levelGo, levelAVX2, levelAVX512} {
		t.Run(l.String(), func(t *testing.T) {
			if l > best() {
				notrun.Mark(t, "this processor ("+runtime.GOARCH+") has no "+l.String())
			}
			defer func(old level) { current = old }(current)
			current = l
			f(t)
		})
	}
}

func newRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// sample is a row of n elements in each encoding, at an odd address, and a
// vector at an address that no vector register likes.
type sample struct {
	f32, bf16, f16 []byte
	w              []float32
}

func newSample(r *rand.Rand, n int, value func() float32) sample {
	s := sample{f32: make([]byte, 4*n+1)[1:], bf16: make([]byte, 2*n+1)[1:], f16: make([]byte, 2*n+3)[3:]}
	s.w = make([]float32, n+3)[3:]
	for i := range n {
		s.w[i] = value()
		bits := math.Float32bits(value())
		binary.LittleEndian.PutUint32(s.f32[4*i:], bits)
		binary.LittleEndian.PutUint16(s.bf16[2*i:], uint16(bits>>16))
		binary.LittleEndian.PutUint16(s.f16[2*i:], uint16(r.Uint32()))
	}
	return s
}

// exact computes a dot product and its permitted error in float64.
func exact(e element, row []byte, w []float32) (sum, tolerance float64) {
	var magnitude float64
	for i, v := range w {
		p := float64(at(e, row, i)) * float64(v)
		sum += p
		magnitude += math.Abs(p)
	}
	n := float64(len(w))
	return sum, (n/8+8)*math.Exp2(-23)*magnitude + n*math.Exp2(-149)
}

func checkSample(t *testing.T, s sample) {
	t.Helper()
	n := len(s.w)
	words := make([]uint16, n)
	floats := make([]float32, n)
	for i := range n {
		words[i] = binary.LittleEndian.Uint16(s.bf16[2*i:])
		floats[i] = at(f32, s.f32, i)
	}
	for _, c := range []struct {
		name string
		e    element
		row  []byte
		got  float32
	}{
		{"F32", f32, s.f32, F32(floats, s.w)},
		{"F32Bytes", f32, s.f32, F32Bytes(s.f32, s.w)},
		{"BF16", bf16, s.bf16, BF16(s.bf16, s.w)},
		{"BF16Words", bf16, s.bf16, BF16Words(words, s.w)},
		{"F16", f16, s.f16[:2*n], F16(s.f16[:2*n], s.w)},
	} {
		want, tolerance := exact(c.e, c.row, s.w)
		if math.IsNaN(want) || math.IsInf(want, 0) {
			if !sameKind(float64(c.got), want) {
				t.Errorf("%s of %d elements is %v; the exact sum is %v", c.name, n, c.got, want)
			}
		} else if !(math.Abs(float64(c.got)-want) <= tolerance) {
			t.Errorf("%s of %d elements is %v; the exact sum is %v, at most %v away", c.name, n, c.got, want, tolerance)
		}
	}
}

func sameKind(a, b float64) bool { return a == b || math.IsNaN(a) && math.IsNaN(b) }

func finiteF16(s sample) sample {
	for i := range len(s.w) {
		if s.f16[2*i+1]&0x7c == 0x7c {
			s.f16[2*i+1] &^= 0x40
		}
	}
	return s
}

func TestEveryLengthIsNearTheExactSum(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		r := newRand(t)
		for n := range 301 {
			checkSample(t, finiteF16(newSample(r, n, func() float32 { return float32(r.NormFloat64()) })))
		}
		for _, n := range []int{1024, 4096, 8191} {
			checkSample(t, finiteF16(newSample(r, n, func() float32 { return float32(r.NormFloat64()) })))
		}
	})
}

func TestHugeDifferencesOfSizeStayWithinTheError(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		r := newRand(t)
		for range 300 {
			n := r.IntN(300)
			checkSample(t, finiteF16(newSample(r, n, func() float32 {
				return float32(math.Ldexp(r.NormFloat64(), r.IntN(80)-40))
			})))
		}
	})
}

func TestSubnormalsAreNotFlushedToZero(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		r := newRand(t)
		for _, n := range []int{1, 15, 16, 17, 64, 100, 256} {
			small := newSample(r, n, func() float32 { return math.Float32frombits(r.Uint32() & 0x807fffff) })
			for i := range small.w {
				small.w[i] = float32(1 + r.Float64())
				binary.LittleEndian.PutUint16(small.f16[2*i:], uint16(r.Uint32()&0x83ff))
			}
			checkSample(t, small)
			ones := small
			one := math.Float32frombits(1)
			for i := range n {
				binary.LittleEndian.PutUint32(ones.f32[4*i:], 1)
				ones.w[i] = 1
			}
			if got := F32Bytes(ones.f32, ones.w); got != float32(n)*one {
				t.Errorf("%d times the least float32 is %v", n, got)
			}
		}
	})
}

func TestNaNAndInfSpread(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		r := newRand(t)
		inf := float32(math.Inf(1))
		nan := math.Float32frombits(0x7f800001 | r.Uint32()&0x3fffff) // signalling
		for _, n := range []int{1, 7, 16, 31, 64, 129, 300} {
			for _, bad := range []float32{inf, -inf, nan} {
				s := finiteF16(newSample(r, n, func() float32 { return 1 + r.Float32() }))
				at := r.IntN(n)
				bits := math.Float32bits(bad)
				if bad != bad {
					bits |= 0x10000 // still a NaN when cut to bfloat16
				}
				binary.LittleEndian.PutUint32(s.f32[4*at:], bits)
				binary.LittleEndian.PutUint16(s.bf16[2*at:], uint16(bits>>16))
				half := map[bool]uint16{true: 0x7c01, false: 0x7c00}[bad != bad] | uint16(bits>>16)&0x8000
				binary.LittleEndian.PutUint16(s.f16[2*at:], half)
				checkSample(t, s)
				s.w[at] = 0 // Inf times 0
				checkSample(t, s)
			}
		}
	})
}

func TestEveryHalfIsWidenedExactly(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		row := make([]byte, 32)
		w := make([]float32, 16)
		w[5] = 1
		for h := range 1 << 16 {
			binary.LittleEndian.PutUint16(row[10:], uint16(h))
			want := float64(h&1023) * math.Exp2(-24)
			if e := h >> 10 & 31; e == 31 {
				want = map[bool]float64{true: math.Inf(1), false: math.NaN()}[h&1023 == 0]
			} else if e > 0 {
				want = (1 + float64(h&1023)/1024) * math.Exp2(float64(e-15))
			}
			if h&0x8000 != 0 {
				want = -want
			}
			if got := float64(F16(row, w)); !sameKind(got, want) {
				t.Fatalf("half %#04x is %v, widened as %v", h, want, got)
			}
		}
	})
}

func TestRowsOfTheWrongLengthPanicWithTheirSizes(t *testing.T) {
	w := make([]float32, 4)
	for name, f := range map[string]func(){
		"F32":      func() { F32(w[:3], w) },
		"BF16":     func() { BF16(make([]byte, 9), w) },
		"F32Bytes": func() { F32Bytes(make([]byte, 15), w) },
		"rows":     func() { F32Rows(make([]float32, 3), w, make([]float32, 11), 4) },
		"add":      func() { AddRows(w, make([]float32, 2), make([]float32, 7), 4) },
		"matrix":   func() { NewMatrix(make([]uint16, 5), 2, 3) },
		"from":     func() { NewMatrix(make([]uint16, 128), 8, 16).Mul(make([]float32, 8), make([]float32, 16), 1, 2, 8) },
		"inputs":   func() { NewMatrix(make([]uint16, 128), 8, 16).Mul(make([]float32, 8), make([]float32, 16), 2, 0, 8) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if fmt.Sprint(recover())[:4] != "BUG:" {
					t.Error("no panic that says BUG")
				}
			}()
			f()
		})
	}
}

func TestBothVectorLevelsGiveTheSameBits(t *testing.T) {
	if best() < levelAVX512 {
		notrun.Mark(t, "this processor has no AVX-512")
	}
	defer func(old level) { current = old }(current)
	r := newRand(t)
	for n := range 301 {
		s := finiteF16(newSample(r, n, func() float32 { return float32(r.NormFloat64()) }))
		var got [2][3]float32
		for i, l := range []level{levelAVX2, levelAVX512} {
			current = l
			got[i] = [3]float32{F32Bytes(s.f32, s.w), BF16(s.bf16, s.w), F16(s.f16[:2*n], s.w)}
		}
		if got[0] != got[1] {
			t.Fatalf("%d elements: AVX2 gives %v, AVX-512 %v", n, got[0], got[1])
		}
	}
}
