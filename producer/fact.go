package producer

import (
	"fmt"
	"math"
	"slices"

	"sonde/ring2"
	"sonde/schema"
)

// stepFacts publishes what was expected of a step: one fact for each unit, on
// even rows, and behind it on the odd row the fact that the agent dropped it.
// Identities so depend on the STEP alone: a step that is read again, perhaps with
// another budget, names each unit as before. Own steps are counted in the law.
func (r *rank) stepFacts(e *epoch, st *openStep, g *group) {
	sc := &r.scratch
	ui, row := 0, uint32(0)
	for ci := range sc.cells {
		c := &sc.cells[ci]
		filtered := r.filteredRows(c, st)
		if e == r.own {
			r.account.filtered(filtered)
		}
		base := e.cellFact(c, st)
		base.FilteredRows = filtered
		if ui == len(sc.units) || sc.units[ui].cell != ci {
			base.Row = row
			row += 2
			e.fact(c.q.tenant, base, g)
			continue
		}
		for ; ui < len(sc.units) && sc.units[ui].cell == ci; ui++ {
			u := &sc.units[ui]
			f := base
			base.FilteredRows = 0
			group := &c.plan.groups[u.group]
			position, _, _ := tokens(group, &st.step.Ranges[c.rng], c)
			f.Row, f.Position, f.Count = row, int32(position)+int32(u.run.first), int32(u.run.count)
			f.Stride, f.FirstRow = int32(u.run.stride), uint32(u.first)
			f.Entries, f.Rows = group.text, u.rows(group)
			e.fact(c.q.tenant, f, g)
			if reason, kind := r.droppedUnit(e, st, c, u); reason != "" && f.Outcome == schema.OutcomeCaptured {
				f.Row, f.Fact, f.Outcome, f.Reason, f.FilteredRows = row+1, schema.FactDropped, "", reason, 0
				e.factIn(kind, c.q.tenant, f, g)
			}
			row += 2
			if e == r.own {
				r.countUnit(u, f.Rows, &st.captures[c.layout])
			}
		}
	}
}

// readBefore reports whether an agent before this one may have read a step.
func (r *rank) readBefore(st *openStep) bool { return st.seq < r.base.claim }

// droppedUnit says why the agent drops a unit, or may have dropped it: an agent
// before this one may have been over its budget, and what it published since then
// says that the rows do not exist. Where they are stored, that they are counts.
func (r *rank) droppedUnit(e *epoch, st *openStep, c *cell, u *unit) (reason string, kind int) {
	chosen := u.reason == "" || u.reason == reasonBudget
	again := e == r.own && r.readBefore(st) && st.captures[c.layout].state == captureRead
	switch {
	case chosen && again && r.agent.policy.budget > 0:
		return reasonBudget, readAnew
	case u.reason == reasonBudget:
		return reasonBudget, overBudget
	}
	return u.reason, asRead
}

// policyFacts says of rows that this policy filters that they are dropped, in
// steps that an agent before this one may have read with a policy that chose them.
// Where nobody expected them, that counts nothing.
func (r *rank) policyFacts(st *openStep, g *group) {
	sc := &r.scratch
	row := uint32(firstPolicyRow)
	for ci := range sc.cells {
		c := &sc.cells[ci]
		if st.captures[c.layout].state != captureRead || !c.known {
			continue
		}
		of := sc.of[c.of:]
		for gi := range c.plan.groups {
			group := &c.plan.groups[gi]
			position, n, first := tokens(group, &st.step.Ranges[c.rng], c)
			f := r.own.cellFact(c, st)
			f.Fact, f.Outcome, f.Reason, f.Entries = schema.FactDropped, "", reasonPolicy, group.text
			for k := 0; k < n; k++ {
				from := k
				for k < n && of[k] < 0 {
					k++
				}
				if k > from {
					f.Row, f.Position, f.Count, f.FirstRow = row, int32(position)+int32(from), int32(k-from), uint32(first+from)
					f.Rows = uint64(f.Count) * uint64(len(group.entries))
					row++
					r.own.factIn(readAnew, c.q.tenant, f, g)
				}
			}
			of = of[n:]
		}
	}
}

// firstPolicyRow is where the facts of policyFacts are numbered from, behind those
// of stepFacts.
const firstPolicyRow = 1 << 25

// cellFact is what the expected facts of a cell have in common.
func (e *epoch) cellFact(c *cell, st *openStep) schema.LedgerRow {
	rg, capture := &st.step.Ranges[c.rng], &st.captures[c.layout]
	f := schema.LedgerRow{Seq: st.seq, Fact: schema.FactExpected, Number: rg.Number, Request: c.q.id, Sample: c.q.sample,
		Pass: int32(rg.Pass), Phase: uint8(rg.Phase), Position: int32(rg.Position), Stride: 1, Step: st.step.Step,
		Layout: st.layouts[c.layout].ID, Outcome: schema.OutcomeCaptured, CaptureSeq: capture.seq, Layer: -1}
	if capture.outcome != ring2.ReasonNone {
		f.Outcome, f.Reason, f.CaptureSeq = schema.OutcomeDropped, capture.outcome.String(), 0
	}
	return f
}

// filteredRows is how many rows of a cell the policy did not choose.
func (r *rank) filteredRows(c *cell, st *openStep) uint64 {
	rg := &st.step.Ranges[c.rng]
	of := r.scratch.of[c.of:]
	var n uint64
	for gi := range c.plan.groups {
		g := &c.plan.groups[gi]
		_, count, _ := tokens(g, rg, c)
		for _, u := range of[:count] {
			if u < 0 {
				n += uint64(len(g.entries))
			}
		}
		of = of[count:]
	}
	return n
}

// countUnit books the rows of a unit in the live ledger.
func (r *rank) countUnit(u *unit, rows uint64, c *capture) {
	switch {
	case c.state == captureDropped:
		r.account.capturedDropped(c.outcome.String(), rows)
	case u.reason != "":
		r.account.capturedDropped(u.reason, rows)
	case c.state == captureAborted:
		r.account.capturedAborted(rows)
	case c.state == captureWanted:
		r.account.capturedLost(rows)
	default:
		r.account.captured(rows)
	}
}

// captureFacts names captures that were aborted, or lost with the engine: one
// fact for each capture and tenant, about all rows of that capture.
func (r *rank) captureFacts(e *epoch, st *openStep, g *group) {
	sc := &r.scratch
	for li := range st.captures {
		capture := &st.captures[li]
		fact := schema.FactAborted
		if capture.state == captureWanted {
			fact = schema.FactLost
		} else if capture.state != captureAborted {
			continue
		}
		rows := map[string]uint64{}
		var tenants []string
		for i := range sc.cells {
			// Another policy than ours may have chosen rows of any of them.
			c := &sc.cells[i]
			if _, seen := rows[c.q.tenant]; c.layout == li && c.known && !seen && (e != r.own || r.readBefore(st)) {
				rows[c.q.tenant] = 0
				tenants = append(tenants, c.q.tenant)
			}
		}
		for i := range sc.units {
			u := &sc.units[i]
			c := &sc.cells[u.cell]
			if c.layout != li || u.reason != "" {
				continue
			}
			if _, seen := rows[c.q.tenant]; !seen {
				tenants = append(tenants, c.q.tenant)
			}
			rows[c.q.tenant] += u.rows(&c.plan.groups[u.group])
		}
		for _, t := range tenants {
			kind := asRead
			if e != r.own {
				kind = asTold
			} else if rows[t] == 0 {
				kind = readAnew
			}
			e.factIn(kind, t, schema.LedgerRow{Seq: capture.seq, Fact: fact, Step: st.step.Step, Layout: st.layouts[li].ID,
				Rows: rows[t], CaptureSeq: capture.seq, Layer: -1}, g)
		}
	}
}

// missingFacts names rows that were never in the ring: a MISSING record, or a
// journalled STEP. The policy is asked as if they had been. Of ranges that the
// writer merged only the hull is known, and the exact number of rows.
func (e *epoch) missingFacts(seq uint64, m ring2.Missing, g *group) error {
	r := e.r
	tokens := uint64(0)
	for _, x := range m.Ranges {
		if tokens += uint64(x.Count); tokens > maxMissingTokens || x.Rows > maxMissingRows ||
			uint64(x.Position)+uint64(x.Count) > math.MaxInt32 || x.Pass > math.MaxInt32 {
			return fmt.Errorf("it names %d rows at position %d, %d tokens, pass %d; at most %d tokens in all", x.Rows,
				x.Position, x.Count, x.Pass, maxMissingTokens)
		}
	}
	row := uint32(0)
	put := func(tenant string, f schema.LedgerRow) {
		f.Row = row
		if row++; e.row > 0 {
			f.Row = e.place()
		}
		e.fact(tenant, f, g)
		if e == r.own {
			r.account.filtered(f.FilteredRows)
			r.account.capturedDropped(f.Reason, f.Rows)
		}
	}
	for _, x := range m.Ranges {
		if e == r.own && seq >= r.base.claim {
			r.namedRows += x.Rows
		}
		q, known := e.find(x.Number)
		f := schema.LedgerRow{Seq: seq, Fact: schema.FactMissing, Number: x.Number, Request: q.id, Sample: q.sample,
			Pass: int32(x.Pass), Position: int32(x.Position), Count: int32(x.Count), Stride: 1, Step: x.FirstStep,
			Layout: x.Layout, Rows: x.Rows, Reason: x.Reason.String(), Layer: -1}
		lay := e.layouts[x.Layout]
		if lay == nil || !known {
			put(q.tenant, f)
			continue
		}
		for _, f := range e.missingUnits(f, x, e.plan(lay, q, known), q) {
			put(q.tenant, f)
		}
	}
	return nil
}

// missingUnits divides a missing range into facts as the policy chooses.
func (e *epoch) missingUnits(f schema.LedgerRow, x ring2.MissingRange, p *plan, q *request) []schema.LedgerRow {
	sampled := uint64(0) // tokens with rows of the sampled entries
	allRows := uint64(x.Count) * uint64(p.perAll)
	if p.perSampled > 0 && x.Rows > allRows {
		sampled = min((x.Rows-allRows)/uint64(p.perSampled), uint64(x.Count))
	}
	var out []schema.LedgerRow
	for gi := range p.groups {
		g := &p.groups[gi]
		position, n := int64(x.Position), int(x.Count)
		if g.sampled { // the last ones: a range is sampled at its end
			position, n = position+int64(n)-int64(sampled), int(sampled)
		}
		for _, run := range e.r.agent.policy.choose(g, position, q.prompt, n, nil, nil) {
			u := f
			u.Position, u.Count = int32(position)+int32(run.first), int32(run.count)
			u.Stride, u.Entries = int32(run.stride), g.text
			u.Rows = uint64(run.count) * uint64(len(g.entries))
			out = append(out, u)
		}
	}
	if full := allRows + sampled*uint64(p.perSampled); x.Rows != full {
		scale(out, x, full)
	}
	if len(out) == 0 {
		f.Count, f.Rows = 0, 0
		out = append(out, f)
	}
	chosen := uint64(0)
	for i := range out {
		chosen += out[i].Rows
	}
	out[0].FilteredRows = x.Rows - min(x.Rows, chosen)
	return slices.Clip(out)
}

// scale shares the rows of a merged range out among its units: the hull would
// hold full rows, of which the writer dropped x.Rows.
func scale(units []schema.LedgerRow, x ring2.MissingRange, full uint64) {
	detail := jsonText(map[string]any{"merged": true, "rows": x.Rows, "last_step": x.LastStep})
	share, sum := float64(x.Rows)/float64(max(full, 1)), uint64(0)
	shared := uint64(0)
	for i := range units {
		sum += units[i].Rows
		upTo := min(uint64(math.Round(float64(sum)*share)), x.Rows)
		units[i].Rows, units[i].Detail = upTo-shared, detail
		shared = upTo
	}
}
