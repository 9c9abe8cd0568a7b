package materializer

import (
	"fmt"
	"slices"

	"sonde/bus"
	"sonde/deadletter"
	"sonde/lakehouse/commitlog"
	"sonde/lakehouse/table"
	"sonde/schema"
)

// take reads one message. A message that cannot be read goes to the dead letters
// and never stops the stream; errors are those of the lake.
func (p *part) take(d bus.Delivery) error {
	p.metrics.messages.Inc()
	p.pending.read(d.Seq)
	p.oldest.CompareAndSwap(0, d.Stored.UnixNano()) // finish sets 0 in this goroutine
	msg, err := decode(d.Data)
	if err != nil {
		return p.bury(d, err)
	}
	stored, err := p.store(msg)
	if stored > 0 {
		p.pending.bytes += int64(len(d.Data))
		if k := msg.Header.Kind; k == schema.KindVectors || k == schema.KindStats {
			p.book.Add(&msg.Header, "taken", uint64(stored))
			p.pending.taken = append(p.pending.taken, takenRows{&msg.Header, uint64(stored)})
		}
	}
	return err
}

func decode(data []byte) (*table.Message, error) {
	b, err := schema.Decode(data)
	if err != nil {
		return nil, err
	}
	return table.NewMessage(b)
}

// store adds the rows of a message that the table does not have, and marks all of
// them as seen, with everything since the message before it in its chain.
func (p *part) store(msg *table.Message) (stored int, err error) {
	h := &msg.Header
	chain, err := p.chains.of(h.Chain())
	if err != nil {
		return 0, err
	}
	inTable, err := p.askTable(chain, msg)
	if err != nil {
		return 0, err
	}
	at := 0 // index of the span's first row
	for _, s := range h.Spans {
		chain.unseen(s, func(first, rows uint32) {
			for from := 0; from < int(rows); {
				run := 0
				for from+run < int(rows) && !inTable[schema.Cursor{Seq: s.Seq, Row: first + uint32(from+run)}] {
					run++
				}
				if run > 0 {
					p.pending.add(msg, at+int(first-s.First)+from, run)
					stored += run
				}
				from += run + 1 // behind a row that the table has
			}
		})
		at += int(s.Rows)
	}
	p.metrics.duplicates.Add(float64(msg.Len() - stored))
	p.pending.totals.Duplicates += uint64(msg.Len() - stored)
	from := h.First()
	if h.Prev.Less(from) {
		from = h.Prev
	}
	chain.add(from, h.Last())
	if stored > 0 && h.Kind == schema.KindLedger {
		p.noteClosed(msg)
	}
	return stored, nil
}

// askTable asks the table about rows that the chain may have forgotten.
func (p *part) askTable(c *chain, msg *table.Message) (map[schema.Cursor]bool, error) {
	if c.ask == askNothing || c.ask == askBelow && !msg.Header.First().Less(c.top()) {
		return nil, nil
	}
	unseen := false
	for _, s := range msg.Header.Spans {
		c.unseen(s, func(uint32, uint32) { unseen = true })
	}
	if !unseen {
		return nil, nil
	}
	p.metrics.lookups.Inc()
	return p.lookup.stored(msg)
}

// noteClosed remembers an epoch that ended.
func (p *part) noteClosed(msg *table.Message) {
	for i := range msg.Len() {
		if msg.Ledger(i).Fact == schema.FactClosed {
			id := msg.Header.Epoch
			if e := p.chains.byEpoch[id]; !e.closed && !slices.Contains(p.pending.closed, id) {
				p.pending.closed = append(p.pending.closed, id)
			}
		}
	}
}

// Bounds of what one undecodable message leaves in the ledger, and of the examples
// in an entry of the log.
const (
	maxFactsPerLetter    = 1 << 10
	maxLettersPerCommit  = 16
	maxLetterReasonBytes = 200
)

// bury puts a message that cannot be decoded into the dead letters, counts it, and
// names its rows in the ledger when its header can be read.
func (p *part) bury(d bus.Delivery, why error) error {
	l := deadletter.Letter{From: deadletter.FromMaterializer, When: p.o.now(), Reason: why.Error(), Subject: d.Subject,
		Incarnation: p.pending.source.Incarnation, Partition: p.partition, Position: d.Seq, Stored: d.Stored, Data: d.Data}
	name, err := p.dead.Put(l)
	kept := err == nil
	p.metrics.deadLetters.Inc()
	if !kept {
		p.metrics.discarded.Inc()
	}
	if err := p.o.Bus.Broadcast(deadletter.Subject, deadletter.Tell(name, l)); err != nil {
		p.log.Debug("nobody is told of the dead letter over the bus", "error", err)
	}
	p.log.Warn("message cannot be decoded", "position", d.Seq, "subject", d.Subject, "error", why, "kept", kept,
		"keep_error", err)
	p.pending.totals.DeadLetters++
	if len(p.pending.letter) < maxLettersPerCommit {
		reason := why.Error()
		p.pending.letter = append(p.pending.letter, commitlog.DeadLetter{Position: d.Seq,
			Reason: reason[:min(len(reason), maxLetterReasonBytes)]})
	}
	h, err := schema.DecodeHeader(d.Data)
	if err != nil || h.Kind != schema.KindVectors && h.Kind != schema.KindStats {
		return nil // nothing is known about its rows
	}
	for _, fact := range deadFacts(h, kept) {
		msg, err := decode(fact)
		if err != nil {
			p.log.Warn("rows of a dead letter cannot be named in the ledger", "position", d.Seq, "error", err)
			return nil
		}
		stored, err := p.store(msg)
		if err != nil {
			return err
		}
		if stored > 0 {
			p.pending.bytes += int64(len(fact))
		}
	}
	return nil
}

// ownShard is added to the shard of chains in which the materializer itself states
// facts: an agent's messages must not cover them.
const ownShard = 1 << 20

// deadFacts makes messages of ledger facts about the rows of a dead letter, one for
// each of its spans. Like those of the agent about refused messages, they belong
// to a chain of their own: hook and layer of the message, and ownShard plus twice
// its shard, plus one for stats. Each message claims only its own row of the chain:
// dead letters come in no order.
func deadFacts(h schema.Header, kept bool) [][]byte {
	stats := 0
	if h.Kind == schema.KindStats {
		stats = 1
	}
	reason := "undecodable"
	fact := schema.FactDeadLetter
	if !kept {
		fact, reason = schema.FactDropped, "dead_letter_full"
	}
	var out [][]byte
	for i, s := range h.Spans {
		if i == maxFactsPerLetter {
			break
		}
		f := schema.Header{Tenant: h.Tenant, Engine: h.Engine, Rank: h.Rank, Epoch: h.Epoch, Hook: h.Hook, Layer: h.Layer,
			Shard: ownShard + 2*h.Shard + stats, Model: h.Model, Revision: h.Revision, WeightsDigest: h.WeightsDigest,
			Quantisation: h.Quantisation, EngineVersion: h.EngineVersion, PolicyVersion: h.PolicyVersion, Prev: s.Start()}
		msg, err := schema.EncodeLedger(f, []schema.LedgerRow{{Seq: s.Seq, Row: s.First, Fact: fact, Count: int32(s.Rows),
			Stride: 1, Rows: uint64(s.Rows), Reason: reason, CaptureSeq: s.Seq, FirstRow: s.First, Hook: h.Hook,
			Layer: int32(h.Layer), Detail: fmt.Sprintf(`{"kind":%q,"shard":%d}`, h.Kind, h.Shard)}})
		if err != nil {
			break // a header that could be read and not written: its rows stay unnamed
		}
		out = append(out, msg)
	}
	return out
}
