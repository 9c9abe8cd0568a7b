package catalogue

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// NewCounter makes a counter without labels. Like all functions here, it panics
// when the catalogue has no metric of this name, type and labelling: then the
// catalogue or the caller is wrong.
func NewCounter(name string) prometheus.Counter {
	m := find(name, counter, false)
	return prometheus.NewCounter(prometheus.CounterOpts{Name: m.Name, Help: m.Help})
}

// NewCounterVec makes a counter with the labels of the catalogue.
func NewCounterVec(name string) *prometheus.CounterVec {
	m := find(name, counter, true)
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.Name, Help: m.Help}, m.labels())
}

// NewGauge makes a gauge without labels.
func NewGauge(name string) prometheus.Gauge {
	m := find(name, gauge, false)
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: m.Name, Help: m.Help})
}

// NewGaugeVec makes a gauge with the labels of the catalogue.
func NewGaugeVec(name string) *prometheus.GaugeVec {
	m := find(name, gauge, true)
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: m.Name, Help: m.Help}, m.labels())
}

// NewGaugeFunc makes a gauge that asks for its value at each scrape.
func NewGaugeFunc(name string, value func() float64) prometheus.GaugeFunc {
	m := find(name, gauge, false)
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: m.Name, Help: m.Help}, value)
}

// NewHistogram makes a histogram without labels. Buckets are upper bounds in the
// unit of the metric.
func NewHistogram(name string, buckets []float64) prometheus.Histogram {
	m := find(name, histogram, false)
	return prometheus.NewHistogram(prometheus.HistogramOpts{Name: m.Name, Help: m.Help, Buckets: buckets})
}

// NewHistogramVec makes a histogram with the labels of the catalogue.
func NewHistogramVec(name string, buckets []float64) *prometheus.HistogramVec {
	m := find(name, histogram, true)
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: m.Name, Help: m.Help, Buckets: buckets}, m.labels())
}

// Series makes the values of one metric for a collector that reads them elsewhere.
type Series struct {
	Desc *prometheus.Desc
	kind prometheus.ValueType
}

// NewSeries finds a counter or a gauge.
func NewSeries(name string) Series {
	m := lookup(name)
	kinds := map[Type]prometheus.ValueType{counter: prometheus.CounterValue, gauge: prometheus.GaugeValue}
	kind, ok := kinds[m.Type]
	if !ok {
		panic(fmt.Sprintf("BUG: %s is a %s and was asked for as a series", name, m.Type))
	}
	return Series{prometheus.NewDesc(m.Name, m.Help, m.labels(), nil), kind}
}

// Value is one value, with the values of the labels in the order of the catalogue.
func (s Series) Value(value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(s.Desc, s.kind, value, labels...)
}

// CheckOf finds the check of a part. It panics when there is none.
func CheckOf(part string) Check {
	for _, c := range Checks {
		if c.Part == part {
			return c
		}
	}
	panic("BUG: the catalogue has no check of part " + part)
}

func lookup(name string) Metric {
	for _, s := range Sections {
		for _, m := range s.Metrics {
			if m.Name == name {
				return m
			}
		}
	}
	panic("BUG: the catalogue has no metric " + name)
}

func find(name string, kind Type, labelled bool) Metric {
	m := lookup(name)
	if m.Type != kind || labelled != (len(m.Labels) > 0) {
		panic(fmt.Sprintf("BUG: %s is a %s with %d labels and was made as another", name, m.Type, len(m.Labels)))
	}
	return m
}

func (m *Metric) labels() []string {
	var out []string
	for _, l := range m.Labels {
		out = append(out, l.Name)
	}
	return out
}
