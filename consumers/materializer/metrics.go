package materializer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	messages, duplicates, deadLetters, discarded prometheus.Counter
	failures, trimmed, recreated, lookups        prometheus.Counter
	shrunk, swept                                prometheus.Counter
	stored, files, bytes                         *prometheus.CounterVec
	lag, chains, version                         prometheus.Gauge
	commits                                      prometheus.Histogram
}

// newMetrics registers all metrics. oldest is asked at each scrape.
func newMetrics(r prometheus.Registerer, oldest func() float64) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		r.MustRegister(c)
		return c
	}
	byTable := func(name, help string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"table"})
		r.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		r.MustRegister(g)
		return g
	}
	m := &metrics{
		messages:   counter("sonde_materializer_messages_total", "Messages read from the stream."),
		duplicates: counter("sonde_materializer_duplicate_rows_total", "Rows dropped because the table has them."),
		deadLetters: counter("sonde_materializer_dead_letters_total",
			"Messages that could not be decoded, kept or not."),
		discarded: counter("sonde_materializer_dead_letters_discarded_total",
			"Undecodable messages that were not kept: the dead-letter folder is full, missing or not writable."),
		failures: counter("sonde_materializer_commit_failures_total", "Attempts to commit that failed and were repeated."),
		trimmed: counter("sonde_materializer_trimmed_messages_total",
			"Messages that were trimmed from the stream before the table had them: their rows are lost."),
		recreated: counter("sonde_materializer_streams_recreated_total", "Streams that were read from their start again."),
		lookups: counter("sonde_materializer_table_lookups_total",
			"Messages for which the table was asked which rows it has."),
		shrunk: counter("sonde_materializer_forgotten_spans_total",
			"Spans of chains dropped from memory at the bound; the table is asked about their rows."),
		swept:   counter("sonde_lake_swept_files_total", "Files of dead writers, named by no commit, that were removed."),
		stored:  byTable("sonde_materializer_rows_stored_total", "Rows committed."),
		files:   byTable("sonde_lake_files_total", "Data files committed."),
		bytes:   byTable("sonde_lake_bytes_total", "Bytes of data files committed."),
		lag:     gauge("sonde_materializer_lag_messages", "Messages in the stream that the table does not have."),
		chains:  gauge("sonde_materializer_chains", "Chains whose state is in memory."),
		version: gauge("sonde_lake_version", "Newest entry of the lake's log."),
		commits: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sonde_materializer_commit_seconds",
			Help:    "Time from starting a commit until it is durable, retries included.",
			Buckets: prometheus.ExponentialBuckets(0.002, 2, 15)}),
	}
	r.MustRegister(m.commits, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sonde_materializer_oldest_uncommitted_seconds",
		Help: "Age of the oldest message that was read and is not committed; 0: there is none."}, oldest))
	return m
}

// oldestAge is the age of the oldest uncommitted message in seconds.
func (m *Materializer) oldestAge() float64 {
	at := m.oldest.Load()
	if at == 0 {
		return 0
	}
	return max(0, time.Since(time.Unix(0, at)).Seconds())
}
