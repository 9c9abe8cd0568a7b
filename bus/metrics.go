package bus

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one connection to a broker.
type metrics struct {
	published      prometheus.Counter
	publishedBytes prometheus.Counter
	acknowledged   prometheus.Counter
	duplicates     prometheus.Counter
	refused        prometheus.Counter
	repeated       prometheus.Counter
	failures       *prometheus.CounterVec
	window         prometheus.Gauge
	connected      prometheus.Gauge
	connections    prometheus.Counter
	delivered      prometheus.Counter
	deliveredBytes prometheus.Counter
	unheard        prometheus.Counter
	requests       *prometheus.CounterVec
	streamBytes    prometheus.Gauge
	streamMaxBytes prometheus.Gauge
	streamMessages prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	var all []prometheus.Collector
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		all = append(all, c)
		return c
	}
	vector := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		all = append(all, c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		all = append(all, g)
		return g
	}
	m := &metrics{
		published:      counter("sonde_bus_published_messages_total", "messages handed over for publication"),
		publishedBytes: counter("sonde_bus_published_bytes_total", "their bytes"),
		acknowledged:   counter("sonde_bus_acknowledged_messages_total", "messages that the broker acknowledged"),
		duplicates:     counter("sonde_bus_duplicate_acknowledgements_total", "acknowledgements of what was stored before"),
		refused:        counter("sonde_bus_refused_messages_total", "messages that can never be taken"),
		repeated:       counter("sonde_bus_repeated_messages_total", "messages published again"),
		failures:       vector("sonde_bus_publish_failures_total", "events that made the window start anew", "reason"),
		window:         gauge("sonde_bus_window_bytes", "bytes published and not acknowledged"),
		connected:      gauge("sonde_bus_connected", "1 while the broker can be reached"),
		connections:    counter("sonde_bus_connections_total", "connections made to the broker"),
		delivered:      counter("sonde_bus_delivered_messages_total", "messages read from the stream"),
		deliveredBytes: counter("sonde_bus_delivered_bytes_total", "their bytes"),
		unheard:        counter("sonde_bus_unheard_messages_total", "live messages that a slow listener missed"),
		requests:       vector("sonde_bus_requests_total", "commands sent, by outcome", "outcome"),
		streamBytes:    gauge("sonde_bus_stream_bytes", "size of the stream"),
		streamMaxBytes: gauge("sonde_bus_stream_max_bytes", "bound of the stream; beyond it, publishing waits"),
		streamMessages: gauge("sonde_bus_stream_messages", "messages in the stream"),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the bus: %w", err)
		}
	}
	return m, nil
}

// saw keeps what the broker said about the stream.
func (m *metrics) saw(i StreamInfo) {
	m.streamBytes.Set(float64(i.Bytes))
	m.streamMaxBytes.Set(float64(i.MaxBytes))
	m.streamMessages.Set(float64(i.Messages))
}
