package producer

import (
	"errors"
	"strings"

	"sonde/bus"
	"sonde/deadletter"
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
	f := r.agent.keep(m.c.key.kind, bus.Message{Subject: m.subject, ID: m.id, Data: m.data}, m.err)
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

// keep puts a refused message into the dead-letter directory, and returns what facts
// about its rows have in common.
func (a *Agent) keep(kind schema.Kind, m bus.Message, why error) schema.LedgerRow {
	a.counters.refuse(kind)
	l := deadletter.Letter{From: deadletter.FromAgent, When: a.now(), Reason: why.Error(), Subject: m.Subject, ID: m.ID,
		Data: m.Data}
	name, err := a.dead.Put(l)
	f := schema.LedgerRow{Fact: schema.FactDeadLetter, Detail: jsonText(map[string]string{"file": name})}
	if err != nil {
		f.Fact, f.Reason, f.Detail = schema.FactDropped, reasonDeadLetterFull, ""
		if !errors.Is(err, deadletter.ErrFull) {
			a.log.Error("a refused message is lost", "subject", m.Subject, "error", err)
		}
	}
	a.log.Warn("the bus refused a message for good", "subject", m.Subject, "file", name, "reason", why)
	if err := a.o.Bus.Broadcast(deadletter.Subject, deadletter.Tell(name, l)); err != nil {
		a.log.Debug("nobody is told of the dead letter over the bus", "error", err)
	}
	return f
}

// refusalFacts names the rows of a refused message. They travel in a chain of their
// own.
func (r *rank) refusalFacts(m *message, about schema.LedgerRow) {
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
	for _, g := range m.groups {
		c.hold(g)
	}
	for _, f := range rowRuns(b, func(int) bool { return true }) {
		f.Fact, f.Reason, f.Detail = about.Fact, about.Reason, about.Detail
		c.addFact(f, m.groups[len(m.groups)-1])
	}
	for _, g := range m.groups { // the first facts may have left in a message of their own
		if c.rows > 0 {
			c.hold(g)
		}
	}
}

// rowRuns names the chosen rows of a message of vectors or stats: one row of the
// ledger for each run of rows and positions of one request.
func rowRuns(b *schema.Batch, chosen func(i int) bool) []schema.LedgerRow {
	var out []schema.LedgerRow
	var last schema.VectorRow
	for i := range b.Len() {
		if !chosen(i) {
			last = schema.VectorRow{Number: ^uint64(0)}
			continue
		}
		v := tokenAt(b, i)
		if len(out) > 0 && v.Seq == last.Seq && v.Row == last.Row+1 && v.Number == last.Number && v.Pass == last.Pass &&
			v.Position == last.Position+1 && v.Phase == last.Phase {
			f := &out[len(out)-1]
			f.Count++
			f.Rows++
		} else {
			out = append(out, schema.LedgerRow{Seq: v.Seq, Row: v.Row, CaptureSeq: v.Seq, FirstRow: v.Row, Count: 1, Stride: 1,
				Rows: 1, Number: v.Number, Request: strings.Clone(v.Request), Sample: v.Sample, Pass: v.Pass, Phase: v.Phase,
				Position: v.Position, Hook: b.Header.Hook, Layer: int32(b.Header.Layer)})
		}
		last = v
	}
	return out
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
