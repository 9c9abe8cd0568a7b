package producer

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/catalogue"
	"sonde/schema"
)

// counters of an agent that belong to no rank.
type counters struct {
	attached, detached, quarantined, epochsClosed atomic.Uint64
	steps, corrupt, badObituaries, unservedAborts atomic.Uint64

	mu      sync.Mutex // a leaf
	sent    map[schema.Kind]sent
	refused map[schema.Kind]uint64
	aborts  map[string]uint64 // by outcome
}

type sent struct{ messages, bytes uint64 }

func (c *counters) publish(kind schema.Kind, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sent == nil {
		c.sent = map[schema.Kind]sent{}
	}
	s := c.sent[kind]
	c.sent[kind] = sent{s.messages + 1, s.bytes + uint64(bytes)}
}

func (c *counters) refuse(kind schema.Kind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused == nil {
		c.refused = map[schema.Kind]uint64{}
	}
	c.refused[kind]++
}

func (c *counters) abort(outcome string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.aborts == nil {
		c.aborts = map[string]uint64{}
	}
	c.aborts[outcome]++
}

// collector shows the agent to Prometheus.
type collector struct{ a *Agent }

var (
	seriesRows        = catalogue.NewSeries("sonde_producer_rows_total")
	seriesCaptured    = catalogue.NewSeries("sonde_producer_captured_rows")
	seriesInflight    = catalogue.NewSeries("sonde_producer_inflight_rows")
	seriesBytes       = catalogue.NewSeries("sonde_producer_inflight_bytes")
	seriesHeld        = catalogue.NewSeries("sonde_producer_held_bytes")
	seriesLag         = catalogue.NewSeries("sonde_producer_ring_records")
	seriesOldest      = catalogue.NewSeries("sonde_producer_oldest_batch_seconds")
	seriesSent        = catalogue.NewSeries("sonde_producer_messages_total")
	seriesSentBytes   = catalogue.NewSeries("sonde_producer_message_bytes_total")
	seriesRefused     = catalogue.NewSeries("sonde_producer_refused_messages_total")
	seriesAborts      = catalogue.NewSeries("sonde_producer_aborts_total")
	seriesRanks       = catalogue.NewSeries("sonde_producer_ranks")
	seriesAttached    = catalogue.NewSeries("sonde_producer_attached_total")
	seriesDetached    = catalogue.NewSeries("sonde_producer_detached_total")
	seriesQuarantined = catalogue.NewSeries("sonde_producer_quarantined_total")
	seriesClosed      = catalogue.NewSeries("sonde_producer_epochs_closed_total")
	seriesSteps       = catalogue.NewSeries("sonde_producer_steps_total")
	seriesCorrupt     = catalogue.NewSeries("sonde_producer_corrupt_captures_total")
	seriesObituaries  = catalogue.NewSeries("sonde_producer_bad_obituaries_total")
	seriesUnserved    = catalogue.NewSeries("sonde_producer_unserved_aborts_total")
	seriesDeadFiles   = catalogue.NewSeries("sonde_producer_dead_letter_files")
	seriesDeadBytes   = catalogue.NewSeries("sonde_producer_dead_letter_bytes")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	count := func(s catalogue.Series, v uint64, values ...string) { out <- s.Value(float64(v), values...) }
	show := func(s catalogue.Series, v float64, values ...string) { out <- s.Value(v, values...) }
	for _, r := range c.a.Snapshot().Ranks {
		engine, rank := labels(r.Engine, r.Rank)
		show(seriesCaptured, float64(r.Captured), engine, rank)
		show(seriesInflight, float64(r.InFlight), engine, rank)
		count(seriesRows, r.Acknowledged, engine, rank, "acknowledged", "")
		count(seriesRows, r.Aborted, engine, rank, "aborted", "")
		count(seriesRows, r.Lost, engine, rank, "lost", "")
		count(seriesRows, r.DeadLettered, engine, rank, "dead_lettered", "")
		count(seriesRows, r.Filtered, engine, rank, "filtered", "")
		for reason, n := range r.Dropped {
			count(seriesRows, n, engine, rank, "dropped", reason)
		}
	}
	attached, rings := c.a.rings()
	for name, g := range rings {
		engine, rank := labels(name.engine, name.rank)
		show(seriesBytes, float64(g.inflight), engine, rank)
		show(seriesHeld, float64(g.held), engine, rank)
		show(seriesLag, float64(g.records), engine, rank)
		show(seriesOldest, float64(g.oldestNS)/1e9, engine, rank)
	}
	show(seriesRanks, float64(attached))
	n := &c.a.counters
	count(seriesAttached, n.attached.Load())
	count(seriesDetached, n.detached.Load())
	count(seriesQuarantined, n.quarantined.Load())
	count(seriesClosed, n.epochsClosed.Load())
	count(seriesSteps, n.steps.Load())
	count(seriesCorrupt, n.corrupt.Load())
	count(seriesObituaries, n.badObituaries.Load())
	count(seriesUnserved, n.unservedAborts.Load())
	n.mu.Lock()
	defer n.mu.Unlock()
	for kind, s := range n.sent {
		count(seriesSent, s.messages, string(kind))
		count(seriesSentBytes, s.bytes, string(kind))
	}
	for kind, v := range n.refused {
		count(seriesRefused, v, string(kind))
	}
	for outcome, v := range n.aborts {
		count(seriesAborts, v, outcome)
	}
	files, bytes := c.a.dead.Size()
	show(seriesDeadFiles, float64(files))
	show(seriesDeadBytes, float64(bytes))
}

// labels of a rank. The engine's name comes from outside.
func labels(engine string, rank int) (string, string) {
	return strings.ToValidUTF8(engine, "?"), strconv.Itoa(rank)
}

// ringGauges of a rank; where two of its epochs are attached, they are added up.
type ringGauges struct {
	inflight, held, oldestNS int64
	records                  uint64
}

func (a *Agent) rings() (attached int, rings map[rankName]ringGauges) {
	a.mu.Lock()
	defer a.mu.Unlock()
	rings = map[rankName]ringGauges{}
	for r := range a.ranks {
		g := rings[r.name]
		g.inflight += r.inflightB.Load()
		g.held += r.heldNow.Load()
		g.oldestNS = max(g.oldestNS, r.oldestNS.Load())
		g.records += r.s.ClaimSeq() - r.s.ReleaseSeq()
		rings[r.name] = g
	}
	return len(a.ranks), rings
}
