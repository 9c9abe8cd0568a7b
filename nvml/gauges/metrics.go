package gauges

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/catalogue"
)

// Metrics serves the newest samples to Prometheus. What a GPU does not tell has no series.
type Metrics struct {
	mu     sync.Mutex
	newest []Sample
}

type metric struct {
	series catalogue.Series
	of     func(*Sample) (float64, bool)
}

// scaled is a metric whose value is a field of a sample times scale.
func scaled[T uint32 | uint64](name string, scale float64, of func(*Sample) *T) metric {
	return metric{catalogue.NewSeries(name), func(s *Sample) (float64, bool) {
		if v := of(s); v != nil {
			return float64(*v) * scale, true
		}
		return 0, false
	}}
}

var metrics = []metric{
	scaled("sonde_nvml_busy_ratio", 0.01, func(s *Sample) *uint32 { return s.Busy }),
	scaled("sonde_nvml_memory_busy_ratio", 0.01, func(s *Sample) *uint32 { return s.MemoryBusy }),
	scaled("sonde_nvml_memory_used_bytes", 1, func(s *Sample) *uint64 { return s.MemoryUsed }),
	scaled("sonde_nvml_memory_total_bytes", 1, func(s *Sample) *uint64 { return s.MemoryTotal }),
	scaled("sonde_nvml_pcie_sent_bytes_per_second", 1, func(s *Sample) *uint64 { return s.PCIeOut }),
	scaled("sonde_nvml_pcie_received_bytes_per_second", 1, func(s *Sample) *uint64 { return s.PCIeIn }),
	scaled("sonde_nvml_pcie_replays_total", 1, func(s *Sample) *uint64 { return s.PCIeReplays }),
	scaled("sonde_nvml_sm_clock_hertz", 1e6, func(s *Sample) *uint32 { return s.SMClock }),
	scaled("sonde_nvml_memory_clock_hertz", 1e6, func(s *Sample) *uint32 { return s.MemoryClock }),
	scaled("sonde_nvml_power_watts", 1e-3, func(s *Sample) *uint32 { return s.Power }),
	scaled("sonde_nvml_temperature_celsius", 1, func(s *Sample) *uint32 { return s.Temperature }),
	scaled("sonde_nvml_throttle_reasons", 1, func(s *Sample) *uint64 { return s.Throttled }),
	scaled("sonde_nvml_ecc_corrected_total", 1, func(s *Sample) *uint64 { return s.ECCFixed }),
	scaled("sonde_nvml_ecc_uncorrected_total", 1, func(s *Sample) *uint64 { return s.ECCBroken }),
	scaled("sonde_nvml_xid_errors_total", 1, func(s *Sample) *uint64 { return s.XIDs }),
}

// Set replaces the samples.
func (m *Metrics) Set(samples []Sample) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.newest = samples
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	for _, x := range metrics {
		out <- x.series.Desc
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	m.mu.Lock()
	samples := m.newest
	m.mu.Unlock()
	for i := range samples {
		s := &samples[i]
		for _, x := range metrics {
			if v, ok := x.of(s); ok {
				out <- x.series.Value(v, strconv.Itoa(s.GPU), s.UUID, s.Name)
			}
		}
	}
}
