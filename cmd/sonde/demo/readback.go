package demo

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"sonde/consumers/detector"
	"sonde/engine/bpe"
	"sonde/engine/witness"
	"sonde/lakehouse"
	"sonde/schema"
)

// Of the requests, a few are drawn as heat maps: each holds every token.
const (
	heatRequests = 6
	heatTokens   = 160
	readRequests = 12
)

var heatHooks = []string{"resid_post", "attn_out", "mlp_out"}

// readback is what the dataset says, read once from front to back.
type readback struct {
	d         *demo
	compare   *comparison
	requests  map[string]*lakehouse.Request
	tokens    map[string]map[int32]int32 // by request and position
	storedBy  map[string]uint64
	norms     map[string]map[string][][]*float64 // by request and hook: layer, then token
	tokenizer *bpe.Tokenizer
	scores    map[string][]detector.Score // by request
}

// judge reads the dataset and fills report and series, all but what only the
// running demo knew.
func (d *demo) judge(ctx context.Context, lake *lakehouse.Lake, answers []answer) (*Report, *series, error) {
	tokenizer, err := bpe.Load(filepath.Join(d.o.Model, "tokenizer.json"))
	if err != nil {
		return nil, nil, err
	}
	b := &readback{d: d, compare: newComparison(), requests: map[string]*lakehouse.Request{},
		tokens: map[string]map[int32]int32{}, storedBy: map[string]uint64{}, norms: map[string]map[string][][]*float64{},
		tokenizer: tokenizer, scores: d.trace.all()}
	for i := range min(heatRequests, len(answers)) {
		b.norms[answers[len(answers)-1-i].ID] = map[string][][]*float64{}
	}
	if err := b.read(ctx, lake); err != nil {
		return nil, nil, err
	}
	ledger := d.pipe.Ledger().Total
	r := &Report{Requests: len(b.requests), LedgerUnit: "rows", Filtered: ledger.Filtered, Alerts: []Alert{},
		Stopped: []Stopped{}, Failures: []string{},
		Ledger: Ledger{Captured: ledger.Captured, Acknowledged: ledger.Acknowledged, Dropped: ledger.DroppedRows(),
			Aborted: ledger.Aborted, Lost: ledger.Lost, DeadLettered: ledger.DeadLettered, InFlight: ledger.InFlight}}
	for _, q := range b.requests {
		r.Tokens += int(q.PromptTokens + q.GeneratedTokens)
		r.GeneratedTokens += int(q.GeneratedTokens)
		r.Model, r.ModelWeightsDigest = q.Model, q.WeightsDigest
	}
	for _, n := range b.storedBy {
		r.Stored += n
	}
	if r.Ledger.Acknowledged > r.Stored {
		r.Pending = r.Ledger.Acknowledged - r.Stored
	}
	r.BitExact, r.Hooks = b.compare.result()
	if r.DatasetBytes, err = folderBytes(d.folder.path("lake")); err != nil {
		return nil, nil, err
	}
	s := &series{Ledger: r.Ledger, Stored: r.Stored, Pending: r.Pending, StoredBy: b.parts(), Heat: b.heat(answers)}
	if err := b.verdicts(ctx, lake, r, s, answers); err != nil {
		return nil, nil, err
	}
	b.faults(r)
	s.Requests = b.rows(r, answers)
	return r, s, nil
}

// faults adds what the comparison found beside the counts.
func (b *readback) faults(r *Report) {
	if b.compare.first != "" {
		r.Failures = append(r.Failures, b.compare.first)
	}
	if unseen := b.compare.unseen(); len(unseen) > 0 {
		r.Failures = append(r.Failures, "the dataset holds no row of the hooks "+strings.Join(unseen, ", "))
	}
	if b.compare.outside > 0 {
		r.Failures = append(r.Failures, fmt.Sprintf("%d witnessed rows are outside what the demo can compare",
			b.compare.outside))
	}
}

// read takes the witness first, then every row of the dataset.
func (b *readback) read(ctx context.Context, lake *lakehouse.Lake) error {
	err := witness.Read(b.d.folder.path("witness"), func(w witness.Row) error {
		b.compare.witness(rowKey{w.Request, w.Sample, w.Position, w.Pass, w.Hook, w.Layer}, w.Hash)
		return nil
	})
	if err != nil {
		return err
	}
	every := lakehouse.Query{}
	err = lake.Requests(ctx, every, func(r *lakehouse.Request) error {
		kept := *r
		b.requests[r.Request] = &kept
		return nil
	})
	if err != nil {
		return err
	}
	err = lake.Tokens(ctx, every, func(t *lakehouse.Token) error {
		raw := binary.LittleEndian.AppendUint32(nil, uint32(t.TokenID))
		b.compare.row(rowKey{t.Request, int(t.Sample), int(t.Position), int(t.Pass), t.Hook, t.Layer}, raw)
		b.storedBy[t.Hook]++
		if b.tokens[t.Request] == nil {
			b.tokens[t.Request] = map[int32]int32{}
		}
		b.tokens[t.Request][t.Position] = t.TokenID
		return nil
	})
	if err != nil {
		return err
	}
	return lake.Vectors(ctx, every, func(v *lakehouse.Vector) error {
		b.compare.row(rowKey{v.Request, int(v.Sample), int(v.Position), int(v.Pass), v.Hook, v.Layer}, v.Raw)
		b.storedBy[v.Hook]++
		b.norm(v)
		return nil
	})
}

// norm keeps the length of a vector that a heat map shows.
func (b *readback) norm(v *lakehouse.Vector) {
	hooks := b.norms[v.Request]
	if hooks == nil || v.Layer < 0 || v.Position >= heatTokens || v.DType != "f32" {
		return
	}
	shown := false
	for _, h := range heatHooks {
		shown = shown || h == v.Hook
	}
	if !shown {
		return
	}
	sum := 0.0
	for i := 0; i+4 <= len(v.Raw); i += 4 {
		x := float64(math.Float32frombits(binary.LittleEndian.Uint32(v.Raw[i:])))
		sum += x * x
	}
	layers := hooks[v.Hook]
	for len(layers) <= v.Layer {
		layers = append(layers, nil)
	}
	for len(layers[v.Layer]) <= int(v.Position) {
		layers[v.Layer] = append(layers[v.Layer], nil)
	}
	length := math.Round(1000*math.Sqrt(sum)) / 1000
	layers[v.Layer][v.Position] = &length
	hooks[v.Hook] = layers
}

// heat lists the heat maps, the requests in the order of their answers.
func (b *readback) heat(answers []answer) []heatMap {
	var out []heatMap
	for _, a := range answers {
		if hooks := b.norms[a.ID]; len(hooks) > 0 {
			tokens := b.texts(a.ID)
			out = append(out, heatMap{Request: a.ID, Tokens: tokens[:min(len(tokens), heatTokens)], Hooks: hooks})
		}
	}
	return out
}

// texts is the text of each token of a request whose id is in the dataset.
func (b *readback) texts(request string) []string {
	ids := b.tokens[request]
	out := make([]string, 0, len(ids))
	for p := int32(0); ; p++ {
		id, ok := ids[p]
		if !ok {
			return out
		}
		out = append(out, b.tokenizer.Decode([]int32{id}))
	}
}

// parts is what is stored, by hook, largest first.
func (b *readback) parts() []part {
	var out []part
	for hook, n := range b.storedBy {
		out = append(out, part{hook, n})
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Rows != out[j].Rows {
			return out[i].Rows > out[j].Rows
		}
		return out[i].Name < out[j].Name
	})
	return out
}

// verdicts fills alerts, stops, score curves and latencies.
func (b *readback) verdicts(ctx context.Context, lake *lakehouse.Lake, r *Report, s *series, answers []answer) error {
	if b.d.o.Detector == "" {
		return nil
	}
	bundle, err := detector.Load(b.d.o.Detector)
	if err != nil {
		return err
	}
	crossings := map[string]int{}
	seen := map[string]bool{}
	err = lake.Detections(ctx, lakehouse.Query{}, func(d *schema.DetectionRow) error {
		if !seen[d.ID] {
			r.Alerts = append(r.Alerts, Alert{d.ID, d.Request, int(d.Position), float64(d.Score)})
		}
		seen[d.ID] = true
		if d.Outcome == "stopped" {
			crossings[d.Request] = int(d.Position)
		}
		return nil
	})
	if err != nil {
		return err
	}
	sort.Slice(r.Alerts, func(i, j int) bool { return r.Alerts[i].Request < r.Alerts[j].Request })
	for _, a := range answers {
		crossing, ok := crossings[a.ID]
		q := b.requests[a.ID]
		if !ok || q == nil || q.Reason != "detector" {
			continue
		}
		// The vector at the crossing predicts the token after it; each later one leaked.
		leaked := int(q.PromptTokens+q.GeneratedTokens) - 1 - crossing
		r.Stopped = append(r.Stopped, Stopped{a.ID, crossing, leaked})
	}
	threshold := stopThreshold(bundle)
	r.Detector = &DetectorReport{Bundle: b.d.o.Detector, Name: bundle.Manifest.Name, Digest: bundle.Digest,
		Mode: "enforce", Threshold: threshold}
	s.Scores, s.Reading = b.curves(threshold, crossings, answers)
	s.Latency, r.TensorToVerdictMS = latencyHistogram(b.latencies())
	return nil
}

// stopThreshold is the threshold of the highest level.
func stopThreshold(bundle *detector.Bundle) float64 {
	threshold := 0.0
	for _, l := range bundle.Manifest.Levels {
		threshold = max(threshold, float64(l.Threshold))
	}
	return threshold
}

func (b *readback) latencies() []float64 {
	var out []float64
	for _, scores := range b.scores {
		for _, s := range scores {
			out = append(out, float64(s.VerdictNS-s.CaptureNS)/1e6)
		}
	}
	return out
}

// curves are the scores over tokens, and the tinted texts of some requests, those
// that were stopped first.
func (b *readback) curves(threshold float64, crossings map[string]int, answers []answer) (*scoreChart, []readingRow) {
	chart := &scoreChart{Threshold: threshold, Low: threshold, High: threshold}
	var reading, unstopped []readingRow
	for _, a := range answers {
		scores := b.scores[a.ID]
		if len(scores) == 0 {
			continue
		}
		var crossing *int
		if at, ok := crossings[a.ID]; ok {
			crossing = &at
		}
		line := scoreLine{Request: a.ID, Language: a.Language, Crossing: crossing}
		at := map[int]*float64{}
		for _, sc := range scores {
			value := math.Round(10000*float64(sc.Score)) / 10000
			line.Points = append(line.Points, [2]float64{float64(sc.Position), value})
			at[int(sc.Position)] = &value
			chart.Low, chart.High = min(chart.Low, value), max(chart.High, value)
		}
		sort.Slice(line.Points, func(i, j int) bool { return line.Points[i][0] < line.Points[j][0] })
		chart.Series = append(chart.Series, line)
		row := readingRow{Request: a.ID, Crossing: crossing}
		if q := b.requests[a.ID]; q != nil {
			row.PromptTokens = int(q.PromptTokens)
		}
		for p, text := range b.texts(a.ID) {
			row.Tokens = append(row.Tokens, scoredToken{Text: text, Score: at[p]})
		}
		if crossing != nil {
			reading = append(reading, row)
		} else {
			unstopped = append(unstopped, row)
		}
	}
	// Half of the room shows what was stopped, the other half what was not.
	reading = reading[:min(len(reading), readRequests/2)]
	return chart, append(reading, unstopped[:min(len(unstopped), readRequests-len(reading))]...)
}

func (b *readback) rows(r *Report, answers []answer) []requestRow {
	stopped := map[string]bool{}
	for _, s := range r.Stopped {
		stopped[s.Request] = true
	}
	out := make([]requestRow, 0, len(answers))
	for _, a := range answers {
		row := requestRow{ID: a.ID, Language: a.Language, Reason: a.Reason, Stopped: stopped[a.ID], Text: a.Prompt + a.Text}
		if q := b.requests[a.ID]; q != nil {
			row.PromptTokens, row.GeneratedTokens = int(q.PromptTokens), int(q.GeneratedTokens)
		}
		out = append(out, row)
	}
	return out
}

func folderBytes(dir string) (int64, error) {
	var n int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("measure the dataset: %w", err)
	}
	return n, nil
}

// metric reads one number of the engine's metrics.
func (c *client) metric(ctx context.Context, name string) (float64, error) {
	text, err := c.get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(text), "\n") {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("read the engine's metrics: %s is not among them", name)
}
