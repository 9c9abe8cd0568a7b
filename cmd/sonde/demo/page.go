package demo

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"math"
	"sort"
	"strings"
)

var (
	//go:embed assets/report.html.tmpl
	pageTemplate string
	//go:embed assets/report.css
	pageStyle string
	//go:embed assets/report.js
	pageScript string
	//go:embed assets/echarts.min.js
	chartLibrary string
)

// series is what report.html draws beside the figures of report.json.
type series struct {
	Requests   []requestRow `json:"requests"`
	Ledger     Ledger       `json:"ledger"`
	Stored     uint64       `json:"stored"`
	Pending    uint64       `json:"pending"`
	StoredBy   []part       `json:"stored_by"` // adds up to Stored
	Scores     *scoreChart  `json:"scores"`
	Reading    []readingRow `json:"reading"`
	Heat       []heatMap    `json:"heat"`
	Throughput []rate       `json:"throughput"`
	Latency    *histogram   `json:"latency"`
}

type part struct {
	Name string `json:"name"`
	Rows uint64 `json:"rows"`
}

type requestRow struct {
	ID              string `json:"id"`
	Language        string `json:"language"`
	PromptTokens    int    `json:"prompt_tokens"`
	GeneratedTokens int    `json:"generated_tokens"`
	Reason          string `json:"reason"`
	Stopped         bool   `json:"stopped"`
	Text            string `json:"text"`
}

// scoreChart holds one line per request; a point is (position, score).
type scoreChart struct {
	Threshold float64     `json:"threshold"`
	Low       float64     `json:"low"`
	High      float64     `json:"high"`
	Series    []scoreLine `json:"series"`
}

type scoreLine struct {
	Request  string       `json:"request"`
	Language string       `json:"language"`
	Points   [][2]float64 `json:"points"`
	Crossing *int         `json:"crossing"`
}

// readingRow is the text of one request, token by token, from position First on.
type readingRow struct {
	Request      string        `json:"request"`
	First        int           `json:"first"`
	PromptTokens int           `json:"prompt_tokens"`
	Crossing     *int          `json:"crossing"`
	Tokens       []scoredToken `json:"tokens"`
}

type scoredToken struct {
	Text  string   `json:"text"`
	Score *float64 `json:"score"`
}

// heatMap holds, for each hook, the norm of each layer (outer) and token (inner).
type heatMap struct {
	Request string                  `json:"request"`
	First   int                     `json:"first"`
	Tokens  []string                `json:"tokens"`
	Hooks   map[string][][]*float64 `json:"hooks"`
}

type rate struct {
	Second     float64 `json:"second"`
	TokensPerS float64 `json:"tokens_per_s"`
	RowsPerS   float64 `json:"rows_per_s"`
}

type histogram struct {
	Bins []bin   `json:"bins"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
}

type bin struct {
	From  float64 `json:"from"`
	To    float64 `json:"to"`
	Count int     `json:"count"`
}

type tile struct{ Label, Value, Note string }

// page renders report.html: one file that needs nothing beside it.
func page(r *Report, s *series, commands []string) ([]byte, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode the series of report.html: %w", err)
	}
	tmpl, err := template.New("report").Parse(pageTemplate)
	if err != nil {
		panic("BUG: the report template does not parse: " + err.Error())
	}
	verdict := "Every promise kept"
	if len(r.Failures) > 0 {
		verdict = fmt.Sprintf("%d checks failed", len(r.Failures))
	}
	var out bytes.Buffer
	err = tmpl.Execute(&out, map[string]any{
		"Title": r.Model, "Style": template.CSS(pageStyle), "Script": template.JS(pageScript),
		"Library": template.JS(chartLibrary), "Data": template.JS(data),
		"Headline": fmt.Sprintf("%s rows from inside a running model", group(r.Stored)),
		"Subline": fmt.Sprintf("%s (weights %s), %d requests in English, French and German, %.0f s", r.Model,
			clip(r.ModelWeightsDigest, 19), r.Requests, r.Seconds),
		"Verdict": verdict, "Failures": r.Failures, "Tiles": r.tiles(), "Law": r.Ledger.law(),
		"SecondLaw": fmt.Sprintf("acknowledged %s = stored %s + pending in the consumer %s", group(r.Ledger.Acknowledged),
			group(r.Stored), group(r.Pending)),
		"DetectorLead": r.detectorLead(), "Commands": commands,
		"Footer": "Written by sonde demo. Charts: Apache ECharts 6.1.0, embedded; this page loads nothing from a network.",
	})
	if err != nil {
		return nil, fmt.Errorf("render report.html: %w", err)
	}
	return out.Bytes(), nil
}

func (r *Report) tiles() []tile {
	tiles := []tile{
		{"requests", group(r.Requests), fmt.Sprintf("up to %d in one step", r.RequestsInOneStep)},
		{"tokens", group(r.Tokens), fmt.Sprintf("%.0f per second", r.TokensPerS)},
		{"rows in the dataset", group(r.Stored), fmt.Sprintf("%d hooks, %s", len(r.Hooks), megabytes(r.DatasetBytes))},
		{"compared bit for bit", group(r.BitExact.Checked), fmt.Sprintf("%d differ", r.BitExact.Mismatched)},
	}
	if r.Detector == nil {
		return tiles
	}
	leaked := make([]int, len(r.Stopped))
	for i, s := range r.Stopped {
		leaked[i] = s.LeakedTokens
	}
	note := "no token leaked"
	if len(leaked) > 0 {
		sort.Ints(leaked)
		note = fmt.Sprintf("median %d tokens leaked", leaked[len(leaked)/2])
	}
	return append(tiles,
		tile{"tensor to verdict", fmt.Sprintf("%.1f ms", r.TensorToVerdictMS.P50),
			fmt.Sprintf("p99 %.1f ms", r.TensorToVerdictMS.P99)},
		tile{"requests stopped", group(len(r.Stopped)), note})
}

func (r *Report) detectorLead() string {
	if r.Detector == nil {
		return ""
	}
	return fmt.Sprintf("Detector %s (mode %s) scores every token as it is computed. One line per request; a request "+
		"whose score crosses the threshold is stopped while it runs.", r.Detector.Name, r.Detector.Mode)
}

// latencyHistogram sorts samples (milliseconds) into bins that grow
// geometrically: latencies span decades.
func latencyHistogram(samples []float64) (*histogram, Percentiles) {
	if len(samples) == 0 {
		return nil, Percentiles{}
	}
	sorted := append([]float64(nil), samples...)
	sort.Float64s(sorted)
	p := Percentiles{P50: quantile(sorted, 0.50), P99: quantile(sorted, 0.99), Samples: len(sorted)}
	const bins = 24
	low := math.Max(sorted[0], 0.01)
	high := math.Max(sorted[len(sorted)-1], low*1.5)
	step := math.Pow(high/low, 1.0/bins)
	h := &histogram{Bins: make([]bin, bins), P50: p.P50, P99: p.P99}
	for i := range h.Bins {
		h.Bins[i] = bin{From: low * math.Pow(step, float64(i)), To: low * math.Pow(step, float64(i+1))}
	}
	for _, ms := range sorted {
		i := 0
		if ms > low {
			i = min(int(math.Log(ms/low)/math.Log(step)), bins-1)
		}
		h.Bins[i].Count++
	}
	return h, p
}

// quantile is the smallest sample that at least share q of all samples do not exceed.
func quantile(sorted []float64, q float64) float64 {
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func megabytes(bytes int64) string { return fmt.Sprintf("%.1f MB", float64(bytes)/1e6) }

func clip(text string, runes int) string {
	if r := []rune(text); len(r) > runes {
		return strings.TrimSpace(string(r[:runes])) + "…"
	}
	return text
}
