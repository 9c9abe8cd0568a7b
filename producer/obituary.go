package producer

import (
	"bytes"
	"fmt"

	"sonde/ring2"
	"sonde/schema"
)

// obituaries is what the agent keeps of a dead epoch beside the epoch itself.
type obituaries struct {
	next     uint64           // lowest seq that the next record of the ring may have
	unput    []ring2.Obituary // records that never got into the ring, in order
	bytes    int              // of them
	missing  []ring2.MissingRange
	unnamed  uint64 // rows of steps that were not kept
	end      *group // of the record that ended the journal
	endSeq   uint64
	expanded bool
}

// closedTold is the place of a closed fact behind all others of the end.
const closedTold = 1<<32 - 2

// obituary takes a record about a writer that died: of its journal, which its
// successor tells.
func (r *rank) obituary(rec *ring2.Record, g *group) error {
	o, err := ring2.ParseObituary(rec.Payload)
	if err != nil {
		return err
	}
	e, err := r.deadEpoch(&o)
	if e == nil || err != nil {
		return err
	}
	if o.Flags&ring2.ObituaryFirst != 0 { // the agent before this one was told, too
		e.obituary.forgetUnput()
	}
	if e.obituary.end != nil || o.Flags&ring2.ObituaryNeverPut == 0 && o.Seq < e.obituary.next {
		return nil // told before
	}
	if err := r.told(e, &o, g); err != nil {
		r.agent.counters.badObituaries.Add(1)
		r.warn("a record of a dead writer's journal does not make sense; it is passed over", "dead_epoch", o.DeadEpoch,
			"seq", o.Seq, "kind", o.Kind, "error", err)
	}
	return nil
}

// deadEpoch is the state of a dead epoch, or nil when this record is of no use:
// the epoch is closed already, or its journal was begun for an agent before this
// one. It is then told again from its start.
func (r *rank) deadEpoch(o *ring2.Obituary) (*epoch, error) {
	id := o.DeadEpoch
	if id == r.own.id {
		return nil, fmt.Errorf("it tells of the death of its own epoch %016x", id)
	}
	if e, known := r.dead[id]; known || o.Flags&ring2.ObituaryFirst == 0 {
		return e, nil
	}
	if r.awaitReader(id) {
		r.dead[id] = nil
		r.forgetClosed()
		return nil, nil
	}
	open := 0
	for _, e := range r.dead {
		if e != nil {
			open++
		}
	}
	if open >= maxDeadEpochs {
		return nil, fmt.Errorf("journals of %d dead epochs are told at once; at most %d", open+1, maxDeadEpochs)
	}
	e := newEpoch(r, id, attachCursor(0))
	e.obituary = &obituaries{}
	r.dead[id] = e
	return e, nil
}

// awaitReader waits until no other rank reads the ring of an epoch, and reports
// whether the agent closed it.
func (r *rank) awaitReader(id uint64) bool {
	for r.failed == nil {
		closed, reader := r.agent.knows(id, r)
		if reader == nil {
			return closed
		}
		r.own.flushAll() // nothing lingers meanwhile
		select {
		case <-r.ctx.Done():
			r.failed = r.ctx.Err()
		case <-r.acks.signal:
			r.takeAcks()
		case <-reader.gone:
		}
	}
	return false
}

func (r *rank) forgetClosed() {
	if len(r.dead) <= maxClosedEpochs {
		return
	}
	for id, e := range r.dead {
		if e == nil {
			delete(r.dead, id)
		}
	}
}

// told expands one record of a journal. Rows that were in the ring and that
// nobody stores are lost; rows that never got there are named at the end, unless
// a MISSING record names them.
func (r *rank) told(e *epoch, o *ring2.Obituary, g *group) error {
	if o.Flags&ring2.ObituaryNeverPut != 0 {
		e.keepUnput(o)
		return nil
	}
	e.obituary.next = o.Seq + 1
	switch o.Kind {
	case ring2.KindEndOfJournal:
		g.refs++ // until the closed fact is acknowledged
		e.obituary.end, e.obituary.endSeq = g, o.Seq
		return nil
	case ring2.KindStep:
		var st openStep
		next, err := st.parse(e, o.Seq, o.Payload)
		if err != nil {
			return err
		}
		e.obituary.next = next
		if err := r.divide(e, &st); err != nil {
			return err
		}
		r.stepFacts(e, &st, g)
		r.captureFacts(e, &st, g)
		return nil
	case ring2.KindMissing:
		if m, err := ring2.ParseMissing(o.Payload); err == nil {
			e.obituary.remember(m)
		}
	}
	return r.control(e, o.Seq, o.Kind, o.Payload, g, false)
}

func (d *obituaries) remember(m ring2.Missing) {
	if len(d.missing)+len(m.Ranges) <= maxMissingKnown {
		d.missing = append(d.missing, m.Ranges...)
	}
}

// forgetUnput drops records that will be told again; they have no place of their
// own to know them by.
func (d *obituaries) forgetUnput() {
	if d.end == nil {
		d.unput, d.bytes, d.unnamed = nil, 0, 0
	}
}

// keepUnput keeps a record that never got into the ring.
func (e *epoch) keepUnput(o *ring2.Obituary) {
	d := e.obituary
	if d.bytes += len(o.Payload); d.bytes <= maxUnput {
		kept := *o
		kept.Payload = bytes.Clone(o.Payload)
		d.unput = append(d.unput, kept)
		return
	}
	if o.Kind == ring2.KindStep {
		var st openStep
		if _, err := st.parse(e, o.Seq, o.Payload); err == nil {
			d.unnamed += rawRows(&st)
		}
	}
}

// expandUnput publishes what never got into the ring, behind everything else.
func (r *rank) expandUnput(e *epoch) {
	d := e.obituary
	if d.expanded {
		return
	}
	d.expanded = true
	e.row = 1 // facts of the end are numbered: see place
	for i := range d.unput {
		o := &d.unput[i]
		var err error
		if o.Kind == ring2.KindStep {
			err = e.unputStep(o)
		} else {
			err = r.control(e, d.endSeq, o.Kind, o.Payload, d.end, false)
		}
		if err != nil {
			r.agent.counters.badObituaries.Add(1)
			r.warn("a record of a dead writer's journal does not make sense; it is passed over", "dead_epoch", e.id,
				"kind", o.Kind, "error", err)
		}
	}
	if d.unnamed > 0 {
		m := ring2.Missing{Ranges: []ring2.MissingRange{{Rows: d.unnamed, Layout: ^uint32(0),
			Reason: ring2.ReasonControlFull}}}
		if err := e.missingFacts(d.endSeq, m, d.end); err != nil {
			r.log.Warn("rows of a dead writer stay unnamed", "dead_epoch", e.id, "error", err)
		}
	}
	d.unput, d.missing = nil, nil
}

// unputStep names the rows of a STEP that never got into the ring and that no
// MISSING record names.
func (e *epoch) unputStep(o *ring2.Obituary) error {
	var st openStep
	if _, err := st.parse(e, o.Seq, o.Payload); err != nil {
		return err
	}
	var m ring2.Missing
	for li, l := range st.layouts {
		for ri := range st.step.Ranges {
			rg := &st.step.Ranges[ri]
			if rg.LayoutMask&(1<<li) == 0 || e.obituary.names(rg, l.ID, st.step.Step) {
				continue
			}
			x := ring2.MissingRange{Number: rg.Number, Position: rg.Position, Count: rg.Count, Pass: rg.Pass, Layout: l.ID,
				Reason: ring2.ReasonControlFull, FirstStep: st.step.Step, LastStep: st.step.Step}
			for _, en := range l.Entries {
				if en.Select == ring2.SelectAll {
					x.Rows += uint64(rg.Count)
				} else if rg.Sampled {
					x.Rows++
				}
			}
			m.Ranges = append(m.Ranges, x)
		}
	}
	return e.missingFacts(e.obituary.endSeq, m, e.obituary.end)
}

// names reports whether a MISSING record names a range of a step.
func (d *obituaries) names(rg *ring2.StepRange, layout uint32, step uint64) bool {
	for i := range d.missing {
		x := &d.missing[i]
		if x.Number == rg.Number && x.Layout == layout && x.Pass == rg.Pass && x.FirstStep <= step && step <= x.LastStep &&
			x.Position <= rg.Position && rg.Position+rg.Count <= x.Position+x.Count {
			return true
		}
	}
	return false
}

// finishDead closes the epochs whose journals ended, and reports whether there
// are none left. Journals that did not end are told again by the next engine.
func (r *rank) finishDead() bool {
	done := true
	for id, e := range r.dead {
		if e == nil || e.obituary.end == nil {
			continue
		}
		r.expandUnput(e)
		if !r.sayClosed(e, schema.LedgerRow{Seq: e.obituary.endSeq, Row: closedTold, Reason: "died",
			Detail: jsonText(map[string]any{"told": "obituary"})}) {
			done = false
			continue
		}
		e.obituary.end.refs--
		r.dead[id] = nil
		r.forgetClosed()
		r.retire()
	}
	return done
}
