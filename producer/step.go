package producer

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"sonde/ring2"
	"sonde/schema"
)

// statsRowBytes is what a stats row counts in the byte budget.
const statsRowBytes = 96

// openStep is a STEP whose CAPTUREs are being read. They follow it at once.
type openStep struct {
	r        *rank
	seq      uint64
	step     ring2.Step
	layouts  []*layout
	captures []capture         // by layout of the step
	entries  []ring2.EntryRows // of all captures
	at       int               // next layout that waits for its capture
	g        *group
}

// capture is what became of one layout of a step.
type capture struct {
	outcome ring2.Reason
	seq     uint64
	wallNS  int64 // when its copy was complete
	state   captureState
	entries []ring2.EntryRows
}

type captureState uint8

const (
	captureWanted captureState = iota // not read yet; after the end: lost
	captureRead
	captureAborted
	captureDropped
	captureCorrupt
)

// cell is one range of one layout of a step: rows of one request.
type cell struct {
	layout, rng int
	q           *request
	known       bool
	plan        *plan
	firstAll    int // rows of the cell in its capture, entries that select all
	firstOne    int // the same, entries that select sampled rows
	of          int // index in stepScratch.of of its first group's tokens
}

// unit is one run of equal choice: what one expected fact names.
type unit struct {
	cell, group int
	run         run
	first       int // row in the capture
	as          As
	reason      string // why the agent drops it, empty: it does not
	bytes       int64
}

// stepScratch is memory that is reused from step to step.
type stepScratch struct {
	cells []cell
	units []unit
	runs  []run
	of    []int32 // for each cell, group and token: index in units, or -1
	order []int
	stats []float64
	open  []*chain
	acks  []answer
}

// beginStep takes a STEP record.
func (r *rank) beginStep(rec *ring2.Record, g *group) error {
	st := &r.stepMem
	next, err := st.parse(r.own, rec.Seq, rec.Payload)
	if err != nil {
		return err
	}
	st.g, g.next = g, next
	r.step = st
	return st.skipDropped()
}

// parse reads and checks a STEP record of an epoch, and returns the seq behind its
// last capture. It reuses the memory of st.
func (st *openStep) parse(e *epoch, seq uint64, payload []byte) (next uint64, err error) {
	st.r, st.seq, st.at, st.g, next = e.r, seq, 0, nil, seq+1
	if err := ring2.ParseStepInto(&st.step, payload); err != nil {
		return 0, err
	}
	st.layouts, st.captures, st.entries = st.layouts[:0], st.captures[:0], st.entries[:0]
	for _, l := range st.step.Layouts {
		layout := e.layouts[l.Layout]
		if layout == nil {
			return 0, fmt.Errorf("it names layout %d, which was never defined", l.Layout)
		}
		c := capture{outcome: l.Outcome, seq: l.CaptureSeq}
		if l.Outcome != ring2.ReasonNone {
			c.state = captureDropped
		} else if next++; c.seq != next-1 {
			return 0, fmt.Errorf("its capture of layout %d has seq %d; %d is next", l.Layout, c.seq, next-1)
		}
		st.layouts, st.captures = append(st.layouts, layout), append(st.captures, c)
	}
	tokens := uint64(0)
	for i := range st.step.Ranges {
		rg := &st.step.Ranges[i]
		if uint64(rg.Position)+uint64(rg.Count) > math.MaxInt32 || rg.Pass > math.MaxInt32 {
			return 0, fmt.Errorf("its range %d has position %d, %d tokens and pass %d; at most %d", i, rg.Position, rg.Count,
				rg.Pass, math.MaxInt32)
		}
		if tokens += uint64(rg.Count); tokens > maxStepTokens {
			return 0, fmt.Errorf("it has more than %d tokens", maxStepTokens)
		}
	}
	return next, nil
}

// skipDropped moves to the next layout that has a capture, and expands the step
// when there is none left.
func (st *openStep) skipDropped() error {
	for st.at < len(st.captures) && st.captures[st.at].state == captureDropped {
		st.at++
	}
	if st.at < len(st.captures) {
		return nil
	}
	st.r.step = nil
	return st.r.endStep(st)
}

// take takes the next record of the ring: the wanted capture, or, when the engine
// died before it committed that one, what follows it.
func (st *openStep) take(rec *ring2.Record) error {
	for st.captures[st.at].seq != rec.Seq {
		lost := st.r.s.Lost()
		if _, isLost := slices.BinarySearch(lost, st.captures[st.at].seq); !isLost {
			return fmt.Errorf("the capture of step %d and layout %d with seq %d was announced before it", st.step.Step,
				st.layouts[st.at].ID, st.captures[st.at].seq)
		}
		st.at++ // as it is, it is lost
		if err := st.skipDropped(); err != nil {
			return err
		}
		if st.r.step == nil {
			return st.r.record(rec)
		}
	}
	c := &st.captures[st.at]
	if rec.Kind != ring2.KindCapture || rec.Step != st.step.Step || rec.Layout != st.layouts[st.at].ID {
		return fmt.Errorf("the capture of step %d and layout %d was announced in its place", st.step.Step,
			st.layouts[st.at].ID)
	}
	st.g.bytes += int64(len(rec.Payload))
	st.r.heldBytes += int64(len(rec.Payload))
	c.state, c.wallNS = captureAborted, st.r.s.WallNS(rec.CaptureNS)
	if !rec.Aborted() {
		n := len(st.entries)
		var err error
		st.entries, err = ring2.AppendEntries(st.entries, &st.layouts[st.at].Layout, &st.step, st.at, rec.Payload)
		c.state, c.entries = captureRead, st.entries[n:]
		if err != nil {
			st.r.agent.counters.corrupt.Add(1)
			st.r.warn("a capture does not fit its layout; its rows are dropped", "seq", rec.Seq, "error", err)
			c.state = captureCorrupt
		}
	}
	st.at++
	return st.skipDropped()
}

// endStep expands a step whose captures were all read, or will never be.
func (r *rank) endStep(st *openStep) error {
	if st.seq >= r.base.claim {
		r.namedRows += rawRows(st)
	}
	if err := r.divide(r.own, st); err != nil {
		return err
	}
	r.spend(st)
	r.stepFacts(r.own, st, st.g)
	if r.readBefore(st) {
		r.policyFacts(st, st.g)
	}
	if err := r.stepRows(st); err != nil {
		return err
	}
	r.captureFacts(r.own, st, st.g)
	st.g.closed = true
	if len(r.agent.o.Live) > 0 {
		r.flushLive(true)
		r.flushLive(false)
	}
	r.agent.counters.steps.Add(1)
	return nil
}

// flushLive closes the batches that a detector waits for: requests, then rows.
func (r *rank) flushLive(requests bool) {
	for _, c := range r.takeOpen() {
		if c.live && requests == (c.key.kind == schema.KindRequests) {
			c.flush()
		}
	}
}

// rawRows is how many rows the writer counted for a step, before any policy.
func rawRows(st *openStep) uint64 {
	var n uint64
	for i, l := range st.layouts {
		for _, rg := range st.step.Ranges {
			if rg.LayoutMask&(1<<i) == 0 {
				continue
			}
			for _, en := range l.Entries {
				if en.Select == ring2.SelectAll {
					n += uint64(rg.Count)
				} else if rg.Sampled {
					n++
				}
			}
		}
	}
	return n
}

// divide fills the scratch with the cells of a step and their units.
func (r *rank) divide(e *epoch, st *openStep) error {
	sc := &r.scratch
	sc.cells, sc.units, sc.of = sc.cells[:0], sc.units[:0], sc.of[:0]
	for li := range st.layouts {
		all, one := 0, 0
		for ri := range st.step.Ranges {
			rg := &st.step.Ranges[ri]
			if rg.LayoutMask&(1<<li) == 0 {
				continue
			}
			q, known := e.find(rg.Number)
			c := cell{layout: li, rng: ri, q: q, known: known, plan: e.plan(st.layouts[li], q, known), firstAll: all,
				firstOne: one, of: len(sc.of)}
			if len(sc.of)+len(c.plan.groups)*(int(rg.Count)+1) > maxStepChoices {
				return fmt.Errorf("its ranges and layouts ask for more than %d choices", maxStepChoices)
			}
			r.addCell(c, st)
			all += int(rg.Count)
			if rg.Sampled {
				one++
			}
		}
	}
	return nil
}

// addCell adds a cell and the units of its groups.
func (r *rank) addCell(c cell, st *openStep) {
	sc, p := &r.scratch, r.agent.policy
	rg := &st.step.Ranges[c.rng]
	at := len(sc.cells)
	sc.cells = append(sc.cells, c)
	for gi := range c.plan.groups {
		g := &c.plan.groups[gi]
		position, n, first := tokens(g, rg, &c)
		from, base := len(sc.of), int32(len(sc.units))
		sc.runs = p.choose(g, position, c.q.prompt, n, sc.runs[:0], &sc.of)
		for i := from; i < len(sc.of) && base > 0; i++ {
			if sc.of[i] >= 0 {
				sc.of[i] += base
			}
		}
		for _, run := range sc.runs {
			u := unit{cell: at, group: gi, run: run, first: first + run.first, as: AsTensor}
			if run.rule >= 0 {
				u.as = p.rules[run.rule].As
			}
			u.judge(&c, g, &st.captures[c.layout])
			sc.units = append(sc.units, u)
		}
	}
}

// judge finds out why the agent must drop a unit, and how many bytes it has.
func (u *unit) judge(c *cell, g *planGroup, capture *capture) {
	switch {
	case !c.known:
		u.reason = reasonUnknownRequest
	case capture.state == captureCorrupt:
		u.reason = reasonCorrupt
	case u.as == AsStats:
		u.bytes = int64(u.run.count*len(g.entries)) * statsRowBytes
	case g.oversize:
		u.reason = reasonOversize
	default:
		u.bytes = int64(u.run.count) * g.rowBytes
		if capture.state != captureRead {
			return
		}
		for _, entry := range g.ragged {
			for k := range u.run.count {
				n := len(capture.entries[entry].Row(u.first + k*u.run.stride))
				u.bytes += int64(n)
				if n > maxRowBytes {
					u.reason = reasonOversize
				}
			}
		}
	}
}

// tokens says which tokens of a range a group has rows of: their first position,
// how many, and the row of the first in the capture.
func tokens(g *planGroup, rg *ring2.StepRange, c *cell) (position int64, n, first int) {
	if !g.sampled {
		return int64(rg.Position), int(rg.Count), c.firstAll
	}
	if !rg.Sampled || rg.Count == 0 {
		return 0, 0, c.firstOne
	}
	return int64(rg.Position) + int64(rg.Count) - 1, 1, c.firstOne
}

// spend takes the bytes of the step's units from the budget, highest priority
// first, and drops what is left over.
func (r *rank) spend(st *openStep) {
	if r.agent.policy.budget == 0 {
		return
	}
	sc := &r.scratch
	sc.order = sc.order[:0]
	for i := range sc.units {
		if sc.units[i].reason == "" && st.captures[sc.cells[sc.units[i].cell].layout].state == captureRead {
			sc.order = append(sc.order, i)
		}
	}
	slices.SortStableFunc(sc.order, func(a, b int) int {
		rules := r.agent.policy.rules
		return cmp.Compare(rules[sc.units[b].run.rule].Priority, rules[sc.units[a].run.rule].Priority)
	})
	for _, i := range sc.order {
		if !r.agent.budget.take(sc.units[i].bytes) {
			sc.units[i].reason = reasonBudget
		}
	}
}

// priority is that of the rule that chose the rows of a unit.
func (r *rank) priority(unit int32) int {
	rule := r.scratch.units[unit].run.rule
	if rule < 0 {
		return 0
	}
	return r.agent.policy.rules[rule].Priority
}

// rows is what the law counts for a unit.
func (u *unit) rows(g *planGroup) uint64 { return uint64(u.run.count) * uint64(len(g.entries)) }

// stepRows puts the rows of a step into their chains, range by range, so that
// each chain gets its rows in ascending order.
func (r *rank) stepRows(st *openStep) error {
	sc := &r.scratch
	for ci := range sc.cells {
		c := &sc.cells[ci]
		if st.captures[c.layout].state != captureRead {
			continue
		}
		of := sc.of[c.of:]
		for gi := range c.plan.groups {
			g := &c.plan.groups[gi]
			_, n, first := tokens(g, &st.step.Ranges[c.rng], c)
			if g.rules != 0 {
				for _, entry := range g.entries {
					if err := r.entryRows(st, c, entry, first, of[:n]); err != nil {
						return err
					}
				}
			}
			of = of[n:]
		}
	}
	return nil
}

// entryRows puts one entry's rows of one cell into its chains.
func (r *rank) entryRows(st *openStep, c *cell, entry, first int, of []int32) error {
	sc, lay, q := &r.scratch, st.layouts[c.layout], c.q
	capture, rg := &st.captures[c.layout], &st.step.Ranges[c.rng]
	rows := &capture.entries[entry]
	position := int32(rg.Position + rg.Count - uint32(len(of)))
	v := schema.VectorRow{Seq: capture.seq, Number: q.number, Request: q.id, Sample: q.sample, Pass: int32(rg.Pass),
		Phase: uint8(rg.Phase), CaptureNS: capture.wallNS}
	tensors, stats := &r.pinned[0], &r.pinned[1]
	defer func() { *tensors, *stats = nil, nil }()
	for k, ui := range of {
		if ui < 0 || sc.units[ui].reason != "" {
			continue
		}
		v.Row, v.Position = uint32(first+k), position+int32(k)
		if sc.units[ui].as == AsTensor {
			if *tensors == nil {
				*tensors = r.own.dataChain(q.t, lay, entry, AsTensor)
			}
			v.Vec = rows.Row(first + k)
			if err := (*tensors).addVector(&v, r.priority(ui), st.g); err != nil {
				return err
			}
			continue
		}
		if *stats == nil {
			*stats = r.own.dataChain(q.t, lay, entry, AsStats)
		}
		out := schema.StatsRow{Seq: v.Seq, Row: v.Row, Number: v.Number, Request: v.Request, Sample: v.Sample,
			Position: v.Position, Pass: v.Pass, Phase: v.Phase, CaptureNS: v.CaptureNS}
		sc.stats = statsOf(rows.Row(first+k), lay.Entries[entry].DType, &out, sc.stats)
		(*stats).addStats(out, r.priority(ui), st.g)
	}
	return nil
}
