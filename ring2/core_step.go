package ring2

// plan is one layout of a step: what it needs and what became of it.
type plan struct {
	layout     *Layout
	tokenRows  int
	sampled    int
	ledgerRows uint64 // sum over the entries
	bytes      int    // payload, every entry aligned
	outcome    Reason
	seq, pos   uint64 // when outcome is ReasonNone
}

// measure computes what a layout needs in a step. A nil ragged has no entry of
// its own length.
func (p *plan) measure(index int, ranges []StepRange, ragged []RaggedBytes) {
	p.tokenRows = selectedRows(ranges, index, SelectAll)
	p.sampled = selectedRows(ranges, index, SelectSampled)
	p.ledgerRows, p.bytes, p.outcome = 0, 0, ReasonNone
	if p.layout.ragged() {
		p.bytes = alignUp(8 * len(p.layout.Entries))
	}
	for i := range p.layout.Entries {
		p.ledgerRows += uint64(p.rows(i))
		p.bytes += alignUp(p.entryBytes(index, i, ragged))
	}
}

func (p *plan) rows(entry int) int {
	if p.layout.Entries[entry].Select == SelectSampled {
		return p.sampled
	}
	return p.tokenRows
}

func (p *plan) entryBytes(index, entry int, ragged []RaggedBytes) int {
	e := &p.layout.Entries[entry]
	if !e.Ragged {
		return p.rows(entry) * e.RowBytes()
	}
	for _, r := range ragged {
		if r.Layout == index && r.Entry == entry {
			return 8*(p.rows(entry)+1) + r.Bytes
		}
	}
	return 8 * (p.rows(entry) + 1)
}

// planStep decides what of a step fits: where its STEP record goes, and which
// layouts are captured. It claims nothing. ok is false when not even the STEP
// record fits.
func (c *writerCore) planStep(plans []plan, stepLen int) (stepPos uint64, ok bool) {
	at := cursor{c.claim, c.head}
	stepPos, why := c.place(at, uint64(stepLen), true)
	if why != ReasonNone {
		return 0, false
	}
	at.claim, at.head = at.claim+1, stepPos+uint64(alignUp(stepLen))
	for i := range plans {
		p := &plans[i]
		p.seq = at.claim
		if p.pos, p.outcome = c.place(at, uint64(p.bytes), false); p.outcome == ReasonNone {
			at.claim, at.head = at.claim+1, p.pos+uint64(alignUp(p.bytes))
		}
	}
	return stepPos, true
}

// everythingFits says whether waiting cannot improve on the plan.
func everythingFits(plans []plan) bool {
	for i := range plans {
		if o := plans[i].outcome; o != ReasonNone && o != ReasonOversize {
			return false
		}
	}
	return true
}

// countStep counts a step's rows before anything of it is visible.
func (c *writerCore) countStep(plans []plan) {
	c.counters.steps++
	for i := range plans {
		p := &plans[i]
		c.counters.capturedRows += p.ledgerRows
		if p.outcome != ReasonNone {
			c.counters.droppedRows[p.outcome] += p.ledgerRows
		}
	}
	c.storeCounters()
}

// claimStep claims what planStep found, in its order, and publishes the STEP
// record first: it tells the reader what to expect.
func (c *writerCore) claimStep(plans []plan, stepPos, step uint64, payload []byte) {
	at := cursor{c.claim, c.head}
	c.open, c.openSeq = true, at.claim
	stepSeq, d := c.takeControl(&at, stepPos, KindStep, step, payload)
	for i := range plans {
		p := &plans[i]
		if p.outcome != ReasonNone {
			continue
		}
		if p.seq != at.claim {
			panic("BUG: a capture was claimed in another order than planned")
		}
		_, capture := c.take(&at, p.pos, p.bytes, KindCapture, step)
		capture.Layout, capture.Rows = p.layout.ID, uint32(p.tokenRows)
	}
	c.countStep(plans)
	c.advance(at)
	publish(d, FlagPayloadCRC, stepSeq)
}

// finish publishes one capture of the open step.
func (c *writerCore) finish(p *plan, aborted bool) {
	flags := uint16(0)
	if aborted {
		flags = FlagAborted
		c.counters.abortedRows += p.ledgerRows
		c.storeCounters()
	}
	d := c.desc(p.seq)
	d.CaptureNS = c.now()
	publish(d, flags, p.seq)
}

func (c *writerCore) endStep() { c.open = false }

// abortStuck aborts detached copies that were claimed before a moment. The tail
// may then move past their spans, which stay in quarantine until the copy
// completes. It says whether there were any.
func (c *writerCore) abortStuck(before uint64) bool {
	known := c.counters.stuckCopies
	for seq := c.tail; seq != c.claim; seq++ {
		p := c.slots[seq&c.mask].copy
		if p == nil || p.claimNS > before || !p.state.CompareAndSwap(pendingCopying, pendingClosing) {
			continue
		}
		d := c.desc(seq)
		d.CaptureNS = c.now()
		publish(d, FlagAborted, seq)
		c.counters.stuckCopies++
		c.counters.abortedRows += p.ledgerRows
		p.state.Store(pendingStuck)
	}
	c.storeCounters()
	return c.counters.stuckCopies > known
}
