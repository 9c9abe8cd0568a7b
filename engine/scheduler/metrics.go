package scheduler

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/ring2"
)

type metrics struct {
	steps, preemptions, hits, chunks, samples prometheus.Counter
	seconds                                   prometheus.Histogram
	sequencesMax                              prometheus.Gauge
	tokens, requests, aborts                  *prometheus.CounterVec
	most                                      int
}

func newMetrics(r prometheus.Registerer) metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		r.MustRegister(c)
		return c
	}
	vector := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		r.MustRegister(c)
		return c
	}
	m := metrics{
		steps:       counter("sonde_engine_steps_total", "Steps computed."),
		preemptions: counter("sonde_engine_preemptions_total", "Sequences that lost their KV blocks to an older one."),
		hits:        counter("sonde_engine_prefix_hit_tokens_total", "Tokens that the prefix cache had."),
		chunks:      counter("sonde_engine_prefill_chunks_total", "Chunks of prompts that were split over steps."),
		samples:     counter("sonde_engine_samples_total", "Sequences of requests with several samples."),
		tokens:      vector("sonde_engine_tokens_total", "Tokens computed.", "phase"),
		requests:    vector("sonde_engine_requests_total", "Sequences that ended.", "reason"),
		aborts:      vector("sonde_engine_aborts_total", "Aborts by request or sequence.", "outcome"),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sonde_engine_step_seconds",
			Help: "Time of a step without its delay.", Buckets: prometheus.ExponentialBuckets(1e-5, 2, 18)}),
		sequencesMax: prometheus.NewGauge(prometheus.GaugeOpts{Name: "sonde_engine_step_sequences_max",
			Help: "Most sequences that one step has computed."}),
	}
	r.MustRegister(m.seconds, m.sequencesMax)
	// Series that exist from the start can be told from a metric that is missing.
	for f := ring2.FinishStop; f <= ring2.FinishDetector; f++ {
		m.requests.WithLabelValues(f.String())
	}
	for p := ring2.PhasePrefill; p <= ring2.PhaseRecompute; p++ {
		m.tokens.WithLabelValues(p.String())
	}
	for o := ring2.AbortUnknown; o <= ring2.AbortFinished; o++ {
		m.aborts.WithLabelValues(o.String())
	}
	return m
}

func (m *metrics) step(sequences int, took time.Duration) {
	m.steps.Inc()
	m.seconds.Observe(took.Seconds())
	if sequences > m.most {
		m.most = sequences
		m.sequencesMax.Set(float64(sequences))
	}
}
