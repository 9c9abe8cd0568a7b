package scheduler

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/catalogue"
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
	counter := func(name string) prometheus.Counter {
		c := catalogue.NewCounter(name)
		r.MustRegister(c)
		return c
	}
	vector := func(name string) *prometheus.CounterVec {
		c := catalogue.NewCounterVec(name)
		r.MustRegister(c)
		return c
	}
	m := metrics{
		steps:        counter("sonde_engine_steps_total"),
		preemptions:  counter("sonde_engine_preemptions_total"),
		hits:         counter("sonde_engine_prefix_hit_tokens_total"),
		chunks:       counter("sonde_engine_prefill_chunks_total"),
		samples:      counter("sonde_engine_samples_total"),
		tokens:       vector("sonde_engine_tokens_total"),
		requests:     vector("sonde_engine_requests_total"),
		aborts:       vector("sonde_engine_aborts_total"),
		seconds:      catalogue.NewHistogram("sonde_engine_step_seconds", prometheus.ExponentialBuckets(1e-5, 2, 18)),
		sequencesMax: catalogue.NewGauge("sonde_engine_step_sequences_max"),
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
