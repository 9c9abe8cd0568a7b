package detector

import (
	"github.com/prometheus/client_golang/prometheus"

	"sonde/catalogue"
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
	counter := func(name string) *prometheus.CounterVec { return registered(registerer, catalogue.NewCounterVec(name)) }
	gauge := func(name string) *prometheus.GaugeVec { return registered(registerer, catalogue.NewGaugeVec(name)) }
	histogram := func(name string) *prometheus.HistogramVec {
		return registered(registerer, catalogue.NewHistogramVec(name, prometheus.ExponentialBuckets(0.00025, 1.25, 52)))
	}
	return &metrics{
		rows:        counter("sonde_detector_rows_total"),
		missing:     counter("sonde_detector_missing_tokens_total"),
		alerts:      counter("sonde_detector_alerts_total"),
		aborts:      counter("sonde_detector_aborts_total"),
		latency:     histogram("sonde_detector_tensor_to_verdict_seconds"),
		abortTime:   histogram("sonde_detector_tensor_to_abort_seconds"),
		unseen:      counter("sonde_detector_unseen_requests_total"),
		ready:       gauge("sonde_detector_ready"),
		breaker:     gauge("sonde_detector_breaker_open"),
		samples:     registered(registerer, catalogue.NewGauge("sonde_detector_samples")),
		evictions:   counter("sonde_detector_evictions_total"),
		stream:      counter("sonde_detector_stream_events_total"),
		unpublished: counter("sonde_detector_unpublished_total"),
	}
}

// registered registers a collector, unless nobody asks for metrics.
func registered[C prometheus.Collector](registerer prometheus.Registerer, c C) C {
	if registerer != nil {
		registerer.MustRegister(c)
	}
	return c
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
