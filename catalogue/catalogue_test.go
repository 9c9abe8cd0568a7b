package catalogue

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestTheMetricsPageIsThatOfTheCatalogue(t *testing.T) {
	text, err := os.ReadFile("../METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != Page() {
		t.Error("METRICS.md is not what the catalogue says: run go generate ./catalogue")
	}
}

// stateNames end in no unit, since they hold no quantity: 1 or 0, or a version.
var stateNames = map[string]bool{"sonde_bus_connected": true, "sonde_bus_store_failed": true,
	"sonde_engine_ring_attached": true, "sonde_detector_ready": true, "sonde_detector_breaker_open": true,
	"sonde_lake_version": true, "sonde_spool_failed": true, "sonde_nvml_throttle_reasons": true}

// units of gauges that count things.
var units = regexp.MustCompile(`_(bytes|seconds?|ratio|hertz|watts|celsius|messages|rows|records|descriptors|files|` +
	`ranks|chains|samples|members|partitions|sequences_max)$`)

func TestEveryMetricFollowsTheRulesOfNames(t *testing.T) {
	seen := map[string]bool{}
	name := regexp.MustCompile(`^sonde_(bus|engine|detector|materializer|lake|producer|spool|group|nvml)_[a-z0-9_]+$`)
	label := regexp.MustCompile(`^[a-z]+$`)
	for _, s := range Sections {
		if len(s.Metrics) == 0 {
			t.Errorf("section %s is empty", s.Name)
		}
		for _, m := range s.Metrics {
			if seen[m.Name] {
				t.Errorf("%s stands in the catalogue twice", m.Name)
			}
			seen[m.Name] = true
			if !name.MatchString(m.Name) || strings.HasSuffix(m.Name, "_total") != (m.Type == counter) {
				t.Errorf("%s (%s) is no good name: sonde_PACKAGE_..., and _total at the end of counters", m.Name, m.Type)
			}
			if m.Type != counter && !stateNames[m.Name] && !units.MatchString(m.Name) {
				t.Errorf("%s does not end in a unit", m.Name)
			}
			if m.Help == "" || strings.HasSuffix(m.Help, ".") || strings.ContainsAny(m.Help, "|\n") {
				t.Errorf("%s: meaning %q; want a phrase without a full stop", m.Name, m.Help)
			}
			for _, l := range m.Labels {
				if !label.MatchString(l.Name) {
					t.Errorf("%s: label %q", m.Name, l.Name)
				}
			}
		}
	}
	for n := range stateNames {
		if !seen[n] {
			t.Errorf("%s is excused from units and does not exist", n)
		}
	}
}

func TestChecksSayWhatToDo(t *testing.T) {
	for _, c := range Checks {
		if CheckOf(c.Part) != c || c.Holds == "" || c.Do == "" || strings.HasSuffix(c.Do, ".") {
			t.Errorf("check %+v", c)
		}
	}
}

func TestWhatIsNotInTheCatalogueCannotBeMade(t *testing.T) {
	for what, make := range map[string]func(){
		"unknown name":         func() { NewCounter("sonde_bus_nonsense_total") },
		"gauge as a counter":   func() { NewCounter("sonde_bus_connected") },
		"labels forgotten":     func() { NewCounter("sonde_bus_requests_total") },
		"labels that are none": func() { NewCounterVec("sonde_bus_connections_total") },
		"counter as a gauge":   func() { NewGauge("sonde_bus_connections_total") },
		"histogram as series":  func() { NewSeries("sonde_engine_step_seconds") },
		"gauge as a histogram": func() { NewHistogram("sonde_bus_connected", nil) },
		"unknown check":        func() { CheckOf("nonsense") },
	} {
		func() {
			defer func() {
				if text, _ := recover().(string); !strings.HasPrefix(text, "BUG: ") {
					t.Errorf("%s: %q", what, text)
				}
			}()
			make()
		}()
	}
}

func TestMetricsAreMadeAsTheCatalogueSays(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	vec := NewCounterVec("sonde_bus_requests_total")
	vec.WithLabelValues("answered").Inc()
	hist := NewHistogramVec("sonde_detector_tensor_to_verdict_seconds", []float64{1, 2})
	hist.WithLabelValues("german").Observe(1.5)
	ready := NewGaugeVec("sonde_detector_ready")
	ready.WithLabelValues("german").Set(1)
	reg.MustRegister(vec, hist, ready, NewCounter("sonde_bus_connections_total"), NewGauge("sonde_bus_connected"),
		NewHistogram("sonde_engine_step_seconds", []float64{1}),
		NewGaugeFunc("sonde_materializer_oldest_uncommitted_seconds", func() float64 { return 7 }))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) != 7 {
		t.Errorf("%d families, want 7", len(families))
	}
	for _, f := range families {
		m := lookup(f.GetName())
		if f.GetHelp() != m.Help || strings.ToLower(f.GetType().String()) != string(m.Type) ||
			len(f.GetMetric()[0].GetLabel()) != len(m.Labels) {
			t.Errorf("%s is exported as %v", m.Name, f)
		}
	}
}
