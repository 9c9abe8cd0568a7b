package scheduler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/engine/arithmetic"
	"sonde/engine/model"
	"sonde/ring2"
)

// tiny is a model that reads every token of its sequence back out of the blocks,
// so that one wrong block anywhere changes the logits.
type tiny struct {
	info        model.Info
	kv          []int32
	blockTokens int
}

func newTiny() model.Model {
	return &tiny{info: model.Info{Name: "tiny", Vocab: 11, Context: 96, EOS: 0, Hooks: nil}}
}

func (m *tiny) Info() *model.Info           { return &m.info }
func (m *tiny) RaggedRowBytes(int, int) int { return 0 }
func (m *tiny) CopyBlock(dst, src int32)    { copy(m.block(dst), m.block(src)) }
func (m *tiny) block(b int32) []int32       { return m.kv[int(b)*m.blockTokens:][:m.blockTokens] }
func (m *tiny) at(r *model.Range, i int) *int32 {
	return &m.block(r.Blocks[i/m.blockTokens])[i%m.blockTokens]
}

func (m *tiny) Allocate(blocks, blockTokens int) error {
	m.kv, m.blockTokens = make([]int32, blocks*blockTokens), blockTokens
	return nil
}

func (m *tiny) Forward(ranges []model.Range, _ model.Tap) error {
	for i := range ranges {
		r := &ranges[i]
		for j, id := range r.Tokens {
			*m.at(r, r.Position+j) = id
		}
	}
	for i := range ranges {
		r := &ranges[i]
		h := uint64(1)
		for j := 0; j < r.Position+len(r.Tokens) && r.Logits != nil; j++ {
			h = mix(h ^ uint64(*m.at(r, j)))
		}
		for j := range r.Logits {
			r.Logits[j] = float32(mix(h+uint64(j))>>60) / 4
		}
	}
	return nil
}

type silent struct{}

func (silent) Span(int) []byte            { return nil }
func (silent) RaggedSpan(int, int) []byte { return nil }

// recorder computes steps and checks everything that a step promises.
type recorder struct {
	t     *testing.T
	s     *Scheduler
	model model.Model
	steps uint64

	computed map[uint64][]int // passes of each position, by number
	opens    map[uint64]ring2.RequestOpen
	ends     map[uint64]ring2.RequestEnd
	amends   []ring2.Amend
	onStep   func(step uint64, ranges []model.Range)
	openErr  func(ring2.RequestOpen) error
	stepErr  error
}

func (r *recorder) Open(o ring2.RequestOpen) error {
	if _, twice := r.opens[o.Number]; twice {
		r.t.Errorf("number %d was opened twice", o.Number)
	}
	if r.openErr != nil {
		if err := r.openErr(o); err != nil {
			return err
		}
	}
	r.opens[o.Number] = o
	return nil
}

func (r *recorder) End(e ring2.RequestEnd) error {
	if _, twice := r.ends[e.Number]; twice {
		r.t.Errorf("number %d ended twice", e.Number)
	}
	if _, open := r.opens[e.Number]; !open {
		r.t.Errorf("number %d ended without being open", e.Number)
	}
	r.ends[e.Number] = e
	return nil
}

func (r *recorder) Amend(a ring2.Amend) error {
	r.amends = append(r.amends, a)
	return nil
}

func (r *recorder) Step(ranges []model.Range, phases []ring2.Phase) (uint64, error) {
	r.steps++
	if r.stepErr != nil {
		return 0, r.stepErr
	}
	seen, prefill := map[uint64]bool{}, 0
	for i := range ranges {
		g := &ranges[i]
		if phases[i] != ring2.PhaseDecode {
			prefill += len(g.Tokens)
		}
		if seen[g.Number] {
			r.t.Errorf("step %d holds two ranges of number %d", r.steps, g.Number)
		}
		seen[g.Number] = true
		r.checkRange(g, phases[i])
	}
	if len(ranges) > r.s.o.MaxBatch || prefill > r.s.o.PrefillChunk {
		r.t.Errorf("step %d has %d sequences and %d prompt tokens; at most %d and %d", r.steps, len(ranges), prefill,
			r.s.o.MaxBatch, r.s.o.PrefillChunk)
	}
	r.checkBlocks()
	if r.onStep != nil {
		r.onStep(r.steps, ranges)
	}
	return r.steps, r.model.Forward(ranges, silent{})
}

// checkRange checks that each position of a number is computed once per pass,
// and that passes count from 0 upward without a gap.
func (r *recorder) checkRange(g *model.Range, phase ring2.Phase) {
	o, open := r.opens[g.Number]
	if _, over := r.ends[g.Number]; over || !open || len(g.Tokens) == 0 ||
		o.ExternalID != g.Request || int(o.Sample) != g.Sample {
		r.t.Errorf("range %+v belongs to no open sequence", g)
	}
	passes := r.computed[g.Number]
	for len(passes) < g.Position+len(g.Tokens) {
		passes = append(passes, 0)
	}
	for p := g.Position; p < g.Position+len(g.Tokens); p++ {
		if passes[p] != g.Pass {
			r.t.Errorf("number %d: position %d was computed %d times, now as pass %d", g.Number, p, passes[p], g.Pass)
		}
		passes[p]++
		want := ring2.PhaseDecode
		switch {
		case g.Pass > 0:
			want = ring2.PhaseRecompute
		case p < int(o.PromptTokens):
			want = ring2.PhasePrefill
		}
		if phase != want {
			r.t.Errorf("number %d: position %d of pass %d has phase %v, not %v", g.Number, p, g.Pass, phase, want)
		}
	}
	r.computed[g.Number] = passes
}

// checkBlocks checks that the pool counts exactly the references that exist, and
// that no block which is written in this step is read by another sequence.
func (r *recorder) checkBlocks() {
	refs := make([]int, len(r.s.pool.blocks))
	for _, q := range r.s.running {
		for _, b := range q.blocks {
			refs[b]++
		}
	}
	for _, q := range r.s.waiting {
		if len(q.blocks) > 0 {
			r.t.Errorf("a waiting sequence holds %d blocks", len(q.blocks))
		}
	}
	checkPool(r.t, r.s.pool, refs)
	for i := range r.s.plan.ranges {
		g := &r.s.plan.ranges[i]
		for _, b := range g.Blocks[g.Position/r.s.o.BlockTokens:] {
			if refs[b] != 1 || r.s.pool.blocks[b].cached {
				r.t.Errorf("step %d writes block %d, which has %d references", r.steps, b, refs[b])
			}
		}
	}
}

func checkPool(t *testing.T, p *pool, refs []int) {
	t.Helper()
	unused := 0
	for b := range p.blocks {
		if p.blocks[b].refs != refs[b] {
			t.Errorf("block %d counts %d references; there are %d", b, p.blocks[b].refs, refs[b])
		}
		if refs[b] == 0 {
			unused++
		}
		if k := &p.blocks[b]; k.cached && p.cached[k.hash] != int32(b) {
			t.Errorf("block %d is cached, but another one is found for its hash", b)
		}
	}
	if p.available() != unused {
		t.Errorf("%d blocks can be taken, %d are unused", p.available(), unused)
	}
}

// rig is a scheduler that runs.
type rig struct {
	*Scheduler
	rec      *recorder
	registry *prometheus.Registry
	stop     context.CancelFunc
	done     chan error
}

func newRig(t *testing.T, m model.Model, change func(*Options)) *rig {
	t.Helper()
	reg := prometheus.NewRegistry()
	rec := &recorder{t: t, model: m, computed: map[uint64][]int{}, opens: map[uint64]ring2.RequestOpen{},
		ends: map[uint64]ring2.RequestEnd{}}
	o := Options{Model: m, Tokenizer: arithmetic.Tokenizer{}, Recorder: rec, Epoch: 0xabc, Blocks: 512, BlockTokens: 4,
		PrefillChunk: 64, MaxBatch: 8, MaxOpen: 1000, Registerer: reg, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	rec.s = s
	return &rig{Scheduler: s, rec: rec, registry: reg, done: make(chan error, 1)}
}

func (r *rig) start() *rig {
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.done <- r.Run(ctx) }()
	return r
}

// finish ends the scheduler and checks that nothing is left.
func (r *rig) finish(t *testing.T) {
	t.Helper()
	r.stop()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
	checkPool(t, r.pool, make([]int, len(r.pool.blocks)))
	for n := range r.rec.opens {
		if _, over := r.rec.ends[n]; !over {
			t.Errorf("number %d never ended", n)
		}
	}
	if len(r.byID)+len(r.byNumber)+len(r.ids)+r.open != 0 {
		t.Errorf("requests are left: %d %d %d %d", len(r.byID), len(r.byNumber), len(r.ids), r.open)
	}
}

// counted adds up the series of a metric.
func (r *rig) counted(name string) float64 {
	families, _ := r.registry.Gather()
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// result is what became of one sample.
type result struct {
	tokens    []int32
	text      string
	reason    ring2.Finish
	generated int
}

func collect(t *testing.T, ticket *Ticket, samples int) []result {
	t.Helper()
	out := make([]result, samples)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		events, err := ticket.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("wait for events: %v", err)
		}
		for _, e := range events {
			r := &out[e.Sample]
			if e.Token >= 0 {
				r.tokens = append(r.tokens, e.Token)
			}
			r.text += e.Text
			if e.Done {
				r.reason, r.generated = e.Reason, e.Generated
			}
		}
	}
}

func submit(t *testing.T, s *Scheduler, r Request) *Ticket {
	t.Helper()
	ticket, err := s.Submit(r)
	if err != nil {
		t.Fatalf("submit %q: %v", r.ID, err)
	}
	return ticket
}

// alone computes a request in an engine of its own, with room for everything.
func alone(t *testing.T, make func() model.Model, r Request) []result {
	t.Helper()
	g := newRig(t, make(), nil).start()
	out := collect(t, submit(t, g.Scheduler, r), r.Samples)
	g.finish(t)
	return out
}

// randomRequests share prefixes, so that the cache has something to find.
func randomRequests(random *rand.Rand, n, vocab, context int) []Request {
	out := make([]Request, n)
	for i := range out {
		prefix := random.IntN(3)
		prompt := []int32{int32(prefix + 1)}
		for j := range 3 + random.IntN(5)*prefix {
			prompt = append(prompt, int32((prefix*7+j*3)%vocab))
		}
		for range random.IntN(9) {
			prompt = append(prompt, int32(random.IntN(vocab)))
		}
		out[i] = Request{ID: fmt.Sprintf("r%d", i), Adapter: []string{"", "x"}[random.IntN(2)], Prompt: prompt,
			Samples: 1 + random.IntN(3), MaxTokens: 1 + random.IntN(context/2),
			Sampling: Sampling{Temperature: []float64{0, 0.7, 1}[random.IntN(3)], TopP: []float64{1, 0.8}[random.IntN(2)],
				Seed: random.Uint64()}}
		if random.IntN(3) == 0 {
			out[i].Stop = []string{fmt.Sprintf("%d ", random.IntN(10)), fmt.Sprintf("%d %d", random.IntN(10), random.IntN(10))}
		}
	}
	return out
}

func sameResults(a, b []result) bool {
	return slices.EqualFunc(a, b, func(a, b result) bool {
		return slices.Equal(a.tokens, b.tokens) && a.text == b.text && a.reason == b.reason && a.generated == b.generated
	})
}

func describe(r []result) string {
	var b strings.Builder
	for _, x := range r {
		fmt.Fprintf(&b, "[%v %d %v]", x.reason, x.generated, x.tokens)
	}
	return b.String()
}
