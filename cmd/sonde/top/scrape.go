package top

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"sort"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Bounds of what is read from a process, which may be anything that answers.
const (
	maxMetricsBytes = 16 << 20
	maxReadyBytes   = 64 << 10
	maxSentences    = 16
	maxValue        = 1e18 // larger ones, and those that are no number, are left out
	answerTimeout   = 2 * time.Second
)

// sample is one series at one moment.
type sample struct {
	labels map[string]string
	value  float64
	hist   []bucket // of a histogram: cumulative, ascending
}

type bucket struct{ upper, count float64 }

// scrape is what one process said at one moment.
type scrape struct {
	at       time.Time
	families map[string][]sample
	missing  []string // sentences of /readyz; none: ready
	healthy  bool     // it has a /readyz
}

// Base checks the address of a process and takes what users add to it away.
func Base(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("--url %q is no address; write one like http://127.0.0.1:9464", clip(address))
	}
	u.Path = strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), "/metrics")
	return u.String(), nil
}

// read asks a process for its metrics and its readiness.
func read(ctx context.Context, client *http.Client, base string) (*scrape, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	s := &scrape{}
	err := get(ctx, client, base+"/metrics", func(code int, body io.Reader) (err error) {
		if code != http.StatusOK {
			return fmt.Errorf("it answers %d; is it sonde run?", code)
		}
		s.at = time.Now()
		s.families, err = parse(body)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, get(ctx, client, base+"/readyz", func(code int, body io.Reader) error {
		if code != http.StatusOK && code != http.StatusServiceUnavailable { // an engine has none
			return nil
		}
		s.healthy = true
		if code == http.StatusOK {
			return nil
		}
		text, err := io.ReadAll(io.LimitReader(body, maxReadyBytes))
		s.missing = sentences(string(text))
		return err
	})
}

func get(ctx context.Context, client *http.Client, address string, use func(code int, body io.Reader) error) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return use(response.StatusCode, response.Body)
}

func sentences(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && len(out) < maxSentences {
			out = append(out, clip(line))
		}
	}
	if len(out) == 0 {
		out = []string{"it does not say why"}
	}
	return out
}

// parse reads the text format. Values that are no sensible numbers are left out.
func parse(text io.Reader) (map[string][]sample, error) {
	limited := &io.LimitedReader{R: text, N: maxMetricsBytes + 1}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(limited)
	if limited.N == 0 {
		return nil, fmt.Errorf("its metrics have more than %d MiB; is it sonde run?", maxMetricsBytes>>20)
	}
	if err != nil {
		return nil, fmt.Errorf("its metrics cannot be read: %w; is it sonde run?", err)
	}
	out := map[string][]sample{}
	for name, family := range families {
		for _, m := range family.GetMetric() {
			s := sample{labels: map[string]string{}}
			for _, l := range m.GetLabel() {
				s.labels[l.GetName()] = l.GetValue()
			}
			switch {
			case m.Counter != nil:
				s.value = m.GetCounter().GetValue()
			case m.Gauge != nil:
				s.value = m.GetGauge().GetValue()
			case m.Untyped != nil:
				s.value = m.GetUntyped().GetValue()
			case m.Histogram != nil:
				h := m.GetHistogram()
				for _, b := range h.GetBucket() {
					s.hist = append(s.hist, bucket{b.GetUpperBound(), float64(b.GetCumulativeCount())})
				}
				sort.Slice(s.hist, func(i, k int) bool { return s.hist[i].upper < s.hist[k].upper })
				s.value = float64(h.GetSampleCount())
			default:
				continue
			}
			if math.Abs(s.value) <= maxValue {
				out[name] = append(out[name], s)
			}
		}
	}
	return out, nil
}

// matches says whether a series has labels, given as name, value, name, value.
func (s *sample) matches(labels []string) bool {
	for i := 0; i < len(labels); i += 2 {
		if s.labels[labels[i]] != labels[i+1] {
			return false
		}
	}
	return true
}

// sum adds up the series with some labels.
func (s *scrape) sum(name string, labels ...string) float64 {
	total := 0.0
	for _, v := range s.families[name] {
		if v.matches(labels) {
			total += v.value
		}
	}
	return total
}

func (s *scrape) has(name string) bool { return len(s.families[name]) > 0 }

// by adds up the series with some labels for each value of another label.
func (s *scrape) by(label, name string, labels ...string) map[string]float64 {
	out := map[string]float64{}
	for _, v := range s.families[name] {
		if v.matches(labels) {
			out[v.labels[label]] += v.value
		}
	}
	return out
}

// split gives each pair of values of two labels its own series. Looking for each in
// all of them would take a minute with the series of a hostile process.
func (s *scrape) split(a, b string) map[[2]string]*scrape {
	out := map[[2]string]*scrape{}
	for name, samples := range s.families {
		for _, v := range samples {
			key := [2]string{v.labels[a], v.labels[b]}
			part := out[key]
			if part == nil {
				part = &scrape{at: s.at, families: map[string][]sample{}}
				out[key] = part
			}
			part.families[name] = append(part.families[name], v)
		}
	}
	return out
}

// split does so with both ends, for the pairs that there are now.
func (w window) split(a, b string) map[[2]string]window {
	old, out := w.old.split(a, b), map[[2]string]window{}
	for key, now := range w.now.split(a, b) {
		before := old[key]
		if before == nil {
			before = &scrape{at: w.old.at}
		}
		out[key] = window{old: before, now: now}
	}
	return out
}

// window is what one process said at the ends of a stretch of time.
type window struct{ old, now *scrape }

// rate is how much a counter rose in a second. A process that started anew counts
// from zero.
func (w window) rate(name string, labels ...string) float64 {
	seconds := w.now.at.Sub(w.old.at).Seconds()
	if seconds <= 0 {
		return 0
	}
	before, after := w.old.sum(name, labels...), w.now.sum(name, labels...)
	if after < before {
		before = 0
	}
	return max(0, after-before) / seconds
}

// quantile estimates that of a histogram in the window, or, when nothing came in it,
// since the process started. ok is false when nothing ever came. The last bucket has
// no end, so its start is given.
func (w window) quantile(q float64, name string) (value float64, ok bool) {
	all := w.now.buckets(name)
	recent := subtract(all, w.old.buckets(name))
	if v, ok := quantile(q, recent); ok {
		return v, true
	}
	return quantile(q, all)
}

// buckets adds up the buckets of all series of a histogram.
func (s *scrape) buckets(name string) []bucket {
	counts := map[float64]float64{}
	for _, v := range s.families[name] {
		for _, b := range v.hist {
			counts[b.upper] += b.count
		}
	}
	out := make([]bucket, 0, len(counts))
	for upper, count := range counts {
		if !math.IsNaN(upper) {
			out = append(out, bucket{upper, count})
		}
	}
	sort.Slice(out, func(i, k int) bool { return out[i].upper < out[k].upper })
	return out
}

func subtract(all, old []bucket) []bucket {
	before := map[float64]float64{}
	for _, b := range old {
		before[b.upper] = b.count
	}
	out := make([]bucket, len(all))
	for i, b := range all {
		out[i] = bucket{b.upper, b.count - before[b.upper]}
		if out[i].count < 0 { // the process started anew
			return all
		}
	}
	return out
}

func quantile(q float64, buckets []bucket) (float64, bool) {
	if len(buckets) == 0 || buckets[len(buckets)-1].count <= 0 {
		return 0, false
	}
	want := q * buckets[len(buckets)-1].count
	from, below := 0.0, 0.0
	for _, b := range buckets {
		if b.count >= want {
			if math.IsInf(b.upper, 1) || b.count <= below {
				return from, true
			}
			return from + (b.upper-from)*(want-below)/(b.count-below), true
		}
		from, below = b.upper, b.count
	}
	return from, true
}

// clip keeps what others wrote short.
func clip(s string) string {
	const most = 300
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
