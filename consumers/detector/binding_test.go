package detector

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/bus"
	"sonde/schema"
)

func counter(t *testing.T, c prometheus.Collector) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || len(families[0].GetMetric()) != 1 {
		t.Fatalf("want one value, got %v: %v", families, err)
	}
	m := families[0].GetMetric()[0]
	return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
}

func TestRowsOfAnotherModelAreNeverScored(t *testing.T) {
	for name, c := range map[string]struct {
		change func(h *schema.Header)
		want   string
	}{
		"other weights":      {func(h *schema.Header) { h.WeightsDigest = "sha256:other" }, `"sha256:other", bound to sha256:abc`},
		"no digest":          {func(h *schema.Header) { h.WeightsDigest = "" }, `"", bound to sha256:abc`},
		"other quantisation": {func(h *schema.Header) { h.Quantisation = "int8" }, `quantisation "int8", bound to none`},
		"other dtype":        {func(h *schema.Header) { h.DType = "i32" }, "dtype i32, bound to f32"},
		"other width":        {func(h *schema.Header) { h.Shape = []int{8} }, "shape [8], bound to 4 elements"},
		"ragged":             {func(h *schema.Header) { h.Ragged = true }, "bound to 4 elements"},
		"sharded":            {func(h *schema.Header) { h.ShardCount = 2 }, "split over 2 ranks"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newDesk(t, ModeAlert, draft())
			e := newEngine(t, testEpoch)
			c.change(&e.header)
			k.feed(e.open(1, "r1", 0))
			k.feed(e.text(1, "r1", 0, 9, 9)...)
			if len(k.scores) != 0 || len(k.alerts()) != 0 {
				t.Errorf("scored %v", k.scores)
			}
			if got := counter(t, k.r.metrics.rows.WithLabelValues("german", "unbound")); got != 2 {
				t.Errorf("%v rows are counted as unbound, want 2", got)
			}
			problems := k.r.Problems()
			if len(problems) != 1 || !strings.Contains(problems[0], c.want) {
				t.Errorf("problems are %q, want %q", problems, c.want)
			}
			if counter(t, k.r.metrics.ready) != 0 {
				t.Error("the detector counts as ready")
			}
			k.r.sweep(time.Now().Add(2 * problemTTL))
			if len(k.r.Problems()) != 0 || counter(t, k.r.metrics.ready) != 1 {
				t.Errorf("long after the last such row the problems are %q", k.r.Problems())
			}
		})
	}
}

// An engine that changes its model in the middle of a chain must not slip through.
func TestAChainIsCheckedWithEachMessage(t *testing.T) {
	k := newDesk(t, ModeAlert, draft())
	e := newEngine(t, testEpoch)
	k.feed(e.open(1, "r1", 0))
	k.feed(e.text(1, "r1", 0, 0)...)
	e.header.WeightsDigest = "sha256:other"
	k.feed(e.text(1, "r1", 1, 9, 9)...)
	if len(k.scores) != 1 {
		t.Errorf("scored %v", k.positions())
	}
}

func TestAnyMatchesEveryModel(t *testing.T) {
	d := draft()
	d.Manifest.Binding.ModelWeights, d.Manifest.Binding.Quantisation = Any, Any
	k := newDesk(t, ModeAlert, d)
	e := newEngine(t, testEpoch)
	e.header.WeightsDigest, e.header.Quantisation = "x", "int4"
	k.feed(e.open(1, "r1", 0))
	k.feed(e.text(1, "r1", 0, 9)...)
	if len(k.scores) != 1 {
		t.Errorf("scored %v", k.positions())
	}
}

func TestAdaptersAreBoundByRequest(t *testing.T) {
	k := newDesk(t, ModeAlert, draft()) // adapter none
	e := newEngine(t, testEpoch)
	tuned := e.request(schema.RequestRow{Event: schema.EventOpen, Number: 1, Request: "tuned", Adapter: "lora"})
	k.feed(tuned, e.open(2, "plain", 0))
	for number, request := range map[uint64]string{1: "tuned", 2: "plain", 3: "unopened"} {
		k.feed(e.text(number, request, 0, 9)...)
	}
	if len(k.scores) != 1 || k.scores[0].Request != "plain" {
		t.Errorf("scored %+v", k.scores)
	}
	for _, result := range []string{"other_adapter", "unopened"} {
		if got := counter(t, k.r.metrics.rows.WithLabelValues("german", result)); got != 1 {
			t.Errorf("%v rows are counted as %s, want 1", got, result)
		}
	}
}

func TestOtherHooksAndLayersAreNotRead(t *testing.T) {
	k := newDesk(t, ModeAlert, draft())
	e := newEngine(t, testEpoch)
	k.feed(e.open(1, "r1", 0))
	e.header.Layer = 3
	k.feed(e.text(1, "r1", 0, 9)...)
	e.header.Hook, e.header.Layer = "resid_pre", 2
	k.feed(e.text(1, "r1", 1, 9)...)
	if len(k.scores) != 0 || len(k.r.Problems()) != 0 {
		t.Errorf("scored %v, problems %q", k.positions(), k.r.Problems())
	}
}

// Requests run and no row of the hook arrives: the hook is not attached, or the
// policy filters it. Silence must not look like safety.
func TestADetectorThatSeesNothingSaysSo(t *testing.T) {
	k := newDesk(t, ModeAlert, draft())
	e := newEngine(t, testEpoch)
	for number := range uint64(unseenInARow) {
		request := fmt.Sprint("r", number)
		k.feed(e.open(number, request, 3), e.end(number, request, 3, 10))
		if len(k.r.Problems()) != 0 {
			t.Fatalf("after %d requests, before their rows had time to come: %q", number+1, k.r.Problems())
		}
	}
	k.r.sweep(time.Now().Add(2 * endedTTL))
	problems := k.r.Problems()
	if len(problems) != 1 || !strings.Contains(problems[0], "no row of resid_post layer 2") {
		t.Fatalf("problems are %q", problems)
	}
	k.feed(e.open(9, "r9", 0))
	k.feed(e.text(9, "r9", 0, 0)...)
	for number := range uint64(unseenInARow) { // a policy that samples leaves out some of them
		k.feed(e.open(20+number, "left out", 3), e.end(20+number, "left out", 3, 10))
	}
	k.r.sweep(time.Now().Add(endedTTL))
	if len(k.r.Problems()) != 0 || counter(t, k.r.metrics.ready) != 1 {
		t.Errorf("a row arrived and the problems are %q", k.r.Problems())
	}
}

func TestForgedAndUnreadableMessagesAreCounted(t *testing.T) {
	k := newDesk(t, ModeAlert, draft())
	e := newEngine(t, testEpoch)
	k.feed(e.open(1, "r1", 0))
	forged := e.text(1, "r1", 0, 9)[0]
	forged.Subject = strings.Replace(forged.Subject, "acme", "evil", 1)
	k.feed(forged, bus.Delivery{Subject: "sonde.v1.acme.llm.0.vectors.resid_post.2", Data: []byte("no Arrow")},
		bus.Delivery{})
	if len(k.scores) != 0 {
		t.Errorf("scored %v", k.positions())
	}
	if got := counter(t, k.r.metrics.stream.WithLabelValues("forged")); got != 1 {
		t.Errorf("%v forged messages, want 1", got)
	}
	if got := counter(t, k.r.metrics.stream.WithLabelValues("undecodable")); got != 2 {
		t.Errorf("%v undecodable messages, want 2", got)
	}
}

// A tenant that names another's epoch and number reaches only its own state.
func TestTenantsDoNotShareState(t *testing.T) {
	k := newDesk(t, ModeAlert, draft())
	a, b := newEngine(t, testEpoch), newEngine(t, testEpoch)
	b.header.Tenant = "other"
	k.feed(a.open(1, "r1", 0), b.open(1, "r1", 0))
	k.feed(b.text(1, "r1", 0, 9, 9)...)
	k.feed(a.text(1, "r1", 0, 0, 0)...)
	if len(k.scores) != 4 {
		t.Fatalf("scored %v", k.positions())
	}
	if last := k.scores[3]; last.Score != 0 {
		t.Errorf("the score of one tenant reached another: %+v", last)
	}
}

func TestStateIsBounded(t *testing.T) {
	k := newDesk(t, ModeAlert, draft())
	h := &newEngine(t, testEpoch).header
	now := time.Now()
	for number := range uint64(maxSamples + 100) {
		k.r.event(k.r.parts[0], h, schema.RequestRow{Event: schema.EventOpen, Number: number, Request: "r"}, now)
	}
	if n := k.r.open.len() + k.r.ended.len(); n != maxSamples {
		t.Errorf("%d samples are held, want %d", n, maxSamples)
	}
	if got := counter(t, k.r.metrics.evictions.WithLabelValues("full")); got != 100 {
		t.Errorf("%v evictions are counted, want 100", got)
	}
	if _, ok := k.r.open.get(sampleKey{"acme", testEpoch, 0}, now); ok {
		t.Error("the idlest sample is still there")
	}
	for epoch := range uint64(maxChains + 10) {
		e := *h
		e.Kind, e.Epoch = schema.KindVectors, epoch
		k.r.chainOf(k.r.parts[0], &e, now)
	}
	if n := k.r.chains.len(); n != maxChains {
		t.Errorf("%d chains are held, want %d", n, maxChains)
	}
	k.r.event(k.r.parts[0], h, schema.RequestRow{Event: schema.EventEnd, Number: maxSamples}, now)
	k.r.sweep(now.Add(endedTTL))
	if got := counter(t, k.r.metrics.evictions.WithLabelValues("ended")); got != 1 {
		t.Errorf("%v ended samples were forgotten, want 1", got)
	}
	k.r.sweep(now.Add(idleTTL))
	if n := k.r.open.len() + k.r.ended.len(); n != 0 {
		t.Errorf("%d samples are held after the idle time", n)
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	b := write(t, draft())
	for want, o := range map[string]Options{
		"there is no bundle": {},
		"both named german":  {Detectors: []Use{{b, ModeAlert}, {b, ModeShadow}}},
		"want shadow, alert": {Detectors: []Use{{b, "loud"}}},
	} {
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
