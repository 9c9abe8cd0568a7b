package ring2

import "slices"

// maxMissing bounds the ranges that wait to be named. Beyond it, ranges of one
// request, layout, pass and reason are merged into their hull, and what cannot
// be merged is only counted.
const maxMissing = 4096

// missingSet collects the rows of steps whose STEP record did not fit.
type missingSet struct {
	ranges  []MissingRange
	last    map[missingKey]int // index of the last range of each kind
	unnamed uint64             // rows
}

// missingKey is what ranges must share to be merged.
type missingKey struct {
	number       uint64
	layout, pass uint32
	reason       Reason
}

func (r *MissingRange) key() missingKey { return missingKey{r.Number, r.Layout, r.Pass, r.Reason} }

// add names the rows of one layout of one range.
func (m *missingSet) add(r *StepRange, p *plan, sel uint64, step uint64, why Reason) {
	n := MissingRange{Number: r.Number, Position: r.Position, Count: r.Count, Pass: r.Pass, Layout: p.layout.ID,
		Reason: why, Rows: sel, FirstStep: step, LastStep: step}
	if i, ok := m.last[n.key()]; ok {
		o := &m.ranges[i]
		if o.Position+o.Count == n.Position || len(m.ranges) == maxMissing {
			o.merge(&n)
			return
		}
	}
	if len(m.ranges) == maxMissing {
		m.unnamed += n.Rows
		return
	}
	if m.last == nil {
		m.last = map[missingKey]int{}
	}
	m.last[n.key()] = len(m.ranges)
	m.ranges = append(m.ranges, n)
}

// forget drops the first n ranges, which were named.
func (m *missingSet) forget(n int) {
	m.ranges = slices.Delete(m.ranges, 0, n)
	clear(m.last)
	for i := range m.ranges {
		m.last[m.ranges[i].key()] = i
	}
}

// merge extends a range to the hull of both.
func (r *MissingRange) merge(n *MissingRange) {
	end := max(r.Position+r.Count, n.Position+n.Count)
	r.Position = min(r.Position, n.Position)
	r.Count = end - r.Position
	r.Rows += n.Rows
	r.FirstStep, r.LastStep = min(r.FirstStep, n.FirstStep), max(r.LastStep, n.LastStep)
}

// addStep names every row of a step that could not be put into the ring.
func (m *missingSet) addStep(ranges []StepRange, plans []plan, step uint64, why Reason) {
	for i := range plans {
		p := &plans[i]
		for j := range ranges {
			r := &ranges[j]
			if r.LayoutMask>>i&1 == 0 {
				continue
			}
			rows := uint64(0)
			for e := range p.layout.Entries {
				if p.layout.Entries[e].Select == SelectAll {
					rows += uint64(r.Count)
				} else if r.Sampled {
					rows++
				}
			}
			m.add(r, p, rows, step, why)
		}
	}
}
