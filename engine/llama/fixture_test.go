package llama

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sonde/engine/bpe"
	"sonde/engine/model"
	"sonde/safetensors"
)

// tolerance is how far a number may be from Hugging Face's, as a part of the
// largest number of its tensor. See the package comment.
const tolerance = 5e-6

func openFixture(t *testing.T) *safetensors.File {
	t.Helper()
	f, err := safetensors.Open("testdata/fixture.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func fixtureFloats(t *testing.T, f *safetensors.File, name string) []float32 {
	t.Helper()
	tensor, err := f.Tensor(name)
	if err != nil {
		t.Fatal(err)
	}
	return floatsOf(tensor.Data)
}

func fixtureTokens(t *testing.T, f *safetensors.File, name string) []int32 {
	t.Helper()
	tensor, err := f.Tensor(name)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]int32, len(tensor.Data)/4)
	for i := range out {
		out[i] = int32(binary.LittleEndian.Uint32(tensor.Data[4*i:]))
	}
	return out
}

// distance is the largest difference, as a part of the largest number.
func distance(t *testing.T, name string, got, want []float32) float64 {
	t.Helper()
	if len(got) != len(want) || len(got) == 0 {
		t.Fatalf("%s has %d numbers instead of %d", name, len(got), len(want))
	}
	var worst, largest float64
	for i, w := range want {
		d := math.Abs(float64(got[i]) - float64(w))
		if math.IsNaN(d) {
			return math.Inf(1)
		}
		worst, largest = max(worst, d), max(largest, math.Abs(float64(w)))
	}
	return worst / largest
}

func TestHiddenStatesAndLogitsAgreeWithHuggingFace(t *testing.T) {
	f := openFixture(t)
	m := load(t, 2, 40, 16)
	compared, worst := 0, 0.0
	for text := range 4 {
		prefix := fmt.Sprintf("t%d.", text)
		tokens := fixtureTokens(t, f, prefix+"tokens")
		n := len(tokens)
		// The last four tokens are steps of their own, since logits are of the last token of a range.
		var free []int32
		blocks := randomBlocks(newRand(t), m, &free, n)
		taps := []*tap{forward(t, m, []model.Range{{Tokens: tokens[:n-4], Blocks: blocks}})}
		var logits []float32
		for i := n - 4; i < n; i++ {
			of := make([]float32, m.config.Vocab)
			taps = append(taps, forward(t, m, []model.Range{{Position: i, Tokens: tokens[i : i+1], Blocks: blocks, Logits: of}}))
			logits = append(logits, of...)
		}
		for _, name := range f.Names() {
			rest, ok := strings.CutPrefix(name, prefix)
			if !ok || rest == "tokens" || rest == "greedy" || rest == "margin" {
				continue
			}
			layer := -1
			if number, hook, ok := strings.Cut(rest, "."); ok {
				layer, _ = strconv.Atoi(number)
				rest = hook
			}
			var got []float32
			for _, tp := range taps {
				got = append(got, tp.floats(t, rest, layer)...)
			}
			d := distance(t, name, got, fixtureFloats(t, f, name))
			if !(d <= tolerance) {
				t.Errorf("%s differs by %.2g of its largest number", name, d)
			}
			compared++
			worst = max(worst, d)
			if rest == "final_logits" && !slices.Equal(got, logits) {
				t.Error("captured logits are not those that the step gave back")
			}
		}
	}
	t.Logf("%d tensors compared, the worst differs by %.2g of its largest number", compared, worst)
	if compared < 4*7+2*10 {
		t.Errorf("only %d tensors compared", compared)
	}
}

func TestTheGreedyContinuationIsHuggingFaces(t *testing.T) {
	f := openFixture(t)
	m := load(t, 2, 40, 16)
	tokenizer, err := bpe.Load(modelDir + "/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	for text := range 4 {
		prefix := fmt.Sprintf("t%d.", text)
		tokens, want := fixtureTokens(t, f, prefix+"tokens"), fixtureTokens(t, f, prefix+"greedy")
		var free []int32
		blocks := randomBlocks(newRand(t), m, &free, len(tokens)+len(want))
		got, logits := slices.Clone(tokens), make([]float32, m.config.Vocab)
		for at := 0; len(got) < len(tokens)+len(want); {
			r := model.Range{Position: at, Tokens: got[at:], Blocks: blocks, Logits: logits}
			at = len(got)
			if err := m.Forward([]model.Range{r}, untapped{}); err != nil {
				t.Fatal(err)
			}
			best := 0
			for i, l := range logits {
				if l > logits[best] {
					best = i
				}
			}
			got = append(got, int32(best))
		}
		if !slices.Equal(got[len(tokens):], want) {
			t.Errorf("text %d goes on %q, at Hugging Face %q", text, tokenizer.Decode(got), tokenizer.Decode(want))
		}
	}
}
