package llama

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"sonde/engine/model"
)

// benchmarkDecode decodes one token of each of n sequences a step, with 100
// tokens of past, as far as 200.
func benchmarkDecode(b *testing.B, threads, n int, tapped bool) {
	const past, end = 100, 200
	r := rand.New(rand.NewPCG(1, 2))
	m := load(b, threads, n*(end/16+1), 16)
	var free []int32
	ranges := make([]model.Range, n)
	for i := range ranges {
		ranges[i] = model.Range{Tokens: randomTokens(r, past), Blocks: randomBlocks(r, m, &free, end)}
	}
	var wanted model.Tap = untapped{}
	if err := m.Forward(ranges, wanted); err != nil {
		b.Fatal(err)
	}
	for i := range ranges {
		ranges[i].Tokens, ranges[i].Logits, ranges[i].Position = ranges[i].Tokens[:1], make([]float32, m.config.Vocab), past
	}
	if tapped {
		wanted = newTap(m, ranges)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := m.Forward(ranges, wanted); err != nil {
			b.Fatal(err)
		}
		for i := range ranges {
			ranges[i].Position = past + (ranges[i].Position+1-past)%(end-past)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}

func BenchmarkDecode(b *testing.B) {
	for _, c := range []struct {
		threads, sequences int
		tapped             bool
	}{{1, 1, false}, {1, 16, false}, {2, 16, false}, {2, 16, true}, {2, 32, true}} {
		b.Run(fmt.Sprintf("threads=%d/sequences=%d/all-hooks=%v", c.threads, c.sequences, c.tapped), func(b *testing.B) {
			benchmarkDecode(b, c.threads, c.sequences, c.tapped)
		})
	}
}

func BenchmarkPrefill(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	m := load(b, 2, 40, 16)
	var free []int32
	ranges := []model.Range{{Tokens: randomTokens(r, 512), Blocks: randomBlocks(r, m, &free, 512)}}
	for b.Loop() {
		if err := m.Forward(ranges, untapped{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(512*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}
