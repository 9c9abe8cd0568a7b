package capture

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sonde/engine/arithmetic"
	"sonde/engine/model"
	"sonde/engine/scheduler"
	"sonde/engine/witness"
	"sonde/ring2"
)

// load runs requests that share prefixes, fork, and get aborted, and returns
// their tokens.
func load(g *rig, random *rand.Rand, n int) map[string][][]int32 {
	var requests []scheduler.Request
	for i := range n {
		prompt := []int32{}
		for j := range 8 + 8*(i%3) {
			prompt = append(prompt, int32(1+i%3+j))
		}
		for range random.IntN(6) {
			prompt = append(prompt, int32(random.IntN(arithmetic.Vocab)))
		}
		r := scheduler.Request{ID: fmt.Sprintf("req-%d", i), Tenant: "t", Prompt: prompt, Samples: 1 + random.IntN(3),
			MaxTokens: 1 + random.IntN(20), Sampling: scheduler.Sampling{Temperature: 1, TopP: 1, Seed: random.Uint64()}}
		requests = append(requests, r)
	}
	tokens, mu, wg := map[string][][]int32{}, sync.Mutex{}, sync.WaitGroup{}
	slots := make(chan struct{}, 16)
	for i, r := range requests {
		slots <- struct{}{}
		wg.Go(func() {
			got := g.complete(r)
			mu.Lock()
			tokens[r.ID] = got
			mu.Unlock()
			<-slots
		})
		if i%7 == 0 {
			g.scheduler.Abort(requests[i/2].ID, -1)
		}
	}
	wg.Wait()
	return tokens
}

// Everything here ends in a row under a wrong name if one offset is wrong.
func TestEveryRowThatArrivesBelongsToItsName(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	g := newRig(t, config{blocks: 32, prefillChunk: 11})
	tokens := load(g, rand.New(rand.NewPCG(seed, 0)), 120)
	free := scheduler.Request{ID: "free", Prompt: []int32{9, 9}, Samples: 2, MaxTokens: 12,
		Sampling: scheduler.Sampling{Temperature: 1, TopP: 1, Seed: 3}}
	tokens[free.ID] = g.complete(free)
	said := tokens[free.ID][1][2:]
	free.ID, free.Stop = "stopped", []string{arithmetic.Tokenizer{}.Decode(said[4:7])}
	tokens[free.ID] = g.complete(free)
	g.finish()
	r := g.reader
	if bad := wrong(r.rows, tokens); len(bad) > 0 {
		t.Errorf("%d of %d rows do not belong to their names, the first is %+v", len(bad), len(r.rows), bad[0])
	}
	stats := g.ring.Stats()
	if r.expected != stats.CapturedRows || uint64(len(r.rows)) != r.expected-r.dropped || len(r.twice) > 0 || !r.bye {
		t.Errorf("%d rows arrived, %d expected, %d captured, %d dropped, %d twice, goodbye %v", len(r.rows), r.expected,
			stats.CapturedRows, r.dropped, len(r.twice), r.bye)
	}
	if len(r.opens) != len(r.ends) || r.model.Name != "arithmetic" || len(r.layouts) != 4 {
		t.Errorf("%d opened, %d ended, model %+v, %d layouts", len(r.opens), len(r.ends), r.model, len(r.layouts))
	}
	checkWitness(t, g, r.rows, int(r.expected))
	values := map[string]float64{}
	families, err := g.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			values[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for _, name := range []string{"preemptions_total", "prefix_hit_tokens_total", "prefill_chunks_total", "samples_total",
		"aborts_total", "ring_captured_rows_total"} {
		if values["sonde_engine_"+name] == 0 {
			t.Errorf("%s is 0: the test provoked too little", name)
		}
	}
	if n := len(r.amends); n != 2 || r.amends[0].Ranges[0].Position != 2+4 || r.amends[1].Ranges[0].Position != 2+5 {
		t.Errorf("of the three tokens of the stop string, the first two were computed: %+v", r.amends)
	}
	swapIsSeen(t, r.rows, tokens)
}

// checkWitness compares the witness with the rows that arrived.
func checkWitness(t *testing.T, g *rig, rows map[identity][]byte, computed int) {
	t.Helper()
	seen, matched := 0, 0
	err := witness.Read(g.witness, func(w witness.Row) error {
		seen++
		row, ok := rows[identity{w.Request, w.Sample, w.Position, w.Pass, w.Hook, w.Layer}]
		if sum := sha256.Sum256(row); ok && [16]byte(sum[:16]) == w.Hash {
			matched++
		}
		if w.Epoch != g.ring.Epoch() {
			t.Errorf("witness of epoch %x", w.Epoch)
		}
		return nil
	})
	if err != nil || seen != computed || matched != len(rows) {
		t.Errorf("%d rows witnessed of %d, %d match of %d that arrived: %v", seen, computed, matched, len(rows), err)
	}
}

// swapIsSeen exchanges two rows and expects the check to name exactly those.
func swapIsSeen(t *testing.T, rows map[identity][]byte, tokens map[string][][]int32) {
	t.Helper()
	var pair []identity
	for id := range rows {
		if id.hook == "resid_post" && id.layer == 1 && len(pair) < 2 {
			pair = append(pair, id)
		}
	}
	a, b := pair[0], pair[1]
	rows[a], rows[b] = rows[b], rows[a]
	bad := wrong(rows, tokens)
	if len(bad) != 2 || !slices.Contains(bad, a) || !slices.Contains(bad, b) {
		t.Errorf("swapped %+v and %+v; the check named %+v", a, b, bad)
	}
	rows[a], rows[b] = rows[b], rows[a]
}

// Rows that the ring has no room for must be named, and witnessed all the same.
func TestDroppedRowsAreNamedAndWitnessed(t *testing.T) {
	var frozen atomic.Bool
	frozen.Store(true)
	g := newRig(t, config{blocks: 200, prefillChunk: 64, freeze: frozen.Load,
		ring: ring2.WriterOptions{DataBytes: 1 << 19, DescCount: 256}})
	tokens := load(g, rand.New(rand.NewPCG(1, 1)), 60)
	frozen.Store(false)
	d := g.ring.Stats().DroppedRows
	if d[ring2.ReasonNoSlot]+d[ring2.ReasonNoSpace] == 0 || d[ring2.ReasonControlFull] == 0 {
		t.Errorf("dropped by reason: %v: the test provoked too little", d)
	}
	last := scheduler.Request{ID: "last", Prompt: []int32{1}, Samples: 1, MaxTokens: 2,
		Sampling: scheduler.Sampling{TopP: 1}}
	tokens[last.ID] = g.complete(last)
	g.finish()
	r := g.reader
	if bad := wrong(r.rows, tokens); len(bad) > 0 {
		t.Errorf("%d of %d rows do not belong to their names, the first is %+v", len(bad), len(r.rows), bad[0])
	}
	checkWitness(t, g, r.rows, int(r.expected))
	if r.dropped == 0 || uint64(len(r.rows)+len(r.twice)) != r.expected-r.dropped {
		t.Errorf("%d rows arrived, %d expected, %d dropped", len(r.rows), r.expected, r.dropped)
	}
	stats, dropped := g.ring.Stats(), uint64(0)
	for _, n := range stats.DroppedRows {
		dropped += n
	}
	if r.expected != stats.CapturedRows || r.dropped != dropped {
		t.Errorf("the reader knows of %d rows, %d dropped; the writer of %d and %d", r.expected, r.dropped,
			stats.CapturedRows, dropped)
	}
}

// A step that is computed wrongly must not look captured.
func TestStepThatFailsIsCommittedAsAborted(t *testing.T) {
	g := newRig(t, config{blocks: 8, prefillChunk: 8})
	bad := []model.Range{{Request: "r", Number: 9, Tokens: []int32{arithmetic.Vocab}, Blocks: []int32{0}}}
	g.stop()
	<-g.ran
	if _, err := g.capture.Step(bad, []ring2.Phase{ring2.PhasePrefill}); err == nil {
		t.Error("a token outside the vocabulary was computed")
	}
	g.ran <- nil
	rows := g.ring.Stats().AbortedRows
	if want := uint64(len(g.capture.Hooks()) - 1); rows != want { // final_logits had none.
		t.Errorf("%d rows aborted, not %d", rows, want)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := g.ring.Close(ctx); err != nil {
		t.Error(err)
	}
	if err := <-g.read; err != nil || len(g.reader.rows) != 0 {
		t.Errorf("%d rows arrived, %v", len(g.reader.rows), err)
	}
}

// An agent's abort has to reach the sequence through the ring, and only once.
func TestAbortThroughTheRingEndsTheSequence(t *testing.T) {
	g := newRig(t, config{blocks: 1024, prefillChunk: 64})
	done := make(chan [][]int32, 1)
	r := scheduler.Request{ID: "r", Prompt: []int32{1, 2}, Samples: 1, MaxTokens: 4000,
		Sampling: scheduler.Sampling{Temperature: 0, TopP: 1}}
	go func() { done <- g.complete(r) }()
	var engineID string
	for deadline := time.Now().Add(10 * time.Second); g.scheduler.Context() > 0 && engineID == ""; {
		if time.Now().After(deadline) {
			t.Fatal("the request never ran")
		}
		if g.ring.Stats().Steps > 10 {
			engineID = fmt.Sprintf("%016x%016x", g.ring.Epoch(), 1)
		}
	}
	abort := ring2.Abort{Epoch: g.ring.Epoch(), Number: 1, EngineID: engineID, Position: 3,
		ExpiresWallNS: uint64(time.Now().Add(time.Minute).UnixNano())}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	outcome, length, err := g.reader.session.Abort(ctx, abort)
	tokens := <-done
	if err != nil || outcome == ring2.AbortUnknown || int(length) != len(tokens[0]) {
		t.Errorf("%v at %d of %d tokens, %v", outcome, length, len(tokens[0]), err)
	}
	again, same, err := g.reader.session.Abort(ctx, abort)
	if again != ring2.AbortFinished || same != length || err != nil {
		t.Errorf("delivered twice: %v at %d, %v", again, same, err)
	}
	g.finish()
	if e := g.reader.ends[1]; outcome == ring2.AbortStopped && e.Reason != ring2.FinishDetector {
		t.Errorf("ended with %+v", e)
	}
}

func TestHooksAreChosenByPattern(t *testing.T) {
	m := arithmetic.New(arithmetic.Options{Layers: 2})
	for _, c := range []struct {
		patterns []string
		want     int
		err      string
	}{
		{nil, 31, ""}, {[]string{"*"}, 31, ""}, {[]string{"resid_*"}, 7, ""}, {[]string{"?"}, 8, ""},
		{[]string{"resid_post", "resid_*", "token_ids"}, 8, ""}, {[]string{"resid_pots"}, 0, "none of that name"},
		{[]string{"["}, 0, "syntax"},
	} {
		s, err := Select(m, c.patterns)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: %v", c.patterns, err)
			}
			continue
		}
		if err != nil || len(s.Hooks()) != c.want {
			t.Errorf("%q: %d hooks, %v", c.patterns, len(s.Hooks()), err)
		}
	}
}

// An engine that sizes its steps by StepBytes must never meet one that is larger.
func TestStepBytesIsABound(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 3))
	m := arithmetic.New(arithmetic.Options{Layers: 3})
	for _, patterns := range [][]string{nil, {"resid_*"}, {"pattern"}, {"final_logits", "v"}} {
		s, err := Select(m, patterns)
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			w, err := ring2.NewWriter(ring2.WriterOptions{DataBytes: 1 << 22})
			if err != nil {
				t.Fatal(err)
			}
			c, err := New(s, w, nil, "test")
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Allocate(200, 4); err != nil {
				t.Fatal(err)
			}
			var ranges []model.Range
			tokens, blocks := 0, int32(0)
			for i := range 1 + random.IntN(6) {
				r := model.Range{Request: "r", Number: uint64(i), Position: random.IntN(60),
					Tokens: make([]int32, 1+random.IntN(20))}
				for range (r.Position+len(r.Tokens))/4 + 1 {
					r.Blocks = append(r.Blocks, blocks)
					blocks++
				}
				if random.IntN(2) == 0 {
					r.Logits = make([]float32, arithmetic.Vocab)
				}
				tokens += len(r.Tokens)
				ranges = append(ranges, r)
			}
			if _, err := c.Step(ranges, make([]ring2.Phase, len(ranges))); err != nil {
				t.Fatal(err)
			}
			used := 0
			for _, layout := range c.layouts {
				used += payloadBytes(c, &layout)
			}
			if limit := s.StepBytes(tokens, len(ranges), 80); used > limit {
				t.Fatalf("seed %d: a step of %d tokens took %d bytes, above %d", seed, tokens, used, limit)
			}
			if err := w.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// payloadBytes is what a layout of the last step took in the ring.
func payloadBytes(c *Capture, l *layout) int {
	up := func(n int) int { return (n + 63) &^ 63 }
	n := 0
	for _, hook := range l.hooks {
		if c.hooks[hook].Ragged {
			n += up(len(c.cuts[hook].offsets)+c.spanBytes(hook)) + 8
		} else {
			n += up(c.spanBytes(hook))
		}
	}
	return up(n)
}

func BenchmarkStep(b *testing.B) {
	for _, witnessed := range []bool{false, true} {
		b.Run(fmt.Sprintf("witness=%v", witnessed), func(b *testing.B) {
			m := arithmetic.New(arithmetic.Options{})
			s, err := Select(m, nil)
			if err != nil {
				b.Fatal(err)
			}
			var w *witness.Writer
			if witnessed {
				if w, err = witness.Create(b.TempDir(), 1, s.Hooks()); err != nil {
					b.Fatal(err)
				}
			}
			c, err := New(s, nil, w, "test")
			if err != nil {
				b.Fatal(err)
			}
			if err := m.Allocate(64, 16); err != nil {
				b.Fatal(err)
			}
			var ranges []model.Range
			for i := range 16 {
				ranges = append(ranges, model.Range{Request: "request", Sample: i, Tokens: make([]int32, 8),
					Blocks: []int32{int32(i)}})
			}
			phases, rows := make([]ring2.Phase, 16), 0
			for b.Loop() {
				if _, err := c.Step(ranges, phases); err != nil {
					b.Fatal(err)
				}
				rows += 16 * 8 * (len(c.chosen) - 1)
			}
			b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
		})
	}
}
