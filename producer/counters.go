package producer

import (
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

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

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descRows = describe("sonde_producer_rows_total", "chosen rows, by what became of them; and filtered ones", "engine",
		"rank", "class", "reason")
	descCaptured    = describe("sonde_producer_captured_rows", "rows that the policy chose", "engine", "rank")
	descInflight    = describe("sonde_producer_inflight_rows", "rows read and not settled", "engine", "rank")
	descBytes       = describe("sonde_producer_inflight_bytes", "bytes published and not acknowledged", "engine", "rank")
	descHeld        = describe("sonde_producer_held_bytes", "payload bytes in the ring not released", "engine", "rank")
	descLag         = describe("sonde_producer_ring_records", "records in the ring not released", "engine", "rank")
	descOldest      = describe("sonde_producer_oldest_batch_seconds", "age of the oldest open batch", "engine", "rank")
	descSent        = describe("sonde_producer_messages_total", "messages published", "kind")
	descSentBytes   = describe("sonde_producer_message_bytes_total", "their bytes", "kind")
	descRefused     = describe("sonde_producer_refused_messages_total", "messages that the bus refused for good", "kind")
	descAborts      = describe("sonde_producer_aborts_total", "abort commands served", "outcome")
	descRanks       = describe("sonde_producer_ranks", "ranks attached")
	descAttached    = describe("sonde_producer_attached_total", "sessions taken")
	descDetached    = describe("sonde_producer_detached_total", "sessions given up before the end of their epoch")
	descQuarantined = describe("sonde_producer_quarantined_total", "rings whose records made no sense")
	descClosed      = describe("sonde_producer_epochs_closed_total", "epochs closed")
	descSteps       = describe("sonde_producer_steps_total", "steps expanded")
	descCorrupt     = describe("sonde_producer_corrupt_captures_total", "captures that did not fit their layout")
	descObituaries  = describe("sonde_producer_bad_obituaries_total", "journal records of dead writers that made no sense")
	descUnserved    = describe("sonde_producer_unserved_aborts_total", "tenants whose aborts are not served")
	descDeadFiles   = describe("sonde_producer_dead_letter_files", "files in the dead-letter directory")
	descDeadBytes   = describe("sonde_producer_dead_letter_bytes", "their bytes")
)

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, out) }

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, values ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), values...)
	}
	gauge := func(d *prometheus.Desc, v float64, values ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, values...)
	}
	for _, r := range c.a.Snapshot().Ranks {
		engine, rank := labels(r.Engine, r.Rank)
		gauge(descCaptured, float64(r.Captured), engine, rank)
		gauge(descInflight, float64(r.InFlight), engine, rank)
		counter(descRows, r.Acknowledged, engine, rank, "acknowledged", "")
		counter(descRows, r.Aborted, engine, rank, "aborted", "")
		counter(descRows, r.Lost, engine, rank, "lost", "")
		counter(descRows, r.DeadLettered, engine, rank, "dead_lettered", "")
		counter(descRows, r.Filtered, engine, rank, "filtered", "")
		for reason, n := range r.Dropped {
			counter(descRows, n, engine, rank, "dropped", reason)
		}
	}
	attached, rings := c.a.rings()
	for name, g := range rings {
		engine, rank := labels(name.engine, name.rank)
		gauge(descBytes, float64(g.inflight), engine, rank)
		gauge(descHeld, float64(g.held), engine, rank)
		gauge(descLag, float64(g.records), engine, rank)
		gauge(descOldest, float64(g.oldestNS)/1e9, engine, rank)
	}
	gauge(descRanks, float64(attached))
	n := &c.a.counters
	counter(descAttached, n.attached.Load())
	counter(descDetached, n.detached.Load())
	counter(descQuarantined, n.quarantined.Load())
	counter(descClosed, n.epochsClosed.Load())
	counter(descSteps, n.steps.Load())
	counter(descCorrupt, n.corrupt.Load())
	counter(descObituaries, n.badObituaries.Load())
	counter(descUnserved, n.unservedAborts.Load())
	n.mu.Lock()
	defer n.mu.Unlock()
	for kind, s := range n.sent {
		counter(descSent, s.messages, string(kind))
		counter(descSentBytes, s.bytes, string(kind))
	}
	for kind, v := range n.refused {
		counter(descRefused, v, string(kind))
	}
	for outcome, v := range n.aborts {
		counter(descAborts, v, outcome)
	}
	files, bytes := c.a.dead.size()
	gauge(descDeadFiles, float64(files))
	gauge(descDeadBytes, float64(bytes))
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
