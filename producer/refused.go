package producer

import (
	"errors"
	"strings"

	"sonde/ring2"
	"sonde/schema"
)

// handleRefused puts messages that the bus can never take into the dead-letter
// directory, and publishes facts about their rows.
func (r *rank) handleRefused() {
	for len(r.refused) > 0 && r.failed == nil {
		refused := r.refused
		r.refused = nil
		for _, m := range refused {
			r.deadLetter(m)
		}
	}
}

func (r *rank) deadLetter(m *message) {
	r.agent.counters.refuse(m.c.key.kind)
	name, err := r.agent.dead.put(m.err.Error(), m.subject, m.id, m.data)
	f := schema.LedgerRow{Fact: schema.FactDeadLetter, Detail: jsonText(map[string]string{"file": name})}
	if err != nil {
		f.Fact, f.Reason, f.Detail = schema.FactDropped, reasonDeadLetterFull, ""
		if !errors.Is(err, errDeadLetterFull) {
			r.log.Error("a refused message is lost", "subject", m.subject, "error", err)
		}
	}
	r.log.Warn("the bus refused a message for good", "subject", m.subject, "rows", m.rows, "file", name, "reason", m.err)
	if m.rows > 0 {
		r.refusalFacts(m, f)
		if f.Fact == schema.FactDeadLetter {
			r.account.deadLettered(m.rows)
		} else {
			r.account.droppedInFlight(f.Reason, m.rows)
		}
	}
	r.settle(m)
}

// refusalFacts names the rows of a refused message, a fact for each run of rows
// and positions of one request. They travel in a chain of their own.
func (r *rank) refusalFacts(m *message, f schema.LedgerRow) {
	b, err := schema.Decode(m.data)
	if err != nil {
		panic("BUG: our own message does not decode: " + err.Error())
	}
	data := m.c
	shard := 2 * data.key.shard
	if data.key.kind == schema.KindStats {
		shard++
	}
	c := data.e.chain(chainKey{schema.KindLedger, data.key.tenant, data.key.hook, data.key.layer, shard},
		ring2.LayoutEntry{})
	var last schema.VectorRow
	put := func() {
		if f.Count > 0 {
			f.Rows = uint64(f.Count)
			c.addFact(f, m.groups[len(m.groups)-1])
		}
	}
	for _, g := range m.groups {
		c.hold(g)
	}
	for i := range b.Len() {
		v := tokenAt(b, i)
		if f.Count > 0 && v.Seq == last.Seq && v.Row == last.Row+1 && v.Number == last.Number && v.Pass == last.Pass &&
			v.Position == last.Position+1 && v.Phase == last.Phase {
			f.Count++
		} else {
			put()
			f.Seq, f.Row, f.CaptureSeq, f.FirstRow, f.Count, f.Stride = v.Seq, v.Row, v.Seq, v.Row, 1, 1
			f.Number, f.Request, f.Sample, f.Pass, f.Phase = v.Number, strings.Clone(v.Request), v.Sample, v.Pass, v.Phase
			f.Position, f.Hook, f.Layer = v.Position, data.key.hook, int32(data.key.layer)
		}
		last = v
	}
	put()
	for _, g := range m.groups { // the first facts may have left in a message of their own
		if c.rows > 0 {
			c.hold(g)
		}
	}
}

// tokenAt is the identity of row i of vectors or stats.
func tokenAt(b *schema.Batch, i int) schema.VectorRow {
	if b.Header.Kind == schema.KindVectors {
		return b.Vector(i)
	}
	s := b.Stats(i)
	return schema.VectorRow{Seq: s.Seq, Row: s.Row, Number: s.Number, Request: s.Request, Sample: s.Sample,
		Position: s.Position, Pass: s.Pass, Phase: s.Phase}
}
