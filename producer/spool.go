package producer

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"sonde/bus"
	"sonde/schema"
	"sonde/spool"
)

// SpoolOptions say where messages go while the bus is away. Zero numbers mean the
// defaults of package spool.
type SpoolOptions struct {
	Dir          string // "": nowhere, publishing waits
	MaxBytes     int64
	SyncBytes    int64
	SyncInterval time.Duration
	After        time.Duration
	WhenFull     spool.WhenFull // "": wait under mode complete, else drop_newest
}

// openSpool opens the spool, and counts the rows that it holds as captured and in
// flight: an agent before this one read them from a ring that they have left.
func (a *Agent) openSpool() error {
	o := a.o.Spool
	if o.Dir == "" {
		return nil
	}
	if o.WhenFull == "" {
		o.WhenFull = spool.DropNewest
		if a.o.Policy.Mode == Complete {
			o.WhenFull = spool.Wait
		}
	}
	s, err := spool.Open(spool.Options{Dir: o.Dir, Bus: a.o.Bus, MaxBytes: o.MaxBytes, WindowBytes: a.o.InflightBytes,
		SyncBytes: o.SyncBytes, SyncInterval: o.SyncInterval, After: o.After, WhenFull: o.WhenFull, Logger: a.log,
		Registerer: a.o.Registerer, Handlers: spool.Handlers{Lessen: lessen, Damaged: damagedFacts, Refused: a.refusedLater,
			Settled: a.settled}})
	if err != nil {
		return err
	}
	a.spool = s
	for owner, rows := range s.Found() { // also of ranks that are there no more
		a.move(owner, func(c *Counts) {
			c.Captured += rows
			c.InFlight += rows
		})
	}
	return nil
}

// Spool is the state of the spool; all of it is zero without one.
func (a *Agent) Spool() spool.Stats {
	if a.spool == nil {
		return spool.Stats{}
	}
	return a.spool.Stats()
}

// Close lets go of the spool. What it holds stays for the next agent. It is called
// after Run and each Attach have returned, and before the bus is closed.
func (a *Agent) Close() error {
	if a.spool == nil {
		return nil
	}
	return a.spool.Close()
}

// ownerOf names a rank in the spool.
func ownerOf(n rankName) string { return strconv.Itoa(n.rank) + "/" + n.engine }

// rankOf undoes ownerOf.
func rankOf(owner string) rankName {
	number, engine, _ := strings.Cut(owner, "/")
	rank, err := strconv.Atoi(number)
	if err != nil {
		return rankName{engine: owner}
	}
	return rankName{engine, rank}
}

// move changes what is counted for a rank beside the rings that are read now.
func (a *Agent) move(owner string, change func(*Counts)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	name := rankOf(owner)
	c, known := a.before[name]
	if !known {
		c.Dropped = map[string]uint64{}
	}
	change(&c)
	a.before[name] = c
}

// spooled moves the rows of a message from the account of its ring to that of the
// spool: they stay in flight when the ring is gone.
func (a *Agent) spooled(r *rank, rows uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r.account.handOver(rows)
	c := a.before[r.name]
	c.Captured += rows
	c.InFlight += rows
	a.before[r.name] = c
}

// settled books the end of rows that were in the spool.
func (a *Agent) settled(owner string, rows uint64, what spool.Outcome) {
	a.move(owner, func(c *Counts) {
		c.InFlight -= rows
		switch what {
		case spool.Discarded:
			c.Dropped[reasonSpoolFull] += rows
		case spool.Damaged:
			c.Dropped[reasonSpoolDamaged] += rows
		default:
			c.Acknowledged += rows
		}
	})
}

// refusedLater takes a message from the spool that the bus can never take.
func (a *Agent) refusedLater(m spool.Message, why error) []bus.Message {
	h, err := schema.DecodeHeader(m.Data)
	if err != nil {
		panic("BUG: our own message does not decode: " + err.Error())
	}
	f := a.keep(h.Kind, m.Message, why)
	rows := m.RowCount()
	if rows == 0 {
		return nil
	}
	a.move(m.Owner, func(c *Counts) {
		c.InFlight -= rows
		if f.Fact == schema.FactDeadLetter {
			c.DeadLettered += rows
		} else {
			c.Dropped[f.Reason] += rows
		}
	})
	b, err := schema.Decode(m.Data)
	if err != nil {
		panic("BUG: our own message does not decode: " + err.Error())
	}
	facts := rowRuns(b, func(int) bool { return true })
	return []bus.Message{spoolFacts(b.Header, facts, f)}
}

// lessen takes the rows up to a priority out of a message: see spool.Handlers.
func lessen(m spool.Message, priority int32) (kept *spool.Message, facts []bus.Message, err error) {
	b, err := schema.Decode(m.Data)
	if err != nil {
		return nil, nil, err
	}
	if uint64(b.Len()) != m.RowCount() {
		return nil, nil, fmt.Errorf("it has %d rows, and priorities of %d", b.Len(), m.RowCount())
	}
	out := make([]bool, 0, b.Len())
	rest := m
	rest.Rows = nil
	for _, r := range m.Rows {
		for range r.Count {
			out = append(out, r.Priority <= priority)
		}
		if r.Priority > priority {
			rest.Rows = append(rest.Rows, r)
		}
	}
	dropped := schema.LedgerRow{Fact: schema.FactDropped, Reason: reasonSpoolFull}
	runs := rowRuns(b, func(i int) bool { return out[i] })
	if len(rest.Rows) == 0 {
		return nil, []bus.Message{spoolFacts(b.Header, runs, dropped)}, nil
	}
	// A message of facts says that there are no others between its first and its last:
	// what is left of this message may yet have some.
	for i := range runs {
		facts = append(facts, spoolFacts(b.Header, runs[i:i+1], dropped))
	}
	var h schema.Header
	if rest.Data, h, err = without(b, out); err != nil {
		return nil, nil, err
	}
	rest.ID = schema.MessageID(h)
	return &rest, facts, nil
}

// without encodes the rows of a message that are not out.
func without(b *schema.Batch, out []bool) ([]byte, schema.Header, error) {
	h := b.Header
	h.Spans = nil
	if h.Kind == schema.KindStats {
		var rows []schema.StatsRow
		for i := range b.Len() {
			if !out[i] {
				s := b.Stats(i)
				h.AddRow(s.Seq, s.Row)
				rows = append(rows, s)
			}
		}
		data, err := schema.EncodeStats(h, rows)
		return data, h, err
	}
	enc, err := schema.NewVectorEncoder(h)
	if err != nil {
		return nil, h, err
	}
	for i := range b.Len() {
		if !out[i] {
			if err := enc.Append(b.Vector(i)); err != nil {
				return nil, h, err
			}
		}
	}
	return enc.Encode(h.Prev)
}

// damagedFacts names the rows of a message whose data were changed on the disk, where
// its header can be proved by the id of the message.
func damagedFacts(m spool.Message) []bus.Message {
	h, err := schema.DecodeHeader(m.Data)
	if err != nil || schema.MessageID(h) != m.ID || h.Kind != schema.KindVectors && h.Kind != schema.KindStats {
		return nil
	}
	var rows []schema.LedgerRow
	for _, s := range h.Spans {
		rows = append(rows, schema.LedgerRow{Seq: s.Seq, CaptureSeq: s.Seq, FirstRow: s.First, Count: int32(s.Rows),
			Stride: 1, Rows: uint64(s.Rows), Hook: h.Hook, Layer: int32(h.Layer)})
	}
	return []bus.Message{spoolFacts(h, rows, schema.LedgerRow{Fact: schema.FactDropped, Reason: reasonSpoolDamaged})}
}

// spoolShard is added to the shard of chains of facts about messages that were in the
// spool. Such a message may be published again in other pieces, by an agent that reads
// its rows anew: facts are placed by the end of what they name, so that those about a
// longer piece are not taken for those about a shorter one.
const spoolShard = 1 << 21

// spoolFacts makes one message of facts about rows: what is about their message comes
// from about.
func spoolFacts(of schema.Header, rows []schema.LedgerRow, about schema.LedgerRow) bus.Message {
	h := of
	h.Kind, h.Spans, h.Shard = schema.KindLedger, nil, spoolShard+2*of.Shard
	if of.Kind == schema.KindStats {
		h.Shard++
	}
	for i := range rows {
		f := &rows[i]
		f.Fact, f.Reason, f.Detail = about.Fact, about.Reason, about.Detail
		f.Row = f.FirstRow + uint32(f.Count-1)
		h.AddRow(f.Seq, f.Row)
	}
	h.Prev = h.First()
	data, err := schema.EncodeLedgerChain(h, rows)
	if err != nil {
		panic("BUG: facts about a message do not encode: " + err.Error())
	}
	return bus.Message{Subject: schema.Subject(h), ID: schema.MessageID(h), Data: data}
}
