package materializer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/catalogue"
)

type metrics struct {
	messages, duplicates, deadLetters, discarded prometheus.Counter
	failures, trimmed, recreated, lookups        prometheus.Counter
	shrunk, swept                                prometheus.Counter
	stored, files, bytes                         *prometheus.CounterVec
	version                                      prometheus.Gauge
	lag                                          *prometheus.GaugeVec
	commits                                      prometheus.Histogram
}

// newMetrics registers all metrics. oldest and chains are asked at each scrape.
func newMetrics(r prometheus.Registerer, oldest, chains func() float64) *metrics {
	counter := func(name string) prometheus.Counter {
		c := catalogue.NewCounter(name)
		r.MustRegister(c)
		return c
	}
	byTable := func(name string) *prometheus.CounterVec {
		c := catalogue.NewCounterVec(name)
		r.MustRegister(c)
		return c
	}
	m := &metrics{
		messages:    counter("sonde_materializer_messages_total"),
		duplicates:  counter("sonde_materializer_duplicate_rows_total"),
		deadLetters: counter("sonde_materializer_dead_letters_total"),
		discarded:   counter("sonde_materializer_dead_letters_discarded_total"),
		failures:    counter("sonde_materializer_commit_failures_total"),
		trimmed:     counter("sonde_materializer_trimmed_messages_total"),
		recreated:   counter("sonde_materializer_streams_recreated_total"),
		lookups:     counter("sonde_materializer_table_lookups_total"),
		shrunk:      counter("sonde_materializer_forgotten_spans_total"),
		swept:       counter("sonde_lake_swept_files_total"),
		stored:      byTable("sonde_materializer_rows_stored_total"),
		files:       byTable("sonde_lake_files_total"),
		bytes:       byTable("sonde_lake_bytes_total"),
		version:     catalogue.NewGauge("sonde_lake_version"),
		lag:         catalogue.NewGaugeVec("sonde_materializer_lag_messages"),
		commits:     catalogue.NewHistogram("sonde_materializer_commit_seconds", prometheus.ExponentialBuckets(0.002, 2, 15)),
	}
	r.MustRegister(m.version, m.lag, m.commits, catalogue.NewGaugeFunc("sonde_materializer_chains", chains),
		catalogue.NewGaugeFunc("sonde_materializer_oldest_uncommitted_seconds", oldest))
	return m
}

// oldestAge is the age of the oldest uncommitted message in seconds.
func (m *Materializer) oldestAge() float64 {
	age := 0.0
	for _, p := range m.held() {
		if at := p.oldest.Load(); at != 0 {
			age = max(age, time.Since(time.Unix(0, at)).Seconds())
		}
	}
	return age
}

// chainCount is how many chains have their state in memory.
func (m *Materializer) chainCount() float64 {
	n := int64(0)
	for _, p := range m.held() {
		n += p.chainsHeld.Load()
	}
	return float64(n)
}
