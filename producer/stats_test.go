package producer

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"sonde/ring2"
	"sonde/schema"
)

func f32Row(v ...float32) (row []byte) {
	for _, x := range v {
		row = binary.LittleEndian.AppendUint32(row, math.Float32bits(x))
	}
	return row
}

func TestStatsOfARow(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(-1))
	for _, c := range []struct {
		row  []byte
		want schema.StatsRow
	}{
		{f32Row(3, -4), schema.StatsRow{Dim: 2, L2: 5, Mean: -0.5, Std: 3.5, AbsMax: 4, ArgMax: 1}},
		{f32Row(0, float32(math.Copysign(0, -1)), 2), schema.StatsRow{Dim: 3, L2: 2, Mean: 2. / 3, Std: 0.94280905, AbsMax: 2,
			ArgMax: 2, Zeros: 2}},
		{f32Row(nan, 1, inf, -1), schema.StatsRow{Dim: 4, L2: 1.4142135, Std: 1, AbsMax: 1, ArgMax: 1, NonFinite: 2}},
		{f32Row(nan, inf), schema.StatsRow{Dim: 2, ArgMax: -1, NonFinite: 2}},
		{f32Row(), schema.StatsRow{ArgMax: -1}},
		{f32Row(0, 0), schema.StatsRow{Dim: 2, Zeros: 2}},
		{f32Row(1e8, 1e8+8), schema.StatsRow{Dim: 2, L2: 1.4142136e8, Mean: 1e8, Std: 4, AbsMax: 1e8 + 8, ArgMax: 1}},
	} {
		var got schema.StatsRow
		statsOf(c.row, ring2.F32, &got, nil)
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%v:\n%+v, want\n%+v", c.row, got, c.want)
		}
	}
}

// Each narrow type is compared with its definition, for every value that it has.
func TestNarrowTypesWidenAsTheirDefinitionsSay(t *testing.T) {
	define := func(bits uint64, exponentBits, fractionBits int, bias int, e4m3 bool) float64 {
		fraction := bits & (1<<fractionBits - 1)
		exponent := int(bits >> fractionBits & (1<<exponentBits - 1))
		sign := 1 - 2*float64(bits>>(exponentBits+fractionBits)&1)
		switch top := 1<<exponentBits - 1; {
		case e4m3 && exponent == top && fraction == 7:
			return math.NaN()
		case !e4m3 && exponent == top && fraction > 0:
			return math.NaN()
		case !e4m3 && exponent == top:
			return math.Inf(int(sign))
		case exponent == 0:
			return sign * float64(fraction) * math.Pow(2, float64(1-bias-fractionBits))
		}
		return sign * (1 + float64(fraction)/float64(uint64(1)<<fractionBits)) * math.Pow(2, float64(exponent-bias))
	}
	same := func(a, b float64) bool {
		return a != a && b != b || a == b && math.Signbit(a) == math.Signbit(b)
	}
	for i := range uint64(1 << 16) {
		row := binary.LittleEndian.AppendUint16(nil, uint16(i))
		if got, want := widen(nil, row, ring2.F16)[0], define(i, 5, 10, 15, false); !same(got, want) && want != 0 {
			t.Fatalf("f16 %04x is %v, want %v", i, got, want)
		}
		if got, want := widen(nil, row, ring2.BF16)[0], define(i, 8, 7, 127, false); !same(got, want) && want != 0 {
			t.Fatalf("bf16 %04x is %v, want %v", i, got, want)
		}
		if got := widen(nil, row, ring2.U16)[0]; got != float64(i) {
			t.Fatalf("u16 %04x is %v", i, got)
		}
	}
	for i := range uint64(256) {
		row := []byte{byte(i)}
		if got, want := widen(nil, row, ring2.F8E4M3)[0], define(i, 4, 3, 7, true); !same(got, want) && want != 0 {
			t.Fatalf("e4m3 %02x is %v, want %v", i, got, want)
		}
		if got, want := widen(nil, row, ring2.F8E5M2)[0], define(i, 5, 2, 15, false); !same(got, want) && want != 0 {
			t.Fatalf("e5m2 %02x is %v, want %v", i, got, want)
		}
		if a, b := widen(nil, row, ring2.I8)[0], widen(nil, row, ring2.U8)[0]; a != float64(int8(i)) || b != float64(i) {
			t.Fatalf("i8 and u8 %02x are %v and %v", i, a, b)
		}
	}
	negative := binary.LittleEndian.AppendUint64(nil, ^uint64(4))
	if a, b := widen(nil, negative[:4], ring2.I32)[0], widen(nil, negative, ring2.I64)[0]; a != -5 || b != -5 {
		t.Errorf("i32 and i64 -5 are %v and %v", a, b)
	}
}

// A row is widened block by block; what lies behind the first block counts as much.
func TestFiguresOfARowOfManyBlocksAreThoseOfTheWhole(t *testing.T) {
	const n = 3*statsBlockBytes/4 + 5
	values := make([]float32, n)
	var sum, squares, deviations float64
	for i := range values {
		values[i] = float32(i%977) - 400
		sum += float64(values[i])
		squares += float64(values[i]) * float64(values[i])
	}
	values[0], values[n-1] = float32(math.NaN()), -5000
	sum, squares = sum+400-float64(float32((n-1)%977)-400)-5000, squares-400*400
	last := float64(float32((n-1)%977) - 400)
	squares += 5000*5000 - last*last
	mean := sum / (n - 1)
	for _, x := range values[1:] {
		deviations += (float64(x) - mean) * (float64(x) - mean)
	}
	var got schema.StatsRow
	if scratch := statsOf(f32Row(values...), ring2.F32, &got, nil); cap(scratch) > statsBlockBytes/2 {
		t.Errorf("it took memory for %d elements at once", cap(scratch))
	}
	want := schema.StatsRow{Dim: n, L2: float32(math.Sqrt(squares)), Mean: float32(mean),
		Std: float32(math.Sqrt(deviations / (n - 1))), AbsMax: 5000, ArgMax: n - 1, Zeros: got.Zeros, NonFinite: 1}
	if got != want || got.Zeros == 0 {
		t.Errorf("%+v, want\n%+v", got, want)
	}
}
