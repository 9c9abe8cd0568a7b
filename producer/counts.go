package producer

import (
	"fmt"

	"sonde/ring2"
	"sonde/schema"
)

// stageCounts is what the agent tells of its ranks: what their writers counted, what
// it made of the rows since it attached, and what its spool holds.
func (a *Agent) stageCounts() []schema.StageCounts {
	a.mu.Lock()
	ranks := make([]*rank, 0, len(a.ranks))
	for r := range a.ranks {
		ranks = append(ranks, r)
	}
	var out []schema.StageCounts
	for name, c := range a.before {
		if c.InFlight > 0 {
			out = append(out, schema.StageCounts{Stage: schema.StageSpool, Engine: name.engine, Rank: name.rank,
				Epoch: fmt.Sprintf("%016x", 0), Rows: map[string]uint64{"in_flight": c.InFlight}})
		}
	}
	a.mu.Unlock()
	for _, r := range ranks {
		epoch := fmt.Sprintf("%016x", r.own.id)
		writer, claim := r.s.Producer(), r.s.ClaimSeq()
		offered := map[string]uint64{"captured": writer.CapturedRows, "aborted": writer.AbortedRows}
		for reason, rows := range writer.DroppedRows {
			if rows > 0 {
				offered["dropped/"+ring2.Reason(reason).String()] = rows
			}
		}
		read := max(r.readTo.Load(), r.from)
		out = append(out, schema.StageCounts{Stage: schema.StageEngine, Engine: r.name.engine, Rank: r.name.rank,
			Epoch: epoch, ToSeq: max(claim, read), Rows: offered},
			schema.StageCounts{Stage: schema.StageAgent, Engine: r.name.engine, Rank: r.name.rank, Epoch: epoch,
				FromSeq: r.from, ToSeq: read, Rows: r.account.snapshot().classes()})
	}
	return out
}

// classes names the classes of the ledger that hold rows.
func (c Counts) classes() map[string]uint64 {
	out := map[string]uint64{"captured": c.Captured, "acknowledged": c.Acknowledged, "in_flight": c.InFlight}
	for class, rows := range map[string]uint64{"aborted": c.Aborted, "lost": c.Lost, "dead_lettered": c.DeadLettered,
		"filtered": c.Filtered} {
		if rows > 0 {
			out[class] = rows
		}
	}
	for reason, rows := range c.Dropped {
		if rows > 0 {
			out["dropped/"+reason] = rows
		}
	}
	return out
}
