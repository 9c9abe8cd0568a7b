package group

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/catalogue"
)

// metrics of one member. Those of all groups of a process are the same metrics with
// another label.
type metrics struct {
	members, partitions prometheus.Gauge
	rebalances, fenced  prometheus.Counter
}

func newMetrics(r prometheus.Registerer, kind string) *metrics {
	gauge := func(name string) prometheus.Gauge {
		return shared(r, catalogue.NewGaugeVec(name)).WithLabelValues(kind)
	}
	counter := func(name string) prometheus.Counter {
		return shared(r, catalogue.NewCounterVec(name)).WithLabelValues(kind)
	}
	return &metrics{members: gauge("sonde_group_members"), partitions: gauge("sonde_group_partitions"),
		rebalances: counter("sonde_group_rebalances_total"), fenced: counter("sonde_group_fenced_total")}
}

// shared registers a collector, or finds the one that another group registered.
func shared[C prometheus.Collector](r prometheus.Registerer, c C) C {
	if r == nil {
		return c
	}
	var already prometheus.AlreadyRegisteredError
	switch err := r.Register(c); {
	case errors.As(err, &already):
		return already.ExistingCollector.(C)
	case err != nil:
		panic("BUG: " + err.Error())
	}
	return c
}
