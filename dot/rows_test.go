package dot

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func random(r *rand.Rand, n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(r.NormFloat64())
	}
	return out
}

func randomWords(r *rand.Rand, n int) []uint16 {
	out := make([]uint16, n)
	for i := range out {
		out[i] = uint16(math.Float32bits(float32(r.NormFloat64())) >> 16)
	}
	return out
}

func TestMatrixProductsAreNearTheExactOnes(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		r := newRand(t)
		for range 60 {
			rows, cols, n := 1+r.IntN(40), 1+r.IntN(100), r.IntN(40)
			if r.IntN(2) == 0 {
				rows, cols = rows*4, 16*(1+r.IntN(20))
			}
			words, x := randomWords(r, rows*cols), random(r, n*cols)
			m := NewMatrix(words, rows, cols)
			dst := make([]float32, n*rows)
			m.Mul(dst, x, n, 0, rows)
			for j := range n {
				for i := range rows {
					var want, magnitude float64
					for k := range cols {
						p := float64(fromBF16(words[i*cols+k])) * float64(x[j*cols+k])
						want += p
						magnitude += math.Abs(p)
					}
					tolerance := (float64(cols)/8 + 8) * math.Exp2(-23) * magnitude
					if got := float64(dst[j*rows+i]); !(math.Abs(got-want) <= tolerance) {
						t.Fatalf("%d by %d, input %d, row %d: %v instead of %v", rows, cols, j, i, got, want)
					}
				}
			}
		}
	})
}

func TestAnElementHasTheSameBitsAloneAndInABatch(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		r := newRand(t)
		for _, shape := range [][2]int{{64, 256}, {8, 704}, {6, 10}, {4, 16}} {
			rows, cols := shape[0], shape[1]
			m := NewMatrix(randomWords(r, rows*cols), rows, cols)
			const most = 37
			x := random(r, most*cols)
			all := make([]float32, most*rows)
			m.Mul(all, x, most, 0, rows)
			for range 30 {
				n := 1 + r.IntN(most)
				first := r.IntN(most - n + 1)
				part := make([]float32, n*rows)
				cut := min(rows, Group*r.IntN(rows/Group+1))
				m.Mul(part, x[first*cols:], n, 0, cut)
				m.Mul(part, x[first*cols:], n, cut, rows)
				if !slices.Equal(part, all[first*rows:(first+n)*rows]) {
					t.Fatalf("%d by %d: %d inputs from %d, rows cut at %d, have other bits", rows, cols, n, first, cut)
				}
			}
		}
	})
}

func TestMulWritesOnlyItsRows(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		r := newRand(t)
		m := NewMatrix(randomWords(r, 16*32), 16, 32)
		dst := make([]float32, 5*16)
		for i := range dst {
			dst[i] = 77
		}
		m.Mul(dst, random(r, 5*32), 5, 4, 8)
		for i, v := range dst {
			if inside := i%16 >= 4 && i%16 < 8; inside == (v == 77) {
				t.Fatalf("element %d of input %d is %v", i%16, i/16, v)
			}
		}
	})
}

func TestRowsAmongOthersAreScoredAndAddedInOrder(t *testing.T) {
	atEachLevel(t, func(t *testing.T) {
		r := newRand(t)
		for range 100 {
			n, count := 16*(1+r.IntN(5)), r.IntN(20)
			if r.IntN(3) == 0 {
				n = 1 + r.IntN(40)
			}
			stride := n + r.IntN(50)
			rows, q, weights := random(r, (count+1)*stride), random(r, n), random(r, count)
			dst := make([]float32, count)
			F32Rows(dst, q, rows, stride)
			sum := slices.Clone(q)
			AddRows(sum, weights, rows, stride)
			stepwise := slices.Clone(q)
			for t := range weights {
				AddRows(stepwise, weights[t:t+1], rows[t*stride:], stride)
			}
			if !slices.Equal(sum, stepwise) {
				t.Fatalf("%d rows of %d added at once have other bits than one by one", count, n)
			}
			for k := range count {
				var want float64
				for i := range n {
					want += float64(q[i]) * float64(rows[k*stride+i])
				}
				if math.Abs(float64(dst[k])-want) > 1e-4 {
					t.Fatalf("row %d of %d, %d apart: %v instead of %v", k, n, stride, dst[k], want)
				}
			}
			for i := range n {
				want := float64(q[i])
				for k := range count {
					want += float64(weights[k]) * float64(rows[k*stride+i])
				}
				if math.Abs(float64(sum[i])-want) > 1e-4 {
					t.Fatalf("element %d: %v instead of %v", i, sum[i], want)
				}
			}
		}
	})
}
