package detector

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics of a runtime. Label detector is the name of a bundle.
type metrics struct {
	rows        *prometheus.CounterVec
	missing     *prometheus.CounterVec
	alerts      *prometheus.CounterVec
	aborts      *prometheus.CounterVec
	latency     *prometheus.HistogramVec
	abortTime   *prometheus.HistogramVec
	unseen      *prometheus.CounterVec
	ready       *prometheus.GaugeVec
	breaker     *prometheus.GaugeVec
	samples     prometheus.Gauge
	evictions   *prometheus.CounterVec
	stream      *prometheus.CounterVec
	unpublished *prometheus.CounterVec
}

// judgeMetrics are those of one detector.
type judgeMetrics struct {
	rows, alerts, aborts *prometheus.CounterVec
	missing, unseen      prometheus.Counter
	latency, abortTime   prometheus.Observer
	ready, breaker       prometheus.Gauge
	scored               prometheus.Counter // rows of result scored: the one on the hot path
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	f := promauto.With(registerer)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return f.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"detector"})
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return f.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help,
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}, []string{"detector"})
	}
	return &metrics{
		rows: counter("sonde_detector_rows_total", "Rows of the bound hook, by what became of them.",
			"detector", "result"),
		missing: counter("sonde_detector_missing_tokens_total", "Tokens that the binding covers and that never came.",
			"detector"),
		alerts: counter("sonde_detector_alerts_total", "Levels that a request crossed.", "detector", "level", "mode"),
		aborts: counter("sonde_detector_aborts_total", "Requests to be stopped, by what came of it.", "detector", "outcome"),
		latency: histogram("sonde_detector_tensor_to_verdict_seconds",
			"From the claim of the step in the engine to the verdict, for each token."),
		abortTime: histogram("sonde_detector_tensor_to_abort_seconds",
			"From the claim of the step in the engine to the engine's answer to the abort."),
		unseen: counter("sonde_detector_unseen_requests_total", "Requests that ended and of which no row arrived.",
			"detector"),
		ready: gauge("sonde_detector_ready", "1 when the detector judges what it should."),
		breaker: gauge("sonde_detector_breaker_open",
			"1 when too large a share of requests was to be stopped: alerts go on, aborts do not."),
		samples: f.NewGauge(prometheus.GaugeOpts{Name: "sonde_detector_samples",
			Help: "Samples of requests whose state is held."}),
		evictions: counter("sonde_detector_evictions_total", "States of samples forgotten, by reason.", "reason"),
		stream:    counter("sonde_detector_stream_events_total", "What was wrong with messages or with the stream.", "event"),
		unpublished: counter("sonde_detector_unpublished_total",
			"Detections that could not be published and are in the log alone.", "reason"),
	}
}

func (m *metrics) of(name string) judgeMetrics {
	by := prometheus.Labels{"detector": name}
	rows := m.rows.MustCurryWith(by)
	j := judgeMetrics{rows: rows, alerts: m.alerts.MustCurryWith(by), aborts: m.aborts.MustCurryWith(by),
		missing: m.missing.With(by), unseen: m.unseen.With(by), latency: m.latency.With(by), abortTime: m.abortTime.With(by),
		ready: m.ready.With(by), breaker: m.breaker.With(by), scored: rows.WithLabelValues(string(Scored))}
	j.ready.Set(1)
	return j
}
