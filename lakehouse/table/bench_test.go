package table

import (
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"sonde/schema"
)

// benchMessages are 16 MiB of bf16 vectors with values like those of a residual
// stream: normal, with a scale of its own for each dimension.
func benchMessages(b *testing.B) ([]Ref, int64) {
	const dim, rowsPerMessage, messages = 2048, 256, 16
	r := rand.New(rand.NewPCG(1, 2))
	scale := make([]float64, dim)
	for i := range scale {
		scale[i] = math.Exp(r.NormFloat64())
	}
	var all []*Message
	for layer := range messages {
		rows := make([]schema.VectorRow, rowsPerMessage)
		for i := range rows {
			vec := make([]byte, 2*dim)
			for k := range dim {
				bits := math.Float32bits(float32(r.NormFloat64() * scale[k]))
				vec[2*k], vec[2*k+1] = byte(bits>>16), byte(bits>>24)
			}
			rows[i] = vectorRow(i, "request", vec)
		}
		all = append(all, vectorMessage(b, testHeader("resid_post", layer, "bf16", []int{dim}), rows))
	}
	return refsOf(all...), messages * rowsPerMessage * dim * 2
}

// The share of memcpy is the ratio that counts: both run on the same bytes.
func BenchmarkVectorsFileAgainstMemcpy(b *testing.B) {
	refs, size := benchMessages(b)
	dst := make([]byte, size)
	b.Run("memcpy", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			at := 0
			for _, ref := range refs {
				at += copy(dst[at:], ref.Message.Vector(ref.Index).Vec)
			}
		}
	})
	b.Run("parquet", func(b *testing.B) {
		b.SetBytes(size)
		var written counter
		for b.Loop() {
			written = 0
			if err := WriteVectors(&written, nil, refs); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(written)/float64(size), "file/raw")
	})
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

var _ io.Writer = (*counter)(nil)
