package arithmetic

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"sonde/engine/model"
	"sonde/ring2"
)

// tap keeps every row that a step shows.
type tap struct {
	m      model.Model
	ranges []model.Range
	spans  map[int][]byte
	ragged map[[2]int][]byte
}

func newTap(m model.Model, ranges []model.Range) *tap {
	t := &tap{m: m, ranges: ranges, spans: map[int][]byte{}, ragged: map[[2]int][]byte{}}
	for i, h := range m.Info().Hooks {
		rows := 0
		for j, r := range ranges {
			switch {
			case h.Ragged:
				n := 0
				for k := range r.Tokens {
					n += m.RaggedRowBytes(i, r.Position+k)
				}
				t.ragged[[2]int{i, j}] = make([]byte, n)
			case h.Select == ring2.SelectAll:
				rows += len(r.Tokens)
			case r.Logits != nil:
				rows++
			}
		}
		t.spans[i] = make([]byte, rows*h.RowBytes())
	}
	return t
}

func (t *tap) Span(hook int) []byte            { return t.spans[hook] }
func (t *tap) RaggedSpan(hook, rng int) []byte { return t.ragged[[2]int{hook, rng}] }

func forward(t testing.TB, m model.Model, ranges ...model.Range) *tap {
	t.Helper()
	out := newTap(m, ranges)
	if err := m.Forward(ranges, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func newModel(t testing.TB, blocks int) model.Model {
	t.Helper()
	m := New(Options{})
	if err := m.Allocate(blocks, 4); err != nil {
		t.Fatal(err)
	}
	return m
}

// A checker that cannot recompute a row proves nothing.
func TestRowRecomputesWhatForwardShowed(t *testing.T) {
	m := newModel(t, 64)
	ranges := []model.Range{
		{Request: "a", Sample: 0, Pass: 0, Position: 0, Tokens: []int32{5, 6, 7, 8, 9}, Blocks: []int32{3, 1}},
		{Request: "b", Sample: 2, Pass: 1, Position: 0, Tokens: []int32{1}, Blocks: []int32{7},
			Logits: make([]float32, Vocab)},
		{Request: "a", Sample: 1, Pass: 4, Position: 0, Tokens: []int32{5, 6}, Blocks: []int32{9},
			Logits: make([]float32, Vocab)},
	}
	got := forward(t, m, ranges...)
	for i, h := range m.Info().Hooks {
		var want []byte
		for j, r := range ranges {
			first := len(want)
			for k := range r.Tokens {
				if h.Select == ring2.SelectSampled && (r.Logits == nil || k < len(r.Tokens)-1) {
					continue
				}
				if h.Name == tokenIDs {
					want = binary.LittleEndian.AppendUint32(want, uint32(r.Tokens[k]))
					continue
				}
				want = append(want, Row(nil, h, r.Request, r.Sample, r.Position+k, r.Pass)...)
			}
			if h.Ragged && !bytes.Equal(got.ragged[[2]int{i, j}], want[first:]) {
				t.Errorf("hook %s %d, range %d: rows differ", h.Name, h.Layer, j)
			}
		}
		if !h.Ragged && !bytes.Equal(got.spans[i], want) {
			t.Errorf("hook %s %d: rows differ", h.Name, h.Layer)
		}
		again, ok := HookOf(h.Name, h.Layer)
		if !ok || again.DType != h.DType || again.RowBytes() != h.RowBytes() || again.Ragged != h.Ragged {
			t.Errorf("HookOf(%s, %d) = %+v, %v", h.Name, h.Layer, again, ok)
		}
	}
}

// Rows that are alike would hide a swap.
func TestRowsOfDifferentIdentityDiffer(t *testing.T) {
	seen := map[string]string{}
	note := func(h model.Hook, request string, sample, position, pass int, what string) {
		row := string(Row(nil, h, request, sample, position, pass))
		if len(row) == 0 {
			return
		}
		if other, twice := seen[row]; twice {
			t.Errorf("%s has the row of %s", what, other)
		}
		seen[row] = what
	}
	for _, h := range allHooks(3) {
		id := h.Name + "/" + string(rune('0'+h.Layer+1))
		for pass := range 3 {
			for position := range 5 {
				for sample := range 3 {
					for _, request := range []string{"a", "b", "ab", ""} {
						note(h, request, sample, position, pass, id+request)
					}
				}
			}
		}
	}
	if len(seen) < 5000 {
		t.Errorf("only %d different rows", len(seen))
	}
}

// Values that careless code alters must occur, and be rare enough that most rows
// can be computed with.
func TestFiniteAndOtherValuesOccur(t *testing.T) {
	counts := map[string]int{}
	const n = 1 << 16
	for i := range uint64(n) {
		v := math.Float32frombits(uint32(f32Format.element(mix(i))))
		bits := math.Float32bits(v)
		switch {
		case v != v && bits&(1<<22) == 0:
			counts["signalling"]++
		case v != v:
			counts["quiet"]++
		case math.IsInf(float64(v), 0):
			counts["inf"]++
		case v == 0 && bits != 0:
			counts["negative zero"]++
		case v != 0 && bits&0x7f800000 == 0:
			counts["subnormal"]++
		case v < 0:
			counts["negative"]++
		default:
			counts["positive"]++
		}
	}
	for _, what := range []string{"signalling", "quiet", "inf", "negative zero", "subnormal", "negative", "positive"} {
		if counts[what] == 0 {
			t.Errorf("no %s value in %d: %v", what, n, counts)
		}
	}
	if other := n - counts["negative"] - counts["positive"]; other > n/128 {
		t.Errorf("%d of %d values are special", other, n)
	}
}

// Logits that depended on how a sequence was cut into steps, on the pass or on
// the company would make generation irreproducible.
func TestLogitsDependOnTokensAlone(t *testing.T) {
	const seed = 7
	random := rand.New(rand.NewPCG(seed, 0))
	tokens := make([]int32, 29)
	for i := range tokens {
		tokens[i] = int32(random.IntN(Vocab))
	}
	var want []float32
	for trial := range 50 {
		m := newModel(t, 64)
		blocks := make([]int32, 8)
		for i, b := range random.Perm(64)[:len(blocks)] {
			blocks[i] = int32(b)
		}
		logits := make([]float32, Vocab)
		for done := 0; done < len(tokens); {
			n := 1 + random.IntN(len(tokens)-done)
			r := model.Range{Request: "r", Sample: trial, Pass: trial % 3, Position: done, Tokens: tokens[done : done+n],
				Blocks: blocks}
			if done += n; done == len(tokens) {
				r.Logits = logits
			}
			forward(t, m, r)
		}
		if want == nil {
			want = logits
		}
		for i := range logits {
			if logits[i] != want[i] {
				t.Fatalf("seed %d, trial %d: logit %d is %v, not %v", seed, trial, i, logits[i], want[i])
			}
		}
	}
}

// A block table that is wrong anywhere must change what is generated, else the
// scheduler's tests see nothing.
func TestWrongBlockChangesLogits(t *testing.T) {
	run := func(harm bool) []float32 {
		m := newModel(t, 16)
		forward(t, m, model.Range{Tokens: []int32{1, 2, 3, 4, 5, 6, 7, 8}, Blocks: []int32{0, 1}})
		if harm {
			m.CopyBlock(0, 1)
		}
		logits := make([]float32, Vocab)
		tokens := make([]int32, 16)
		forward(t, m, model.Range{Position: 8, Tokens: tokens, Blocks: []int32{0, 1, 2, 3, 4, 5}, Logits: logits})
		return logits
	}
	if a, b := run(false), run(true); a[0] == b[0] && a[1] == b[1] {
		t.Error("a block with other content gave the same logits")
	}
}

func TestTokenOutsideTheVocabularyIsRefused(t *testing.T) {
	m := newModel(t, 1)
	for _, id := range []int32{-1, Vocab} {
		r := []model.Range{{Tokens: []int32{id}, Blocks: []int32{0}}}
		if err := m.Forward(r, newTap(m, r)); err == nil {
			t.Errorf("token %d was computed", id)
		}
	}
}

func BenchmarkForward(b *testing.B) {
	m := newModel(b, 256)
	var ranges []model.Range
	for i := range 16 {
		r := model.Range{Request: "request-000001", Sample: i, Tokens: make([]int32, 8)}
		for j := range 2 {
			r.Blocks = append(r.Blocks, int32(2*i+j))
		}
		ranges = append(ranges, r)
	}
	out := newTap(m, ranges)
	began, rows := time.Now(), 0
	for b.Loop() {
		if err := m.Forward(ranges, out); err != nil {
			b.Fatal(err)
		}
		rows += 16 * 8 * (len(m.Info().Hooks) - 1)
	}
	b.ReportMetric(float64(rows)/time.Since(began).Seconds(), "rows/s")
}
