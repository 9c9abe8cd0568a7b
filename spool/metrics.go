package spool

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/catalogue"
)

// metrics of one spool.
type metrics struct {
	bytes, max, messages, failed, unreadable           prometheus.Gauge
	written, writtenBytes, drained, discarded, damaged prometheus.Counter
	torn                                               prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		bytes:        catalogue.NewGauge("sonde_spool_bytes"),
		max:          catalogue.NewGauge("sonde_spool_max_bytes"),
		messages:     catalogue.NewGauge("sonde_spool_messages"),
		failed:       catalogue.NewGauge("sonde_spool_failed"),
		unreadable:   catalogue.NewGauge("sonde_spool_unreadable_files"),
		written:      catalogue.NewCounter("sonde_spool_written_messages_total"),
		writtenBytes: catalogue.NewCounter("sonde_spool_written_bytes_total"),
		drained:      catalogue.NewCounter("sonde_spool_drained_messages_total"),
		discarded:    catalogue.NewCounter("sonde_spool_discarded_messages_total"),
		damaged:      catalogue.NewCounter("sonde_spool_damaged_messages_total"),
		torn:         catalogue.NewCounter("sonde_spool_torn_bytes_total"),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.bytes, m.max, m.messages, m.failed, m.unreadable, m.written, m.writtenBytes,
		m.drained, m.discarded, m.damaged, m.torn} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the spool: %w", err)
		}
	}
	return m, nil
}
