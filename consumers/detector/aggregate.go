package detector

import (
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
)

// Bounds of an aggregation: its state lives once per request and detector.
const (
	maxWindow = 1024 // tokens
	maxTop    = 64
)

// Aggregation turns the scores of single tokens into one that a threshold can
// judge. Whatever was not seen yet counts as 0, the logit of an even chance, so
// that a first token alone decides nothing.
type Aggregation struct {
	Kind     string  `yaml:"kind"`                // ema | mean | max_rolling_mean | topk | cusum
	HalfLife float64 `yaml:"half_life,omitempty"` // ema: tokens after which a score weighs half
	Alpha    float64 `yaml:"alpha,omitempty"`     // ema: weight of the newest score, instead of half_life
	Window   int     `yaml:"window,omitempty"`    // mean, max_rolling_mean: tokens; topk: tokens per window [1]
	K        int     `yaml:"k,omitempty"`         // topk: windows
	Drift    float64 `yaml:"drift,omitempty"`     // cusum: what each token takes away
}

// aggregator is the state of one request.
type aggregator interface {
	// add takes the score of the next token and returns the aggregate so far.
	add(score float64) float64
}

// aggregationKinds is the one list of what a bundle may name: how its parameters
// are checked, how they are written on a command line, and what state it needs.
var aggregationKinds = map[string]struct {
	form  string // on a command line
	parse func(a *Aggregation, parameters []float64)
	check func(a Aggregation) string // what is wrong, or ""
	start func(a Aggregation) aggregator
}{
	"ema": {"ema[:half-life in tokens]",
		func(a *Aggregation, p []float64) { a.HalfLife = parameter(p, 0, 8) },
		func(a Aggregation) string {
			if a.HalfLife > 0 == (a.Alpha > 0) || a.HalfLife < 0 || a.Alpha < 0 || a.Alpha > 1 {
				return "want either half_life above 0 tokens or alpha above 0 and up to 1"
			}
			return ""
		},
		func(a Aggregation) aggregator {
			if a.Alpha > 0 {
				return &ema{alpha: a.Alpha}
			}
			return &ema{alpha: 1 - math.Exp2(-1/a.HalfLife)}
		}},
	"mean": {"mean[:tokens]",
		func(a *Aggregation, p []float64) { a.Window = int(parameter(p, 0, 16)) },
		checkWindow,
		func(a Aggregation) aggregator { return newRolling(a.Window) }},
	"max_rolling_mean": {"max_rolling_mean[:tokens]",
		func(a *Aggregation, p []float64) { a.Window = int(parameter(p, 0, 10)) },
		checkWindow,
		func(a Aggregation) aggregator { return &maxRolling{mean: newRolling(a.Window)} }},
	"topk": {"topk[:windows[,tokens per window]]",
		func(a *Aggregation, p []float64) { a.K, a.Window = int(parameter(p, 0, 5)), int(parameter(p, 1, 1)) },
		func(a Aggregation) string {
			if a.K < 1 || a.K > maxTop {
				return fmt.Sprintf("k is %d; want 1 to %d windows", a.K, maxTop)
			}
			return checkWindow(a)
		},
		func(a Aggregation) aggregator { return &topk{window: a.Window, best: make([]float64, a.K)} }},
	"cusum": {"cusum[:drift]",
		func(a *Aggregation, p []float64) { a.Drift = parameter(p, 0, 0.5) },
		func(a Aggregation) string {
			if a.Drift < 0 || math.IsNaN(a.Drift) || math.IsInf(a.Drift, 0) {
				return "drift must be 0 or more"
			}
			return ""
		},
		func(a Aggregation) aggregator { return &cusum{drift: a.Drift} }},
}

func parameter(given []float64, i int, otherwise float64) float64 {
	if i < len(given) {
		return given[i]
	}
	return otherwise
}

func checkWindow(a Aggregation) string {
	if a.Window < 1 || a.Window > maxWindow {
		return fmt.Sprintf("window is %d; want 1 to %d tokens", a.Window, maxWindow)
	}
	return ""
}

// ParseAggregation reads what a command line says, like ema, ema:8, mean:16,
// max_rolling_mean:10, topk:5,16 or cusum:0.5.
func ParseAggregation(text string) (Aggregation, error) {
	name, rest, given := strings.Cut(text, ":")
	kind, ok := aggregationKinds[name]
	if !ok {
		return Aggregation{}, fmt.Errorf("aggregation %q is unknown; write one of %s", text, aggregationForms())
	}
	var parameters []float64
	if given {
		for _, word := range strings.Split(rest, ",") {
			v, err := strconv.ParseFloat(word, 64)
			if err != nil || math.Abs(v) > 1e9 {
				return Aggregation{}, fmt.Errorf("aggregation %q: %q is no number; write %s", text, word, kind.form)
			}
			parameters = append(parameters, v)
		}
	}
	a := Aggregation{Kind: name}
	kind.parse(&a, parameters)
	if problem := kind.check(a); problem != "" {
		return Aggregation{}, fmt.Errorf("aggregation %q: %s; write %s", text, problem, kind.form)
	}
	return a, nil
}

// String is the form that ParseAggregation reads; alpha is written as the half-life
// it stands for.
func (a Aggregation) String() string {
	switch a.Kind {
	case "ema":
		halfLife := a.HalfLife
		if a.Alpha > 0 {
			halfLife = -1 / math.Log2(1-a.Alpha)
		}
		return "ema:" + strconv.FormatFloat(halfLife, 'g', -1, 64)
	case "topk":
		return fmt.Sprintf("topk:%d,%d", a.K, a.Window)
	case "cusum":
		return "cusum:" + strconv.FormatFloat(a.Drift, 'g', -1, 64)
	}
	return fmt.Sprintf("%s:%d", a.Kind, a.Window)
}

func aggregationForms() string {
	var forms []string
	for _, kind := range aggregationKinds {
		forms = append(forms, kind.form)
	}
	sort.Strings(forms)
	return strings.Join(forms, ", ")
}

// problem says what is wrong with a, or "".
func (a Aggregation) problem() string {
	kind, ok := aggregationKinds[a.Kind]
	if !ok {
		return fmt.Sprintf("kind %q is unknown; want ema, mean, max_rolling_mean, topk or cusum", clip(a.Kind))
	}
	return kind.check(a)
}

// start makes the state of a request. a was checked.
func (a Aggregation) start() aggregator { return aggregationKinds[a.Kind].start(a) }

// ema is s += alpha (x - s), from 0.
type ema struct{ alpha, s float64 }

func (e *ema) add(x float64) float64 {
	e.s += e.alpha * (x - e.s)
	return e.s
}

// rolling is the mean of the last scores. It sums the window anew for each token:
// a running sum would keep the rounding errors of scores that have left it.
type rolling struct {
	last []float64
	at   int
}

func newRolling(window int) *rolling { return &rolling{last: make([]float64, window)} }

func (r *rolling) add(x float64) float64 {
	r.last[r.at] = x
	r.at = (r.at + 1) % len(r.last)
	sum := 0.0
	for _, v := range r.last {
		sum += v
	}
	return sum / float64(len(r.last))
}

// maxRolling is the largest rolling mean so far, from 0.
type maxRolling struct {
	mean *rolling
	most float64
}

func (m *maxRolling) add(x float64) float64 {
	m.most = max(m.most, m.mean.add(x))
	return m.most
}

// topk is the mean of the k largest means of consecutive windows so far. A window
// counts when it is full.
type topk struct {
	window, in int
	sum        float64
	best       []float64 // ascending
}

func (t *topk) add(x float64) float64 {
	t.sum += x
	if t.in++; t.in == t.window {
		mean := t.sum / float64(t.window)
		t.in, t.sum = 0, 0
		if mean > t.best[0] {
			i := sort.SearchFloat64s(t.best, mean)
			copy(t.best, t.best[1:i])
			t.best[i-1] = mean
		}
	}
	sum := 0.0
	for _, v := range t.best {
		sum += v
	}
	return sum / float64(len(t.best))
}

// cusum is Page's cumulative sum: s = max(0, s + x - drift), from 0.
type cusum struct{ drift, s float64 }

func (c *cusum) add(x float64) float64 {
	c.s = max(0, c.s+x-c.drift)
	return c.s
}
