package llama

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"sonde/engine/model"
	"sonde/ring2"
)

const modelDir = "../../models/trilingual"

// load gives a model with room for blocks of blockTokens.
func load(t testing.TB, threads, blocks, blockTokens int) *llama {
	t.Helper()
	m, err := Load(modelDir, threads)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Allocate(blocks, blockTokens); err != nil {
		t.Fatal(err)
	}
	return m.(*llama)
}

func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// tap keeps the rows of all hooks of a step.
type tap struct {
	m     *llama
	rows  int
	spans [][]byte
}

func newTap(m *llama, ranges []model.Range) *tap {
	t := &tap{m: m, spans: make([][]byte, len(m.info.Hooks))}
	sampled := 0
	for i := range ranges {
		t.rows += len(ranges[i].Tokens)
		if ranges[i].Logits != nil {
			sampled++
		}
	}
	for i := range t.spans {
		h := &m.info.Hooks[i]
		rows := t.rows
		if h.Select == ring2.SelectSampled {
			rows = sampled
		}
		t.spans[i] = make([]byte, rows*h.RowBytes())
		for j := range t.spans[i] {
			t.spans[i][j] = 0xff // a NaN where nothing is written
		}
	}
	return t
}

func (t *tap) Span(hook int) []byte { return t.spans[hook] }

func (t *tap) RaggedSpan(int, int) []byte { panic("no hook is ragged") }

// row is one row of a hook, as bytes.
func (t *tap) row(hook, i int) string {
	n := t.m.info.Hooks[hook].RowBytes()
	return string(t.spans[hook][i*n : (i+1)*n])
}

// floats is all rows of a hook by name.
func (t *tap) floats(tb testing.TB, name string, layer int) []float32 {
	tb.Helper()
	for i, h := range t.m.info.Hooks {
		if h.Name == name && h.Layer == layer {
			return floatsOf(t.spans[i])
		}
	}
	tb.Fatalf("no hook %s of layer %d", name, layer)
	return nil
}

func floatsOf(b []byte) []float32 {
	out := make([]float32, len(b)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

// untapped wants no rows.
type untapped struct{}

func (untapped) Span(int) []byte { return nil }

func (untapped) RaggedSpan(int, int) []byte { return nil }

func randomTokens(r *rand.Rand, n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(r.IntN(4096))
	}
	return out
}

// randomBlocks gives a sequence its blocks, in no order.
func randomBlocks(r *rand.Rand, m *llama, free *[]int32, tokens int) []int32 {
	n := (tokens + m.cache.blockTokens - 1) / m.cache.blockTokens
	if *free == nil {
		for _, b := range r.Perm(m.cache.blocks) {
			*free = append(*free, int32(b))
		}
	}
	out := (*free)[:n:n]
	*free = (*free)[n:]
	return out
}

func forward(t testing.TB, m *llama, ranges []model.Range) *tap {
	t.Helper()
	tp := newTap(m, ranges)
	if err := m.Forward(ranges, tp); err != nil {
		t.Fatal(err)
	}
	return tp
}
