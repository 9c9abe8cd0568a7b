package capture

import (
	"github.com/prometheus/client_golang/prometheus"

	"sonde/ring2"
)

// Metrics reads the counters of a ring whenever they are asked for.
type Metrics struct {
	stats   func() ring2.WriterStats
	dropped *prometheus.Desc
	series  []series
}

type series struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*ring2.WriterStats) float64
}

// NewMetrics makes a collector of a writer's counters.
func NewMetrics(stats func() ring2.WriterStats) *Metrics {
	m := &Metrics{stats: stats, dropped: prometheus.NewDesc("sonde_engine_ring_dropped_rows_total",
		"Rows that the ring had no room for.", []string{"reason"}, nil)}
	add := func(kind prometheus.ValueType, name, help string, value func(*ring2.WriterStats) float64) {
		m.series = append(m.series, series{prometheus.NewDesc(name, help, nil, nil), kind, value})
	}
	count := func(name, help string, value func(*ring2.WriterStats) uint64) {
		add(prometheus.CounterValue, name, help, func(s *ring2.WriterStats) float64 { return float64(value(s)) })
	}
	gauge := func(name, help string, value func(*ring2.WriterStats) uint64) {
		add(prometheus.GaugeValue, name, help, func(s *ring2.WriterStats) float64 { return float64(value(s)) })
	}
	type stat = ring2.WriterStats
	count("sonde_engine_ring_captured_rows_total", "Rows offered at the hooks, dropped ones included.",
		func(s *stat) uint64 { return s.CapturedRows })
	count("sonde_engine_ring_aborted_rows_total", "Rows whose copy failed.",
		func(s *stat) uint64 { return s.AbortedRows })
	count("sonde_engine_ring_unnamed_rows_total", "Dropped rows that no record could name.",
		func(s *stat) uint64 { return s.UnnamedRows })
	count("sonde_engine_ring_stalls_total", "Steps that waited for room.",
		func(s *stat) uint64 { return s.Stalls })
	count("sonde_engine_ring_exhausted_steps_total", "Steps that used up their stall budget.",
		func(s *stat) uint64 { return s.ExhaustedSteps })
	count("sonde_engine_ring_refused_releases_total", "Release words that could not be right.",
		func(s *stat) uint64 { return s.RefusedReleases })
	count("sonde_engine_ring_control_lost_total", "Control records that the full queue refused.",
		func(s *stat) uint64 { return s.ControlLost })
	count("sonde_engine_ring_journal_unnamed_total", "Records that the full journal did not take.",
		func(s *stat) uint64 { return s.JournalUnnamed })
	count("sonde_engine_ring_obituaries_total", "Records of dead epochs that were sent.",
		func(s *stat) uint64 { return s.ObituariesSent })
	count("sonde_engine_ring_attaches_total", "Agents that attached.",
		func(s *stat) uint64 { return s.Attaches })
	add(prometheus.CounterValue, "sonde_engine_ring_stall_seconds_total", "Time that steps waited for room.",
		func(s *stat) float64 { return float64(s.StallNS) / 1e9 })
	gauge("sonde_engine_ring_used_descriptors", "Records that the agent has not released.",
		func(s *stat) uint64 { return s.Claim - s.Release })
	gauge("sonde_engine_ring_pending_control_records", "Control records that wait for room.",
		func(s *stat) uint64 { return uint64(s.PendingControl) })
	gauge("sonde_engine_ring_journal_bytes", "Size of the journal.",
		func(s *stat) uint64 { return s.JournalBytes })
	gauge("sonde_engine_ring_attached", "1 while an agent is attached.", func(s *stat) uint64 {
		if s.Attached {
			return 1
		}
		return 0
	})
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	out <- m.dropped
	for _, s := range m.series {
		out <- s.desc
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	stats := m.stats()
	for r := ring2.ReasonNone + 1; r < ring2.ReasonCount; r++ {
		out <- prometheus.MustNewConstMetric(m.dropped, prometheus.CounterValue, float64(stats.DroppedRows[r]), r.String())
	}
	for _, s := range m.series {
		out <- prometheus.MustNewConstMetric(s.desc, s.kind, s.value(&stats))
	}
}
