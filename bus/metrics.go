package bus

import (
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/catalogue"
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

	mu   sync.Mutex         // a leaf
	seen map[int]StreamInfo // by partition
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	var all []prometheus.Collector
	counter := func(name string) prometheus.Counter {
		c := catalogue.NewCounter(name)
		all = append(all, c)
		return c
	}
	vector := func(name string) *prometheus.CounterVec {
		c := catalogue.NewCounterVec(name)
		all = append(all, c)
		return c
	}
	gauge := func(name string) prometheus.Gauge {
		g := catalogue.NewGauge(name)
		all = append(all, g)
		return g
	}
	m := &metrics{seen: map[int]StreamInfo{},
		published:      counter("sonde_bus_published_messages_total"),
		publishedBytes: counter("sonde_bus_published_bytes_total"),
		acknowledged:   counter("sonde_bus_acknowledged_messages_total"),
		duplicates:     counter("sonde_bus_duplicate_acknowledgements_total"),
		refused:        counter("sonde_bus_refused_messages_total"),
		repeated:       counter("sonde_bus_repeated_messages_total"),
		failures:       vector("sonde_bus_publish_failures_total"),
		window:         gauge("sonde_bus_window_bytes"),
		connected:      gauge("sonde_bus_connected"),
		connections:    counter("sonde_bus_connections_total"),
		delivered:      counter("sonde_bus_delivered_messages_total"),
		deliveredBytes: counter("sonde_bus_delivered_bytes_total"),
		unheard:        counter("sonde_bus_unheard_messages_total"),
		requests:       vector("sonde_bus_requests_total"),
		streamBytes:    gauge("sonde_bus_stream_bytes"),
		streamMaxBytes: gauge("sonde_bus_stream_max_bytes"),
		streamMessages: gauge("sonde_bus_stream_messages"),
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

// saw keeps what the broker said about a partition of the stream.
func (m *metrics) saw(i StreamInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen[i.Partition] = i
	var sum StreamInfo
	for _, p := range m.seen {
		sum.Bytes += p.Bytes
		sum.MaxBytes += p.MaxBytes
		sum.Messages += p.Messages
	}
	m.streamBytes.Set(float64(sum.Bytes))
	m.streamMaxBytes.Set(float64(sum.MaxBytes))
	m.streamMessages.Set(float64(sum.Messages))
}
