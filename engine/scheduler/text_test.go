package scheduler

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"sonde/engine/arithmetic"
	"sonde/engine/model"
	"sonde/ring2"
)

// words decodes token i to the i-th of its pieces.
type words []string

func (w words) Encode(string) []int32     { return nil }
func (w words) Decode([]int32) string     { return "" }
func (w words) NewDecoder() model.Decoder { return w }
func (w words) Next(id int32) string      { return w[id] }
func (w words) Flush() string             { return "" }

// A stop string that is seen only after a part of it was handed out has leaked.
func TestNoPartOfAStopStringIsHandedOut(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 2))
	pieces := words{"a", "b", "ab", "ba", "", "aab"}
	stopped := 0
	for range 5000 {
		stop := []string{}
		for range 1 + random.IntN(3) {
			s := ""
			for range 1 + random.IntN(4) {
				s += string("ab"[random.IntN(2)])
			}
			stop = append(stop, s)
		}
		x, whole, sent, kept := newText(pieces, stop), "", "", -1
		tokens := []int32{}
		for range 12 {
			id := int32(random.IntN(len(pieces)))
			tokens = append(tokens, id)
			whole += pieces[id]
			if kept = x.add(id); kept >= 0 {
				sent += x.ready()
				break
			}
			sent += x.ready()
		}
		first := -1
		for _, s := range stop {
			if at := strings.Index(whole, s); at >= 0 && (first < 0 || at < first) {
				first = at
			}
		}
		if kept < 0 {
			if sent += x.rest(); first >= 0 || sent != whole {
				t.Fatalf("seed %d: stop %q in %q at %d: not stopped, said %q", seed, stop, whole, first, sent)
			}
			continue
		}
		stopped++
		if sent != whole[:first] {
			t.Fatalf("seed %d: stop %q in %q: said %q", seed, stop, whole, sent)
		}
		need := ""
		for i := range kept {
			if len(need) >= len(sent) {
				t.Fatalf("seed %d: stop %q in %q: %d tokens kept, %d would do", seed, stop, whole, kept, i)
			}
			need += pieces[tokens[i]]
		}
		if !strings.HasPrefix(need, sent) {
			t.Fatalf("seed %d: stop %q in %q: %d tokens kept are too few", seed, stop, whole, kept)
		}
	}
	if stopped < 1000 {
		t.Errorf("only %d texts were stopped", stopped)
	}
}

// What was computed after the end of a sequence must not pass for a part of it.
func TestTokensOfAStopStringBecomePhantoms(t *testing.T) {
	long := Request{ID: "r", Prompt: []int32{1, 2, 3}, Samples: 2, MaxTokens: 30,
		Sampling: Sampling{Temperature: 1, TopP: 1, Seed: 4}}
	free := alone(t, newArithmetic, long)
	tokens := free[1].tokens
	if len(tokens) < 12 {
		t.Fatalf("the example has only %d tokens", len(tokens))
	}
	long.Stop = []string{fmt.Sprintf("%d %d %d", tokens[5], tokens[6], tokens[7])}
	g := newRig(t, newArithmetic(), nil).start()
	got := collect(t, submit(t, g.Scheduler, long), 2)[1]
	g.finish(t)
	want := arithmetic.Tokenizer{}.Decode(tokens[:5]) + " "
	if got.reason != ring2.FinishStop || got.text != want || got.generated != 6 || len(got.tokens) != 8 {
		t.Fatalf("got %+v, want the text %q of 6 tokens", got, want)
	}
	// The blank of token 5 is kept, tokens 6 and 7 are not; 7 was never computed.
	if len(g.rec.amends) != 1 {
		t.Fatalf("amendments: %+v", g.rec.amends)
	}
	a := g.rec.amends[0].Ranges[0]
	if a.Verdict != ring2.VerdictPhantom || a.Number != 2 || a.Position != 3+6 || a.Count != 1 || a.Pass != 0 {
		t.Errorf("amended %+v", a)
	}
	e := g.rec.ends[2]
	if e.GeneratedTokens != 6 || e.PromptTokens != 3 || e.Reason != ring2.FinishStop || e.CachedTokens != 3 {
		t.Errorf("ended with %+v", e)
	}
}
