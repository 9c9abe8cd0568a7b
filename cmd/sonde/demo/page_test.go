package demo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sample makes a report and its series of the size of a real run.
func sample() (*Report, *series) {
	rng := rand.New(rand.NewPCG(1, 2))
	r := &Report{Requests: 40, Tokens: 12345, LedgerUnit: "rows", Stored: 123456, RequestsInOneStep: 24, Seconds: 30.4,
		GeneratedTokens: 11000, TokensPerS: 406, DatasetBytes: 131_400_000, Model: "trilingual",
		ModelWeightsDigest: "sha256:0123456789abcdef0123456789abcdef", Hooks: []string{"embed", "resid_post", "token_ids"},
		Ledger:   Ledger{Captured: 123456, Acknowledged: 123456},
		BitExact: BitExact{Checked: 123456}, TensorToVerdictMS: Percentiles{P50: 2.1, P99: 8.8, Samples: 5000},
		Detector: &DetectorReport{Bundle: "detectors/german", Name: "german", Mode: "enforce", Threshold: 0.9}}
	s := &series{Ledger: r.Ledger, Stored: r.Stored, Scores: &scoreChart{Threshold: 0.9, Low: -3, High: 4}}
	s.StoredBy = []part{{"resid_post", 60000}, {"token_ids", 12345}, {"mlp_out", 20000}, {"attn_out", 20000}, {"q", 11111}}
	var latencies []float64
	for i := range 5000 {
		latencies = append(latencies, 1+math.Exp(rng.NormFloat64()*0.6)+float64(i%50)/49)
	}
	s.Latency, r.TensorToVerdictMS = latencyHistogram(latencies)
	for i := range 40 {
		language := []string{"en", "fr", "de"}[i%3]
		row := requestRow{ID: fmt.Sprintf("demo-%02d", i+1), Language: language, PromptTokens: 12, GeneratedTokens: 280,
			Reason: "length", Text: `A text with <script>alert("x")</script> & "quotes" </script>.`}
		line := scoreLine{Request: row.ID, Language: language}
		level := -1.5
		for p := range 290 {
			if language == "de" {
				level += 0.04
			}
			score := level + rng.NormFloat64()*0.25
			line.Points = append(line.Points, [2]float64{float64(p), score})
			if score >= 0.9 && line.Crossing == nil {
				crossing := p
				line.Crossing, row.Stopped, row.Reason, row.GeneratedTokens = &crossing, true, "detector", p-8
				r.Stopped = append(r.Stopped, Stopped{row.ID, p, 3})
				r.Alerts = append(r.Alerts, Alert{fmt.Sprintf("alert-%d", i), row.ID, p, score})
			}
			if line.Crossing != nil && p > *line.Crossing+3 {
				break
			}
		}
		s.Requests, s.Scores.Series = append(s.Requests, row), append(s.Scores.Series, line)
		if i < 6 {
			s.addSampleText(row, line, rng)
		}
	}
	for i := range 31 {
		s.Throughput = append(s.Throughput, rate{float64(i), 380 + 60*rng.Float64(), 3800 + 900*rng.Float64()})
	}
	return r, s
}

func (s *series) addSampleText(row requestRow, line scoreLine, rng *rand.Rand) {
	reading := readingRow{Request: row.ID, PromptTokens: 12, Crossing: line.Crossing}
	heat := heatMap{Request: row.ID, Hooks: map[string][][]*float64{}}
	words := strings.Split("Der Speicher der Maschine wird beim Start des Programms gelesen und geprüft", " ")
	for i, p := range line.Points {
		score := p[1]
		text := " " + words[i%len(words)]
		reading.Tokens = append(reading.Tokens, scoredToken{text, &score})
		if i < 90 {
			heat.Tokens = append(heat.Tokens, text)
		}
	}
	for _, hook := range []string{"resid_post", "attn_out", "mlp_out"} {
		for layer := range 6 {
			var row []*float64
			for range heat.Tokens {
				norm := float64(2+layer*3) * (1 + 0.3*rng.Float64())
				row = append(row, &norm)
			}
			heat.Hooks[hook] = append(heat.Hooks[hook], row)
		}
	}
	s.Reading, s.Heat = append(s.Reading, reading), append(s.Heat, heat)
}

// The page holds everything itself, and text from a model cannot leave its place in it.
func TestPageIsSelfContained(t *testing.T) {
	r, s := sample()
	html, err := page(r, s, []string{"sonde lake requests data/demo/lake"})
	if err != nil {
		t.Fatal(err)
	}
	if dir := os.Getenv("SONDE_SAMPLE_REPORT"); dir != "" {
		if err := writeFile(filepath.Join(dir, "report.html"), html); err != nil {
			t.Fatal(err)
		}
	}
	ours := bytes.ReplaceAll(html, []byte(chartLibrary), nil)
	for _, forbidden := range []string{"src=\"", "href=\"http", "@import", "url(", "<script>alert"} {
		if bytes.Contains(ours, []byte(forbidden)) {
			t.Errorf("report.html holds %q", forbidden)
		}
	}
	if n := bytes.Count(ours, []byte("</script>")); n != 3 {
		t.Errorf("report.html closes %d scripts; want 3: text of a request broke out of its place", n)
	}
	for _, want := range []string{"captured 123,456 = acknowledged 123,456", "Every promise kept", "demo-40"} {
		if !bytes.Contains(ours, []byte(want)) {
			t.Errorf("report.html lacks %q", want)
		}
	}
}

// report.json has the fields that its readers rely on, with their JSON types.
func TestReportJSONHasItsFields(t *testing.T) {
	r, _ := sample()
	dir := t.TempDir()
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"ledger": {"captured", "acknowledged", "dropped", "aborted", "lost", "dead_lettered",
		"in_flight"}, "bit_exact": {"checked", "mismatched"}, "tensor_to_verdict_ms": {"p50", "p99"}}
	for object, fields := range want {
		inner, ok := got[object].(map[string]any)
		for _, f := range fields {
			if _, number := inner[f].(float64); !ok || !number {
				t.Errorf("report.json: %s.%s is %v; want a number", object, f, inner[f])
			}
		}
	}
	for list, fields := range map[string][]string{"alerts": {"id", "request", "position", "score"},
		"stopped": {"request", "crossing", "leaked_tokens"}} {
		items, ok := got[list].([]any)
		if !ok || len(items) == 0 {
			t.Fatalf("report.json: %s is %v; want a list", list, got[list])
		}
		for _, f := range fields {
			if items[0].(map[string]any)[f] == nil {
				t.Errorf("report.json: %s[0].%s is missing", list, f)
			}
		}
	}
	if got["ledger_unit"] != "rows" || got["requests"] != 40.0 || got["stored"] != 123456.0 {
		t.Errorf("report.json: ledger_unit %v, requests %v, stored %v", got["ledger_unit"], got["requests"], got["stored"])
	}
}

// Each broken promise is named; a report without one has no failures.
func TestJudgeNamesEachBrokenPromise(t *testing.T) {
	for want, breakIt := range map[string]func(*Report){
		"first law":               func(r *Report) { r.Ledger.Captured++ },
		"second law":              func(r *Report) { r.Stored-- },
		"in_flight is 5":          func(r *Report) { r.Ledger.InFlight = 5; r.Ledger.Captured += 5 },
		"1 of 123456 rows differ": func(r *Report) { r.BitExact.Mismatched = 1 },
		"no row was compared":     func(r *Report) { r.BitExact.Checked = 0 },
		"nothing was captured":    func(r *Report) { r.Ledger, r.Stored = Ledger{}, 0 },
	} {
		r, _ := sample()
		breakIt(r)
		r.judge()
		if text := strings.Join(r.Failures, "\n"); len(r.Failures) != 1 || !strings.Contains(text, want) {
			t.Errorf("want one failure with %q; got %q", want, text)
		}
	}
	r, _ := sample()
	if r.judge(); len(r.Failures) != 0 {
		t.Errorf("a good report failed: %v", r.Failures)
	}
}

func TestQuantilesOfFewSamples(t *testing.T) {
	h, p := latencyHistogram([]float64{4, 1, 3, 2})
	if p.P50 != 2 || p.P99 != 4 || p.Samples != 4 {
		t.Errorf("percentiles of 1 to 4: %+v", p)
	}
	total := 0
	for _, b := range h.Bins {
		total += b.Count
	}
	if total != 4 {
		t.Errorf("the histogram holds %d of 4 samples", total)
	}
}
