package producer

import (
	"fmt"

	"sonde/ring2"
	"sonde/schema"
)

// Places of the facts about the end, whether or not there is the first of them.
const (
	unnamedRow = 1
	closedRow  = 2
)

// finish does what is due when something ended, as far as the acknowledgements
// have come: the epoch of the ring, and those whose journals were told to the end.
// done says that the rank has nothing left to do.
func (r *rank) finish() (done bool) {
	r.handleRefused()
	dead := r.finishDead()
	switch {
	case r.quarantine != nil:
		r.own.flushAll()
		return r.own.inflight == 0 && dead
	case r.ended || r.bye != nil:
		r.finishOwn()
	}
	return r.ended && r.own.closedDone && dead
}

// finishOwn closes the epoch of the ring: everything else is acknowledged first.
func (r *rank) finishOwn() {
	e := r.own
	if e.closedDone {
		return
	}
	if !r.lastWords {
		r.lastWords = true
		r.sayLastWords()
	}
	f := schema.LedgerRow{Seq: r.endSeq(), Row: closedRow, Reason: "died", Detail: r.counterDetail()}
	if r.bye != nil {
		f.Reason = "bye"
	}
	if !r.sayClosed(e, f) {
		return
	}
	if r.bye != nil {
		r.bye.refs--
		r.retire()
	}
}

// endSeq is where the facts about the end of the epoch go: at the BYE record, or
// behind the last record.
func (r *rank) endSeq() uint64 {
	if r.bye != nil {
		return r.bye.next - 1
	}
	return max(r.nextSeq, r.s.ClaimSeq())
}

// sayLastWords publishes what only the end shows: captures that the engine never
// committed, and rows that no record names.
func (r *rank) sayLastWords() {
	e := r.own
	if st := r.step; st != nil {
		r.step = nil
		if err := r.endStep(st); err != nil {
			r.quarantine = err
			return
		}
	}
	rows := r.s.Producer().CapturedRows - r.base.rows
	if rows <= r.namedRows || rows > maxMissingRows {
		return
	}
	rows -= r.namedRows
	e.factIn(atEnd, "", schema.LedgerRow{Seq: r.endSeq(), Row: unnamedRow, Fact: schema.FactMissing, Rows: rows,
		Reason: reasonUnnamed, Layer: -1}, nil)
	r.account.capturedDropped(reasonUnnamed, rows)
}

// counterDetail is what the writer counted over its life.
func (r *rank) counterDetail() string {
	c := r.s.Producer()
	dropped := map[string]uint64{}
	for i, n := range c.DroppedRows {
		if n > 0 {
			dropped[ring2.Reason(i).String()] = n
		}
	}
	return jsonText(map[string]any{"captured_rows": c.CapturedRows, "dropped_rows": dropped, "aborted_rows": c.AbortedRows,
		"steps": c.Steps})
}

// sayClosed publishes the closed fact of an epoch when everything else is
// acknowledged. It reports true once, when the fact itself is.
func (r *rank) sayClosed(e *epoch, f schema.LedgerRow) bool {
	e.flushAll()
	if e.inflight > 0 || len(r.refused) > 0 {
		return false
	}
	if !e.closedSent {
		e.closedSent = true
		f.Fact, f.Layer = schema.FactClosed, -1
		kind := atEnd
		if e.obituary != nil {
			kind = asTold
		}
		e.factIn(kind, "", f, nil)
		e.flushAll()
		return false
	}
	if r.failed != nil {
		return false
	}
	e.closedDone = true
	// Of an engine that died, the obituary is still welcome: it names what the ring only
	// counts, and the count of what was missing already when the agent attached may
	// hide such rows.
	if e.obituary != nil || r.bye != nil {
		r.agent.close(e.id)
	}
	r.agent.counters.epochsClosed.Add(1)
	r.log.Info("epoch closed", "closed_epoch", fmt.Sprintf("%016x", e.id), "reason", f.Reason)
	return true
}
