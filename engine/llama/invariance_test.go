package llama

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"sonde/engine/model"
	"sonde/ring2"
)

// sequence is a text that a test computes in pieces.
type sequence struct {
	tokens []int32
	blocks []int32
	done   int
	// rows[hook][position] is the row as bytes; logits[position] where asked for.
	rows   []map[int]string
	logits map[int][]float32
}

// keep files the rows of one step by sequence and position.
func keep(tp *tap, ranges []model.Range, of []*sequence) {
	row, sampled := 0, 0
	for i := range ranges {
		r := &ranges[i]
		for j := range r.Tokens {
			for hook := range tp.spans {
				if tp.m.info.Hooks[hook].Select == ring2.SelectAll {
					of[i].rows[hook][r.Position+j] = tp.row(hook, row)
				}
			}
			row++
		}
		if r.Logits != nil {
			at := r.Position + len(r.Tokens) - 1
			of[i].rows[hookLogits][at] = tp.row(hookLogits, sampled)
			of[i].logits[at] = slices.Clone(r.Logits)
			sampled++
		}
	}
}

func newSequence(m *llama, tokens []int32, blocks []int32) *sequence {
	s := &sequence{tokens: tokens, blocks: blocks, logits: map[int][]float32{}}
	for range m.info.Hooks {
		s.rows = append(s.rows, map[int]string{})
	}
	return s
}

// computeTogether runs all sequences in steps of random make-up.
func computeTogether(t *testing.T, r *rand.Rand, m *llama, all []*sequence) {
	t.Helper()
	for {
		var ranges []model.Range
		var of []*sequence
		for _, i := range r.Perm(len(all)) {
			s := all[i]
			left := len(s.tokens) - s.done
			if left == 0 || r.IntN(3) == 0 {
				continue
			}
			n := 1
			if r.IntN(2) == 0 {
				n = 1 + r.IntN(left)
			}
			rg := model.Range{Request: fmt.Sprint(i), Position: s.done, Tokens: s.tokens[s.done : s.done+n], Blocks: s.blocks}
			if r.IntN(2) == 0 {
				rg.Logits = make([]float32, m.config.Vocab)
			}
			s.done += n
			ranges, of = append(ranges, rg), append(of, s)
		}
		if len(ranges) == 0 {
			if !slices.ContainsFunc(all, func(s *sequence) bool { return s.done < len(s.tokens) }) {
				return
			}
			continue
		}
		keep(forward(t, m, ranges), ranges, of)
	}
}

// computeAlone runs one sequence token by token, by itself, on one thread.
func computeAlone(t *testing.T, m *llama, tokens []int32) *sequence {
	t.Helper()
	var blocks []int32
	for i := range m.cache.blocks {
		blocks = append(blocks, int32(i))
	}
	s := newSequence(m, tokens, blocks)
	for i := range tokens {
		logits := make([]float32, m.config.Vocab)
		ranges := []model.Range{{Position: i, Tokens: tokens[i : i+1], Blocks: blocks, Logits: logits}}
		keep(forward(t, m, ranges), ranges, []*sequence{s})
	}
	return s
}

func mustEqual(t *testing.T, m *llama, got, want *sequence, what string) {
	t.Helper()
	for hook, rows := range got.rows {
		for position, row := range rows {
			if want.rows[hook][position] != row {
				h := m.info.Hooks[hook]
				t.Fatalf("%s: %s of layer %d at position %d has other bits than when computed alone",
					what, h.Name, h.Layer, position)
			}
		}
		if m.info.Hooks[hook].Select == ring2.SelectAll && len(rows) != len(got.tokens) {
			t.Fatalf("%s: %d rows of %d", what, len(rows), len(got.tokens))
		}
	}
	for position, logits := range got.logits {
		if !slices.Equal(logits, want.logits[position]) {
			t.Fatalf("%s: other logits at position %d", what, position)
		}
	}
}

func TestARowHasTheSameBitsAloneAndInAnyBatch(t *testing.T) {
	r := newRand(t)
	alone := load(t, 1, 6, 16)
	for _, c := range []struct{ threads, blockTokens int }{{1, 16}, {2, 16}, {2, 7}, {3, 1}, {5, 64}} {
		together := load(t, c.threads, 900/c.blockTokens, c.blockTokens)
		var all []*sequence
		var free []int32
		for range 2 + r.IntN(6) {
			tokens := randomTokens(r, 1+r.IntN(70))
			all = append(all, newSequence(together, tokens, randomBlocks(r, together, &free, len(tokens))))
		}
		computeTogether(t, r, together, all)
		for i, s := range all {
			mustEqual(t, together, s, computeAlone(t, alone, s.tokens), fmt.Sprintf("%d threads, blocks of %d, sequence %d",
				c.threads, c.blockTokens, i))
		}
	}
}

func TestWhatIsComputedAgainAfterPreemptionHasTheSameBits(t *testing.T) {
	r := newRand(t)
	m := load(t, 2, 20, 16)
	tokens := randomTokens(r, 50)
	blocks := r.Perm(20)
	sequenceOn := func(from int) *sequence {
		s := newSequence(m, tokens, nil)
		for _, b := range blocks[from : from+4] {
			s.blocks = append(s.blocks, int32(b))
		}
		return s
	}
	first := sequenceOn(0)
	computeTogether(t, r, m, []*sequence{first})
	other := newSequence(m, randomTokens(r, 60), first.blocks) // takes the blocks over
	computeTogether(t, r, m, []*sequence{other})
	for _, chunk := range []int{50, 13, 1} {
		again := sequenceOn(8)
		for again.done < len(tokens) {
			n := min(chunk, len(tokens)-again.done)
			ranges := []model.Range{{Position: again.done, Tokens: tokens[again.done : again.done+n], Blocks: again.blocks}}
			again.done += n
			keep(forward(t, m, ranges), ranges, []*sequence{again})
		}
		want := newSequence(m, tokens, nil)
		want.rows = first.rows
		mustEqual(t, m, again, want, fmt.Sprintf("chunks of %d", chunk))
	}
}

func TestSamplesThatShareAPromptBlockAndACopyOfItSeeTheSamePast(t *testing.T) {
	r := newRand(t)
	m := load(t, 2, 8, 16)
	tokens := randomTokens(r, 20)
	forward(t, m, []model.Range{{Tokens: tokens, Blocks: []int32{5, 2}}})
	m.CopyBlock(7, 2)
	next := []int32{11}
	tp := forward(t, m, []model.Range{
		{Position: 20, Tokens: next, Blocks: []int32{5, 2}},
		{Position: 20, Tokens: next, Blocks: []int32{5, 7}},
	})
	for hook := range tp.spans {
		if m.info.Hooks[hook].Select == ring2.SelectAll && tp.row(hook, 0) != tp.row(hook, 1) {
			t.Errorf("hook %s of layer %d differs", m.info.Hooks[hook].Name, m.info.Hooks[hook].Layer)
		}
	}
	// What one of them writes afterwards is no longer the other's.
	forward(t, m, []model.Range{{Position: 21, Tokens: []int32{1}, Blocks: []int32{5, 2}}})
	one := forward(t, m, []model.Range{{Position: 21, Tokens: []int32{2}, Blocks: []int32{5, 7}}})
	alone := load(t, 1, 8, 16)
	forward(t, alone, []model.Range{{Tokens: append(slices.Clone(tokens), 11), Blocks: []int32{0, 1}}})
	two := forward(t, alone, []model.Range{{Position: 21, Tokens: []int32{2}, Blocks: []int32{0, 1}}})
	if one.row(hookResidFinal, 0) != two.row(hookResidFinal, 0) {
		t.Error("the copied block changed with the one it was copied from")
	}
}

func TestHooksThatNobodyWantsChangeNothing(t *testing.T) {
	r := newRand(t)
	m := load(t, 2, 8, 16)
	tokens := randomTokens(r, 30)
	with, without := make([]float32, m.config.Vocab), make([]float32, m.config.Vocab)
	forward(t, m, []model.Range{{Tokens: tokens, Blocks: []int32{0, 1}, Logits: with}})
	if err := m.Forward([]model.Range{{Tokens: tokens, Blocks: []int32{2, 3}, Logits: without}}, untapped{}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(with, without) {
		t.Error("the logits differ")
	}
}

func TestResidualsAddUp(t *testing.T) {
	r := newRand(t)
	m := load(t, 2, 8, 16)
	tp := forward(t, m, []model.Range{{Tokens: randomTokens(r, 40), Blocks: []int32{0, 1, 2}}})
	before := tp.floats(t, "embed", -1)
	for layer := range m.config.Layers {
		if !slices.Equal(before, tp.floats(t, "resid_pre", layer)) {
			t.Fatalf("resid_pre of layer %d is not what came before", layer)
		}
		for _, step := range [][2]string{{"attn_out", "resid_mid"}, {"mlp_out", "resid_post"}} {
			sum := slices.Clone(before)
			add(sum, tp.floats(t, step[0], layer))
			if before = tp.floats(t, step[1], layer); !slices.Equal(before, sum) {
				t.Fatalf("%s of layer %d is not the sum", step[1], layer)
			}
		}
	}
	if !slices.Equal(before, tp.floats(t, "resid_final", -1)) {
		t.Error("resid_final is not the last resid_post")
	}
}
