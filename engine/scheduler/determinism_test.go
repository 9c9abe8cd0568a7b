package scheduler

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"sonde/engine/arithmetic"
	"sonde/engine/model"
	"sonde/ring2"
)

func newArithmetic() model.Model { return arithmetic.New(arithmetic.Options{Layers: 1, Context: 96}) }

var models = map[string]func() model.Model{"arithmetic": newArithmetic, "tiny": newTiny}

// A request whose tokens depend on its company cannot be repeated, and a wrong
// KV block is wrong silently.
func TestTokensDependOnTheRequestAlone(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for name, make := range models {
		t.Run(name, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			requests := randomRequests(random, 60, make().Info().Vocab, 48)
			want := map[string][]result{}
			for _, r := range requests {
				want[r.ID] = alone(t, make, r)
			}
			totals := map[string]float64{}
			for trial := range 8 {
				g := newRig(t, make(), func(o *Options) {
					o.BlockTokens = []int{1, 4, 16}[trial%3]
					o.Blocks = (110 + random.IntN(60)) / o.BlockTokens
					o.PrefillChunk, o.MaxBatch = 1+random.IntN(30), 3+random.IntN(14)
					o.PrefixCache = trial%4 != 3
				}).start()
				var wg sync.WaitGroup
				for _, r := range requests {
					ticket := submit(t, g.Scheduler, r)
					wg.Go(func() {
						if got := collect(t, ticket, r.Samples); !sameResults(got, want[r.ID]) {
							t.Errorf("trial %d: request %s gave %s, alone %s", trial, r.ID, describe(got), describe(want[r.ID]))
						}
					})
				}
				wg.Wait()
				for _, m := range []string{"sonde_engine_preemptions_total", "sonde_engine_prefix_hit_tokens_total",
					"sonde_engine_prefill_chunks_total", "sonde_engine_samples_total"} {
					totals[m] += g.counted(m)
				}
				g.finish(t)
			}
			for m, n := range totals {
				if n == 0 {
					t.Errorf("%s is 0: the test provoked nothing", m)
				}
			}
			t.Log(totals)
		})
	}
}

// An abort at any moment must give back everything, and touch nobody else.
func TestAbortAtEveryMoment(t *testing.T) {
	requests := randomRequests(rand.New(rand.NewPCG(3, 3)), 9, 11, 48)
	want := map[string][]result{}
	for i := range requests {
		r := &requests[i]
		r.Samples, r.MaxTokens, r.Stop = 3, 20, nil
		want[r.ID] = alone(t, newTiny, *r)
	}
	stopped := 0
	for moment := range uint64(60) {
		victim, sample := &requests[moment%9], int(moment%4)-1
		g := newRig(t, newTiny(), func(o *Options) { o.Blocks, o.PrefillChunk, o.PrefixCache = 40, 7, true })
		var outcome ring2.AbortOutcome
		var length int
		var asked sync.WaitGroup
		g.rec.onStep = func(step uint64, _ []model.Range) {
			if step == moment+1 {
				answer := make(chan aborted, 1)
				g.mu.Lock()
				g.inbox.aborts = append(g.inbox.aborts, abort{id: victim.ID, sample: sample, answer: answer})
				g.mu.Unlock()
				asked.Go(func() { a := <-answer; outcome, length = a.outcome, a.length })
			}
		}
		tickets := make([]*Ticket, len(requests))
		for i, r := range requests {
			tickets[i] = submit(t, g.Scheduler, r)
		}
		g.start()
		results := make([][]result, len(requests))
		for i, r := range requests {
			results[i] = collect(t, tickets[i], r.Samples)
		}
		g.finish(t)
		asked.Wait()
		for i, r := range requests {
			for j, got := range results[i] {
				w := want[r.ID][j]
				if got.reason != ring2.FinishAbort {
					if !sameResults(results[i][j:j+1], want[r.ID][j:j+1]) {
						t.Errorf("moment %d: sample %d of %s: %s", moment, j, r.ID, describe(results[i][j:j+1]))
					}
					continue
				}
				n := len(got.tokens)
				if r.ID != victim.ID || sample >= 0 && sample != j || n > len(w.tokens) || got.text != w.text[:len(got.text)] {
					t.Errorf("moment %d: sample %d of %s ended as aborted after %d tokens", moment, j, r.ID, n)
				}
				if outcome != ring2.AbortStopped || sample >= 0 && length != len(r.Prompt)+n {
					t.Errorf("moment %d: %v at length %d, expected %d", moment, outcome, length, len(r.Prompt)+n)
				}
				stopped++
			}
		}
	}
	if stopped < 20 {
		t.Errorf("only %d samples were stopped: the test provoked too little", stopped)
	}
}

// Two adapters compute different keys and values for the same tokens.
func TestPrefixCacheServesNoOtherAdapter(t *testing.T) {
	g := newRig(t, newTiny(), func(o *Options) { o.PrefixCache = true }).start()
	prompt := []int32{1, 2, 3, 4, 5, 6, 7, 8, 9}
	for i, adapter := range []string{"", "a", "b", "a"} {
		before := g.counted("sonde_engine_prefix_hit_tokens_total")
		r := Request{ID: "r", Adapter: adapter, Prompt: prompt, Samples: 1, MaxTokens: 1, Sampling: Sampling{TopP: 1}}
		collect(t, submit(t, g.Scheduler, r), 1)
		hits, want := g.counted("sonde_engine_prefix_hit_tokens_total")-before, 0.0
		if i == 3 {
			want = 8
		}
		if hits != want {
			t.Errorf("request %d with adapter %q: %v tokens from the cache, not %v", i, adapter, hits, want)
		}
	}
	g.finish(t)
}

// Of a prefix that is forgotten in part, the start has to stay: without it the
// end cannot be found.
func TestEndOfAPrefixIsForgottenFirst(t *testing.T) {
	g := newRig(t, newTiny(), func(o *Options) { o.PrefixCache, o.Blocks = true, 6 }).start()
	r := Request{ID: "r", Prompt: []int32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3}, Samples: 1, MaxTokens: 1,
		Sampling: Sampling{TopP: 1}}
	collect(t, submit(t, g.Scheduler, r), 1) // Leaves three full blocks.
	other := r
	other.Prompt = []int32{9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9} // Needs four of six.
	collect(t, submit(t, g.Scheduler, other), 1)
	before := g.counted("sonde_engine_prefix_hit_tokens_total")
	collect(t, submit(t, g.Scheduler, r), 1)
	if hits := g.counted("sonde_engine_prefix_hit_tokens_total") - before; hits != 8 {
		t.Errorf("%v tokens were still known, not 8", hits)
	}
	g.finish(t)
}

// flat gives every token the same logit.
type flat struct{ model.Model }

func (flat) Forward([]model.Range, model.Tap) error { return nil }

// A generator that draws the same number for each token or sample repeats itself.
func TestEachTokenIsDrawnAnew(t *testing.T) {
	r := Request{ID: "r", Prompt: []int32{1}, Samples: 3, MaxTokens: 20,
		Sampling: Sampling{Temperature: 1, TopP: 1, Seed: 1}}
	flatModel := func() model.Model { return flat{newArithmetic()} }
	got := alone(t, flatModel, r)
	seen := map[int32]int{}
	for _, x := range got {
		for _, id := range x.tokens {
			seen[id]++
		}
	}
	r.Sampling.Seed = 2
	if len(seen) < 45 || sameResults(got, alone(t, flatModel, r)) {
		t.Errorf("only %d different tokens of 60: %s", len(seen), describe(got))
	}
}

// A cached block must be found by its whole past, not by its own tokens.
func TestPrefixCacheServesNoOtherPast(t *testing.T) {
	root := rootHash("")
	a := root.next([]int32{1, 2}).next([]int32{3, 4})
	for _, other := range []blockHash{root.next([]int32{2, 1}).next([]int32{3, 4}), root.next([]int32{3, 4}),
		root.next([]int32{1, 2, 3, 4}), rootHash("x").next([]int32{1, 2}).next([]int32{3, 4})} {
		if a == other {
			t.Error("two different pasts have the same hash")
		}
	}
}

// A pool that loses or doubles a block under any order of calls ends in a wrong
// answer or a standstill.
func TestPoolNeverLeaks(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	p := newPool(24)
	refs := make([]int, 24)
	var held []int32
	for range 20000 {
		switch random.IntN(5) {
		case 0, 1:
			if b, ok := p.take(); ok {
				if refs[b] != 0 {
					t.Fatalf("block %d was given out with %d references", b, refs[b])
				}
				refs[b]++
				held = append(held, b)
			} else if p.available() > 0 {
				t.Fatal("nothing was given out although blocks are available")
			}
		case 2:
			if len(held) > 0 {
				p.remember(held[random.IntN(len(held))], blockHash{byte(random.IntN(40))})
			}
		case 3:
			found, _ := p.lookup([]blockHash{{byte(random.IntN(40))}})
			for _, b := range found {
				p.retain(b)
				refs[b]++
				held = append(held, b)
			}
		case 4:
			if len(held) > 0 {
				i := random.IntN(len(held))
				p.release(held[i])
				refs[held[i]]--
				held[i] = held[len(held)-1]
				held = held[:len(held)-1]
			}
		}
		checkPool(t, p, refs)
		if t.Failed() {
			return
		}
	}
}
