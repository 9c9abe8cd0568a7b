package training

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"slices"
	"sort"

	"sonde/consumers/detector"
	"sonde/lakehouse"
)

// maxFitBytes bounds the memory of the rows that are fitted to, as float32. Beyond,
// every k-th token of each request is taken.
const maxFitBytes = 512 << 20

// matrix is the rows that are fitted to.
type matrix struct {
	n, width int
	stride   int
	x        []float32 // n rows of width elements
	positive []bool    // by row
}

// maker is what all rows of a training must share.
type maker struct {
	weights, quantisation, dtype string
	width                        int
}

// position is one token of one sample.
type position struct {
	sample sampleKey
	at     int32
}

// reader walks the rows of chosen requests, each position once.
type reader struct {
	o     Options
	set   *set
	stage string
	maker *maker
	seen  map[position]bool
	rows  int
}

// maxSeen bounds the positions that a pass over the dataset remembers.
const maxSeen = 1 << 24

// read calls each for the rows of one part of the requests that the phase covers.
// A position that was recomputed is one row: the passes are alike.
func (r *reader) read(ctx context.Context, lake Lake, heldOut bool, each func(*sample, *lakehouse.Vector) error) error {
	r.seen = map[position]bool{}
	layer, done := r.o.Layer, 0
	return lake.Vectors(ctx, lakehouse.Query{Hook: r.o.Hook, Layer: &layer}, func(v *lakehouse.Vector) error {
		const often = 1 << 10
		if done++; done%often == 0 {
			r.o.tell(r.stage, done)
		}
		key := sampleKey{v.Epoch, v.Number}
		s := r.set.samples[key]
		if s == nil || s.request.heldOut != heldOut || !detector.Covers(r.o.Phase, detector.Token{Position: v.Position,
			Phase: v.Phase, PromptTokens: s.prompt}) {
			return nil
		}
		if err := r.sameMaker(v); err != nil {
			return err
		}
		at := position{key, v.Position}
		if r.seen[at] {
			return nil
		}
		if len(r.seen) >= maxSeen {
			return fmt.Errorf("train a detector: more than %d tokens; choose fewer requests with --positive and --negative",
				maxSeen)
		}
		r.seen[at] = true
		r.rows++
		return each(s, v)
	})
}

func (o *Options) tell(stage string, done int) {
	if o.Progress != nil {
		o.Progress(stage, done)
	}
}

// sameMaker refuses rows of two models: their spaces have nothing in common.
func (r *reader) sameMaker(v *lakehouse.Vector) error {
	width := 1
	for _, n := range v.Shape {
		width *= n
	}
	got := maker{weights: v.WeightsDigest, quantisation: v.Quantisation, dtype: v.DType, width: width}
	switch {
	case v.Ragged || v.ShardCount > 1:
		return fmt.Errorf("train a detector: rows of %s layer %d differ in length or are split over ranks; a probe needs "+
			"whole rows of one length", r.o.Hook, r.o.Layer)
	case !slices.Contains([]string{"f32", "f16", "bf16"}, v.DType):
		return fmt.Errorf("train a detector: rows of %s layer %d are %s; a probe reads f32, f16 or bf16", r.o.Hook, r.o.Layer,
			v.DType)
	case r.maker == nil:
		r.maker = &got
	case *r.maker != got:
		return fmt.Errorf("train a detector: the dataset holds rows of two models: weights %q, %s x %d, quantisation %q, "+
			"and "+
			"weights %q, %s x %d, quantisation %q; train on a dataset of one", r.maker.weights, r.maker.dtype, r.maker.width,
			r.maker.quantisation, got.weights, got.dtype, got.width, got.quantisation)
	}
	return nil
}

// collect reads what is fitted to.
func collect(ctx context.Context, lake Lake, o Options, s *set) (detector.Binding, *matrix, error) {
	var m matrix
	var row []float64
	r := &reader{o: o, set: s, stage: "reading rows to fit"}
	err := r.read(ctx, lake, false, func(s *sample, v *lakehouse.Vector) error {
		if row == nil {
			m.width, row = r.maker.width, make([]float64, r.maker.width)
			m.stride = strideOf(r.set, m.width)
		}
		if int(v.Position)%m.stride != 0 {
			return nil
		}
		detector.Elements(row, v.DType, v.Raw)
		if slices.ContainsFunc(row, func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) }) {
			return nil
		}
		for _, x := range row {
			m.x = append(m.x, float32(x))
		}
		m.positive = append(m.positive, s.request.positive)
		m.n++
		return nil
	})
	if err != nil {
		return detector.Binding{}, nil, err
	}
	if m.n == 0 {
		return detector.Binding{}, nil, fmt.Errorf("train a detector: the dataset has no row of %s layer %d (phase %s) of "+
			"the chosen requests; see its hooks with sonde lake verify", o.Hook, o.Layer, o.Phase)
	}
	if positives := count(m.positive); positives == 0 || positives == m.n {
		return detector.Binding{}, nil, fmt.Errorf("train a detector: all %d rows to fit are of one class: the other "+
			"one's rows of %s layer %d are missing in the dataset", m.n, o.Hook, o.Layer)
	}
	return detector.Binding{ModelWeights: orAny(r.maker.weights), Quantisation: orNone(r.maker.quantisation),
			Adapter: orNone(s.adapter), Hook: o.Hook, Layer: o.Layer, DType: r.maker.dtype, Width: m.width, Phase: o.Phase}, &m,
		nil
}

// strideOf thins out the tokens so that they fit into the bound.
func strideOf(s *set, width int) int {
	tokens := 0
	for _, q := range s.samples {
		if !q.request.heldOut {
			tokens += int(max(q.tokens, 0))
		}
	}
	return 1 + tokens*width*4/maxFitBytes
}

func count(flags []bool) int {
	n := 0
	for _, f := range flags {
		if f {
			n++
		}
	}
	return n
}

func orNone(text string) string {
	if text == "" {
		return detector.None
	}
	return text
}

// orAny is for engines that do not say which weights they run.
func orAny(digest string) string {
	if digest == "" {
		return detector.Any
	}
	return digest
}

// judged is what the held-out requests scored.
type judged struct {
	requests []*heldOut
	rows     int
	tokens   [2][2]int // by class (1: positive) and by side of the score (1: above 0)
	test     []testRow
}

// heldOut is one request, with the scores of its samples.
type heldOut struct {
	positive bool
	most     float32     // largest aggregated score
	samples  [][]float32 // aggregated score after each judged token
}

// token is one held-out row without its bytes.
type token struct {
	at  detector.Token
	raw float32
}

type testRow struct {
	position int32
	raw      []byte
}

// maxTestRows is how many rows go into a bundle for its self-test.
const maxTestRows = 64

// judgeHeldOut scores the held-out requests with the code that judges live ones.
func judgeHeldOut(ctx context.Context, lake Lake, o Options, s *set, b detector.Binding, p detector.Probe) (*judged,
	error) {
	tokens := map[sampleKey][]token{}
	r := &reader{o: o, set: s, stage: "judging held-out requests"}
	j := &judged{}
	var tested *sampleKey
	err := r.read(ctx, lake, true, func(q *sample, v *lakehouse.Vector) error {
		if r.maker.dtype != b.DType || r.maker.width != b.Width || orAny(r.maker.weights) != b.ModelWeights {
			return fmt.Errorf("train a detector: the held-out requests ran on another model than the fitted ones")
		}
		key := sampleKey{v.Epoch, v.Number}
		raw := p.Score(v.Raw)
		tokens[key] = append(tokens[key], token{detector.Token{Position: v.Position, Phase: v.Phase,
			PromptTokens: q.prompt}, raw})
		if tested == nil && q.request.positive {
			tested = &key
		}
		if tested != nil && *tested == key && !math.IsNaN(float64(raw)) && !math.IsInf(float64(raw), 0) {
			j.keep(testRow{v.Position, bytes.Clone(v.Raw)})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	j.rows = r.rows
	byRequest := map[*request]*heldOut{}
	for _, key := range sortedKeys(tokens) {
		q := s.samples[key].request
		h := byRequest[q]
		if h == nil {
			h = &heldOut{positive: q.positive, most: float32(math.Inf(-1))}
			byRequest[q] = h
			j.requests = append(j.requests, h)
		}
		j.judge(h, o, b, tokens[key])
	}
	return j, j.check(o)
}

// keep holds the rows of the lowest positions, in their order.
func (j *judged) keep(row testRow) {
	i := sort.Search(len(j.test), func(i int) bool { return j.test[i].position > row.position })
	j.test = slices.Insert(j.test, i, row)
	j.test = j.test[:min(len(j.test), maxTestRows)]
}

// judge replays one sample.
func (j *judged) judge(h *heldOut, o Options, b detector.Binding, tokens []token) {
	sort.Slice(tokens, func(i, k int) bool { return tokens[i].at.Position < tokens[k].at.Position })
	track := detector.NewTrack(&detector.Bundle{Manifest: detector.Manifest{Binding: b, Aggregation: o.Aggregation}})
	var scores []float32
	for _, t := range tokens {
		v := track.Replay(t.at, t.raw)
		if v.Result != detector.Scored {
			continue
		}
		scores = append(scores, v.Score)
		h.most = max(h.most, v.Score)
		j.tokens[side(h.positive)][side(v.Raw > 0)]++
	}
	h.samples = append(h.samples, scores)
}

func side(b bool) int {
	if b {
		return 1
	}
	return 0
}

// check makes sure that the figures rest on requests of both classes.
func (j *judged) check(o Options) error {
	var n [2]int
	for _, h := range j.requests {
		if !math.IsInf(float64(h.most), -1) {
			n[side(h.positive)]++
		}
	}
	j.requests = slices.DeleteFunc(j.requests, func(h *heldOut) bool { return math.IsInf(float64(h.most), -1) })
	if n[0] < leastHeldOut || n[1] < leastHeldOut || len(j.test) == 0 {
		return fmt.Errorf("train a detector: only %d positive and %d clean held-out requests have rows of %s layer %d; at "+
			"least %d of each are needed", n[1], n[0], o.Hook, o.Layer, leastHeldOut)
	}
	return nil
}

// accuracy is the share of tokens on the right side of an even chance, and that of
// the more frequent class.
func (j *judged) accuracy() (accuracy, baseline float64) {
	clean, positive := j.tokens[0][0]+j.tokens[0][1], j.tokens[1][0]+j.tokens[1][1]
	all := float64(clean + positive)
	return float64(j.tokens[0][0]+j.tokens[1][1]) / all, float64(max(clean, positive)) / all
}

func (j *judged) testRows() [][]byte {
	out := make([][]byte, len(j.test))
	for i, row := range j.test {
		out[i] = row.raw
	}
	return out
}

func sortedKeys(tokens map[sampleKey][]token) []sampleKey {
	keys := make([]sampleKey, 0, len(tokens))
	for key := range tokens {
		keys = append(keys, key)
	}
	sort.Slice(keys, func(i, k int) bool {
		return keys[i].epoch < keys[k].epoch || keys[i].epoch == keys[k].epoch && keys[i].number < keys[k].number
	})
	return keys
}
