package producer

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/ring2"
)

// value adds up the series of a metric that have a label value, or all of them.
func value(t *testing.T, reg *prometheus.Registry, name, label string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			has := label == ""
			for _, l := range m.Label {
				has = has || l.GetValue() == label
			}
			if f.GetName() == name && has {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func TestMetricsSayWhatTheLedgerSays(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := newWorld(t, Options{Policy: everything(), Registerer: reg, DeadLetterDir: t.TempDir()})
	w.bus.OnPublish(refuse(".vectors.logits"))
	s := newFakeSession()
	s.config.EngineInstance = "engine \xff" // outside input
	e := newEngine(s, testEntries)
	done := w.attach(s)
	e.open(1, "acme", 1)
	e.step(decode(1, 0))
	e.dropped(ring2.ReasonNoSpace, decode(1, 1))
	if ranks := value(t, reg, "sonde_producer_ranks", ""); ranks > 1 {
		t.Errorf("%v ranks", ranks)
	}
	e.bye(w, done)
	for _, c := range []struct {
		name, label string
		want        float64
	}{
		{"sonde_producer_rows_total", "acknowledged", 3}, {"sonde_producer_rows_total", "dead_lettered", 1},
		{"sonde_producer_rows_total", "no_space", 4}, {"sonde_producer_captured_rows", "", 8},
		{"sonde_producer_inflight_rows", "", 0}, {"sonde_producer_attached_total", "", 1},
		{"sonde_producer_steps_total", "", 2}, {"sonde_producer_epochs_closed_total", "", 1},
		{"sonde_producer_refused_messages_total", "vectors", 1}, {"sonde_producer_dead_letter_files", "", 1},
		{"sonde_producer_ranks", "", 0},
	} {
		if got := value(t, reg, c.name, c.label); got != c.want {
			t.Errorf("%s{%s} is %v, want %v", c.name, c.label, got, c.want)
		}
	}
	if value(t, reg, "sonde_producer_message_bytes_total", "vectors") < 100 {
		t.Error("no bytes were counted")
	}
	if _, err := New(Options{Bus: w.bus, Policy: everything(), Registerer: reg}); err == nil {
		t.Error("metrics registered twice")
	}
}

func TestOptionsThatMakeNoSenseSaySo(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	for name, o := range map[string]Options{
		"no bus":       {},
		"batch":        {Bus: w.bus, BatchBytes: 1 << 30},
		"linger":       {Bus: w.bus, LingerMS: -1},
		"inflight":     {Bus: w.bus, InflightBytes: -1},
		"policy":       {Bus: w.bus, Policy: Policy{BudgetBytesPerS: -1}},
		"dead letters": {Bus: w.bus, DeadLetterDir: "/dev/null/x"},
	} {
		if a, err := New(o); err == nil {
			t.Errorf("%s: %v", name, a)
		}
	}
}

func TestTooManyRanksAreRefused(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	for i := range maxRanks {
		w.agent.ranks[&rank{own: &epoch{id: uint64(i)}}] = true
	}
	s := newFakeSession()
	w.agent.Attach(deadline(t), s)
	if !s.closed {
		t.Error("one more rank than the bound is attached")
	}
	clear(w.agent.ranks)
}
