package dot

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"
)

// nsPerCall times f by itself, so that a benchmark can print its ratio to a
// baseline of the same run.
func nsPerCall(f func()) float64 {
	const calls = 20000
	began := time.Now()
	for range calls {
		f()
	}
	return float64(time.Since(began).Nanoseconds()) / calls
}

func BenchmarkDot(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{256, 2304, 4096, 8192} {
		row := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(random(r, n)))), 4*n)
		w := random(r, n)
		for _, e := range []element{f32, bf16, f16} {
			name := [...]string{"f32", "bf16", "f16"}[e]
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				var sink float32
				for b.Loop() {
					sink += dispatch(e, unsafe.Pointer(&row[0]), w)
				}
				b.StopTimer()
				baseline := nsPerCall(func() { sink += plain(e, unsafe.Pointer(&row[0]), w) })
				b.ReportMetric(baseline/(float64(b.Elapsed().Nanoseconds())/float64(b.N)), "x-plain-go")
			})
		}
	}
}

func BenchmarkMatrix(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	const rows, cols = 704, 256
	m := NewMatrix(randomWords(r, rows*cols), rows, cols)
	for _, n := range []int{1, 4, 16} {
		x, dst := random(r, n*cols), make([]float32, n*rows)
		b.Run(fmt.Sprintf("%dx%d/inputs=%d", rows, cols, n), func(b *testing.B) {
			for b.Loop() {
				m.Mul(dst, x, n, 0, rows)
			}
			b.ReportMetric(float64(n*rows*cols)*float64(b.N)/float64(b.Elapsed().Nanoseconds()), "products/ns")
		})
	}
}
