package materializer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"sonde/schema"
)

// From messages in memory to durable files, with one commit: the share of the
// bench of package table that is left is what decoding, dropping and syncing cost.
func BenchmarkMaterialize(b *testing.B) {
	const dim, rowsPerMessage, layers, messagesPerLayer = 2048, 64, 16, 4
	r := rand.New(rand.NewPCG(1, 2))
	vec := make([]byte, 2*dim*rowsPerMessage)
	for i := range dim * rowsPerMessage {
		bits := math.Float32bits(float32(r.NormFloat64()))
		vec[2*i], vec[2*i+1] = byte(bits>>16), byte(bits>>24)
	}
	var messages [][]byte
	size := 0
	for layer := range layers {
		e, err := schema.NewVectorEncoder(schema.Header{Tenant: "t", Engine: "e", Epoch: 1, Hook: "resid_post", Layer: layer,
			DType: "bf16", Shape: []int{dim}})
		if err != nil {
			b.Fatal(err)
		}
		prev := schema.Cursor{}
		for n := range messagesPerLayer {
			for i := range rowsPerMessage {
				if err := e.Append(schema.VectorRow{Seq: uint64(n + 1), Row: uint32(i), Request: fmt.Sprint("r", i%16),
					Position: int32(n), Vec: vec[2*dim*i:][:2*dim]}); err != nil {
					b.Fatal(err)
				}
			}
			msg, h, err := e.Encode(prev)
			if err != nil {
				b.Fatal(err)
			}
			prev = h.Last()
			e.Reset()
			messages, size = append(messages, msg), size+len(msg)
		}
	}
	b.SetBytes(int64(size))
	for b.Loop() {
		bus := newBus(b)
		if err := publishAll(bus, messages); err != nil {
			b.Fatal(err)
		}
		o := options(bus, b.TempDir())
		o.CommitInterval, o.CommitBytes = time.Hour, int64(size)
		materialize(b, o)
	}
}
