package oracle

import (
	"fmt"
	"slices"
	"strings"

	"sonde/lakehouse/account"
	"sonde/schema"
)

// epochFacts is what the ledger says about one epoch.
type epochFacts struct {
	layouts  map[uint32][]account.LayoutEntry
	closed   string // how the epoch ended
	lastStep uint64
	phantoms map[uint64]int // by step: rows that facts name and nobody witnessed
	tails    int            // the same, at the end of facts about missing rows, which span steps
	hullRows uint64         // rows that merged facts count
	counted  uint64         // rows that facts count and name
}

func (c *Checker) epoch(id uint64) *epochFacts {
	e := c.epochs[id]
	if e == nil {
		e = &epochFacts{layouts: map[uint32][]account.LayoutEntry{}, phantoms: map[uint64]int{}}
		c.epochs[id] = e
	}
	return e
}

// Fact takes one fact of the ledger. Layout facts come before the facts that
// name their layout. Each fact is to be fed once.
func (c *Checker) Fact(f *account.Fact) error {
	e := c.epoch(f.Epoch)
	switch f.Fact {
	case schema.FactLayout:
		entries, err := account.ParseLayout(f.Detail)
		if err != nil {
			return err
		}
		e.layouts[f.Layout] = entries
	case schema.FactClosed:
		e.closed = f.Reason
	case schema.FactExpected, schema.FactMissing:
		return c.named(e, f)
	}
	return nil
}

// named marks the rows that a fact names.
func (c *Checker) named(e *epochFacts, f *account.Fact) error {
	entries, err := account.ParseEntries(f.Entries)
	if err != nil {
		return err
	}
	e.lastStep = max(e.lastStep, f.Step)
	if len(entries) > 0 {
		e.counted += f.Rows
	}
	mark := namedRow
	if f.Fact == schema.FactMissing && f.Rows != uint64(f.Count)*uint64(len(entries)) {
		mark = namedHull
		e.hullRows += f.Rows
	}
	layout := e.layouts[f.Layout]
	for _, entry := range entries {
		if entry >= len(layout) {
			return fmt.Errorf("a fact of epoch %016x names entry %d of layout %d, which has %d", f.Epoch, entry, f.Layout,
				len(layout))
		}
		s := c.stripe(Key{Epoch: f.Epoch, Request: f.Request, Sample: int(f.Sample), Pass: int(f.Pass),
			Hook: layout[entry].Hook, Layer: layout[entry].Layer}, false)
		unwitnessed, tail := s.mark(f, mark)
		switch {
		case mark == namedHull:
		case f.Fact == schema.FactMissing:
			e.tails += tail
			e.phantoms[f.Step] += unwitnessed - tail
		default:
			e.phantoms[f.Step] += unwitnessed
		}
	}
	return nil
}

// mark marks the witnessed rows that a fact names, and counts the others; tail
// is how many of those stand behind the last witnessed one.
func (s *stripe) mark(f *account.Fact, mark rowState) (unwitnessed, tail int) {
	for k := range int(f.Count) {
		at := int(f.Position) + k*int(f.Stride) - s.first()
		if s != nil && at >= 0 && at < len(s.state) && s.state[at]&witnessed != 0 {
			s.state[at] |= mark
			tail = 0
			continue
		}
		unwitnessed++
		tail++
	}
	return unwitnessed, tail
}

// Finish judges each witnessed row after everything was fed.
func (c *Checker) Finish() *Report {
	hull, computed := map[uint64]uint64{}, map[uint64]uint64{}
	for at, s := range c.stripes {
		epoch := c.names[at.sequence].epoch
		for i, state := range s.state {
			if state&witnessed != 0 {
				computed[epoch]++
			}
			switch {
			case state&witnessed == 0:
			case state&(storedOnce|namedRow) == storedOnce|namedRow:
			case state&storedOnce != 0 && state&namedHull == 0:
				c.r.add(Unasked, 1, "%v is stored, but no fact expects it", c.key(at, s, i))
			case state&storedOnce != 0:
			case state&namedRow != 0:
				c.countNamed(at, s, i)
			case state&namedHull != 0:
				c.countNamed(at, s, i)
				hull[epoch]++
			default:
				c.r.add(Silent, 1, "%v was computed, and is neither stored nor named by the ledger", c.key(at, s, i))
			}
		}
	}
	for id, e := range c.epochs {
		if hull[id] > e.hullRows {
			c.r.add(Silent, 1, "in epoch %016x merged facts cover %d rows that are not stored, but they count %d", id, hull[id],
				e.hullRows)
		}
		known := computed[id] + c.judgePhantoms(id, e)
		if e.counted > known {
			c.r.add(Phantom, int(e.counted-known), "in epoch %016x the ledger counts %d rows of %d", id, e.counted, known)
		}
	}
	c.whose()
	return c.r
}

func (c *Checker) countNamed(at stripeKey, s *stripe, i int) {
	c.r.Named++
	if c.Named != nil {
		c.Named(c.key(at, s, i))
	}
}

// judgePhantoms judges rows that the ledger names and nobody witnessed: the
// engine witnesses a step after its claim, so a death in between leaves one such
// step, the last. It returns how many there are.
func (c *Checker) judgePhantoms(id uint64, e *epochFacts) (all uint64) {
	for step, rows := range e.phantoms {
		if rows == 0 {
			continue
		}
		all += uint64(rows)
		if step == e.lastStep && e.closed != "bye" {
			c.r.Unfinished += rows
			continue
		}
		c.r.add(Phantom, rows, "step %d of epoch %016x: the ledger names %d rows that the engine never witnessed", step,
			id, rows)
	}
	if e.closed == "bye" && e.tails > 0 {
		c.r.add(Phantom, e.tails, "epoch %016x: facts about missing rows name %d rows that the engine never witnessed", id,
			e.tails)
	} else {
		c.r.Unfinished += e.tails
	}
	return all + uint64(e.tails)
}

// whose names each row with wrong bytes, and the row whose bytes it has.
func (c *Checker) whose() {
	owner := map[Hash]string{}
	for _, m := range c.misfits {
		owner[m.have] = ""
	}
	if len(owner) > 0 {
		for at, s := range c.stripes {
			for i, h := range s.hashes {
				if _, wanted := owner[h]; wanted && s.state[i]&witnessed != 0 {
					owner[h] = c.key(at, s, i).String()
				}
			}
		}
	}
	for _, m := range c.misfits {
		text := fmt.Sprintf("%v %s", m.key, m.why)
		if of := owner[m.have]; of != "" {
			text += ": it has those of " + of
		}
		c.r.Names[Wrong] = append(c.r.Names[Wrong], text)
	}
	slices.SortFunc(c.r.Names[Wrong], strings.Compare)
}
