package capture

import (
	"github.com/prometheus/client_golang/prometheus"

	"sonde/catalogue"
	"sonde/ring2"
)

// Metrics reads the counters of a ring whenever they are asked for.
type Metrics struct {
	stats   func() ring2.WriterStats
	dropped catalogue.Series
	series  []series
}

type series struct {
	catalogue.Series
	value func(*ring2.WriterStats) float64
}

// NewMetrics makes a collector of a writer's counters.
func NewMetrics(stats func() ring2.WriterStats) *Metrics {
	m := &Metrics{stats: stats, dropped: catalogue.NewSeries("sonde_engine_ring_dropped_rows_total")}
	add := func(name string, value func(*ring2.WriterStats) float64) {
		m.series = append(m.series, series{catalogue.NewSeries(name), value})
	}
	show := func(name string, value func(*ring2.WriterStats) uint64) {
		add(name, func(s *ring2.WriterStats) float64 { return float64(value(s)) })
	}
	type stat = ring2.WriterStats
	show("sonde_engine_ring_captured_rows_total", func(s *stat) uint64 { return s.CapturedRows })
	show("sonde_engine_ring_aborted_rows_total", func(s *stat) uint64 { return s.AbortedRows })
	show("sonde_engine_ring_unnamed_rows_total", func(s *stat) uint64 { return s.UnnamedRows })
	show("sonde_engine_ring_stalls_total", func(s *stat) uint64 { return s.Stalls })
	show("sonde_engine_ring_exhausted_steps_total", func(s *stat) uint64 { return s.ExhaustedSteps })
	show("sonde_engine_ring_refused_releases_total", func(s *stat) uint64 { return s.RefusedReleases })
	show("sonde_engine_ring_control_lost_total", func(s *stat) uint64 { return s.ControlLost })
	show("sonde_engine_ring_journal_unnamed_total", func(s *stat) uint64 { return s.JournalUnnamed })
	show("sonde_engine_ring_obituaries_total", func(s *stat) uint64 { return s.ObituariesSent })
	show("sonde_engine_ring_attaches_total", func(s *stat) uint64 { return s.Attaches })
	add("sonde_engine_ring_stall_seconds_total", func(s *stat) float64 { return float64(s.StallNS) / 1e9 })
	show("sonde_engine_ring_used_descriptors", func(s *stat) uint64 { return s.Claim - s.Release })
	show("sonde_engine_ring_pending_control_records", func(s *stat) uint64 { return uint64(s.PendingControl) })
	show("sonde_engine_ring_journal_bytes", func(s *stat) uint64 { return s.JournalBytes })
	show("sonde_engine_ring_attached", func(s *stat) uint64 {
		if s.Attached {
			return 1
		}
		return 0
	})
	return m
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	out <- m.dropped.Desc
	for _, s := range m.series {
		out <- s.Desc
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	stats := m.stats()
	for r := ring2.ReasonNone + 1; r < ring2.ReasonCount; r++ {
		out <- m.dropped.Value(float64(stats.DroppedRows[r]), r.String())
	}
	for _, s := range m.series {
		out <- s.Value(s.value(&stats))
	}
}
