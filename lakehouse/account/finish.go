package account

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
)

// Finish classifies every expected row. The builder is used up.
func (b *Builder) Finish() *Account {
	a := &Account{Dropped: map[string]uint64{}, Epochs: len(b.epochs)}
	ids := make([]uint64, 0, len(b.epochs))
	for id := range b.epochs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	j := judge{b: b, a: a, hooks: map[string]*HookCounts{}}
	for _, id := range ids {
		e := b.epochs[id]
		if !e.closed {
			a.OpenEpochs = append(a.OpenEpochs, id)
		}
		j.epoch(e)
		delete(b.epochs, id)
	}
	a.Duplicated = b.repeats
	a.Examples, a.broken = b.examples.text, b.broken
	for _, h := range j.hooks {
		a.ByHook = append(a.ByHook, *h)
	}
	sort.Slice(a.ByHook, func(x, y int) bool { return a.ByHook[x].Hook < a.ByHook[y].Hook })
	return a
}

// ReasonUnnamed is why rows are missing that the writer counted and no record
// names.
const ReasonUnnamed = "unnamed"

// judge classifies the rows of one epoch after the other, one capture after the
// other, with one bit for each row of the capture at hand.
type judge struct {
	b     *Builder
	a     *Account
	hooks map[string]*HookCounts

	e       *epoch
	capture uint64
	turn    uint64   // counts the captures and steps judged
	facts   []record // expected facts of this capture
	touched []*chain
}

func (j *judge) begin(capture uint64, facts []record) {
	j.capture, j.facts = capture, facts
	j.turn++
}

func (j *judge) epoch(e *epoch) {
	j.e, j.b.of = e, e
	e.expected, e.missing = distinct(e.expected), distinct(e.missing)
	for id, entries := range e.layouts {
		for _, en := range entries {
			e.chainsOf[id] = append(e.chainsOf[id], e.chain(chainKey{en.Hook, en.Layer, en.Shard}))
		}
	}
	for _, c := range e.chains {
		c.set.merge(func(s span) { j.b.repeated(c, s) })
		c.bus.merge(func(span) {})
		c.counts = j.hook(c.key.hook)
		c.counts.Bad += c.repeats
	}
	for i := range e.missing {
		// An agent that saw the engine die, and died itself, may have counted rows
		// that the obituary then named one by one.
		if m := &e.missing[i]; !e.told || j.b.names[m.reason] != ReasonUnnamed {
			j.neverCaptured(m)
		}
	}
	byCapture(e.expected)
	at, _ := slices.BinarySearchFunc(e.expected, 1, func(r record, capture int) int {
		return cmp.Compare(r.capture, uint64(capture))
	})
	for _, group := range bySteps(e.expected[:at]) {
		j.begin(0, group)
		j.drop()
	}
	x := explanations{dead: sorted(e.dead), aborted: sorted(e.aborted), dropped: sorted(e.dropped), lost: sorted(e.lost)}
	for at < len(e.expected) {
		end := at + 1
		for end < len(e.expected) && e.expected[end].capture == e.expected[at].capture {
			end++
		}
		j.begin(e.expected[at].capture, e.expected[at:end])
		j.judge(x.of(j.capture))
		at = end
	}
	for _, c := range e.chains {
		j.unasked(c, c.set.sorted[c.at:])
	}
}

// neverCaptured counts the rows of a fact that says by itself why they are
// missing.
func (j *judge) neverCaptured(r *record) {
	j.a.Filtered += r.filtered
	j.a.Expected += r.rows
	if r.rows == 0 {
		return
	}
	j.a.Dropped[j.b.names[r.reason]] += r.rows
	entries := j.b.sets[r.entries]
	if len(entries) == 0 {
		j.hook("").Expected += r.rows
		return
	}
	share, rest := r.rows/uint64(len(entries)), r.rows%uint64(len(entries))
	for i, entry := range entries {
		name, n := "", share
		if layout := j.e.layouts[r.layout]; entry < len(layout) {
			name = layout[entry].Hook
		}
		if uint64(i) < rest {
			n++
		}
		j.hook(name).Expected += n
	}
}

// drop counts the rows of one layout of a step that the ring dropped. Two agents
// with different policies may have named them differently: each row counts once.
func (j *judge) drop() {
	j.expect(func(f *record, rows uint64) { j.a.Dropped[j.b.names[f.reason]] += rows })
	for i := range j.facts {
		f := &j.facts[i]
		j.chains(f, func(c *chain) {
			if n := c.left.take(f.run); n > 0 {
				j.a.Dropped[j.b.names[f.reason]] += n
			}
		})
	}
}

// judge gives each expected row of the capture at hand its class.
func (j *judge) judge(x explanations) {
	j.expect(func(f *record, rows uint64) {
		j.unclassed(j.hook(""), rows, func() string {
			return fmt.Sprintf("%s: its layout %d was never defined with all of its entries", j.factName(f), f.layout)
		})
	})
	for _, c := range j.touched {
		j.store(c)
	}
	for i := range x.dead {
		j.a.DeadLettered += j.explain(&x.dead[i])
	}
	for i := range x.aborted {
		j.a.Aborted += j.explainTenant(x.aborted[i].tenant)
	}
	for i := range x.dropped {
		if n := j.explain(&x.dropped[i]); n > 0 {
			j.a.Dropped[j.b.names[x.dropped[i].reason]] += n
		}
	}
	for i := range x.lost {
		j.a.Lost += j.explainTenant(x.lost[i].tenant)
	}
	for _, c := range j.touched {
		j.leftOver(c)
	}
}

// expect marks the rows that the facts at hand name. unknown is told of those of
// entries that no layout fact defines.
func (j *judge) expect(unknown func(f *record, rows uint64)) {
	j.touched = j.touched[:0]
	for i := range j.facts {
		f := &j.facts[i]
		j.a.Filtered += f.filtered
		j.chains(f, func(c *chain) {
			if c.seen != j.turn {
				c.seen, c.end = j.turn, 0
				j.touched = append(j.touched, c)
			}
			c.end = max(c.end, f.run.end())
		})
	}
	for _, c := range j.touched {
		c.wanted = c.wanted.cleared(c.end)
	}
	for i := range j.facts {
		f := &j.facts[i]
		undefined := j.chains(f, func(c *chain) { c.wanted.set(f.run) })
		if n := uint64(undefined) * uint64(f.run.count); n > 0 {
			j.a.Expected += n
			j.hook("").Expected += n
			unknown(f, n)
		}
	}
	for _, c := range j.touched {
		n := c.wanted.count()
		j.a.Expected += n
		c.counts.Expected += n
		c.left = append(c.left[:0], c.wanted...)
	}
}

// chains calls f for the chain of each entry of a fact, and returns how many
// entries are not known.
func (j *judge) chains(r *record, f func(*chain)) (unknown int) {
	layout := j.e.chainsOf[r.layout]
	for _, entry := range j.b.sets[r.entries] {
		if entry >= len(layout) {
			unknown++
			continue
		}
		f(layout[entry])
	}
	return unknown
}

// store takes the stored rows of this capture, and names what was stored before
// it in its chain and was not expected.
func (j *judge) store(c *chain) {
	spans := c.set.sorted
	from := c.at
	for c.at < len(spans) && spans[c.at].seq < j.capture {
		c.at++
	}
	j.unasked(c, spans[from:c.at])
	var stored uint64
	for ; c.at < len(spans) && spans[c.at].seq == j.capture; c.at++ {
		s := spans[c.at]
		n := c.left.takeSpan(s)
		stored += n
		if n < s.rows() {
			j.unaskedIn(c, s)
		}
	}
	j.a.Stored += stored
	c.counts.Stored += stored
	waiting := c.bus.sorted
	for c.busAt < len(waiting) && waiting[c.busAt].seq < j.capture {
		c.busAt++
	}
	for ; c.busAt < len(waiting) && waiting[c.busAt].seq == j.capture; c.busAt++ {
		n := c.left.takeSpan(waiting[c.busAt])
		j.a.OnBus += n
		c.counts.OnBus += n
	}
}

// unaskedIn names the rows of a span that the capture at hand does not expect.
func (j *judge) unaskedIn(c *chain, s span) {
	for row := range s.each {
		if uint64(row) >= c.end {
			j.unasked(c, []span{{s.seq, row, s.last}})
			return
		}
		if !c.wanted.holds(uint64(row)) {
			j.unasked(c, []span{{s.seq, row, row}})
		}
	}
}

func (j *judge) unasked(c *chain, spans []span) {
	var n uint64
	for _, s := range spans {
		n += s.rows()
		for row := range s.each {
			if !j.e.closed || j.b.examples.full(kindUnasked) {
				break
			}
			j.b.examples.add(kindUnasked, func() string {
				return c.rowName(j.e, s.seq, row) + " is stored, but no fact expects it"
			})
		}
	}
	if n == 0 {
		return
	}
	if !j.e.closed {
		j.a.Early += n
		return
	}
	j.a.Unasked += n
	c.counts.Bad += n
}

// explain takes the rows that a fact about one hook, or about entries of a
// layout, names.
func (j *judge) explain(r *record) uint64 {
	var n uint64
	if hook := j.b.names[r.hook]; hook != "" {
		for _, c := range j.touched {
			if c.key.hook == hook && c.key.layer == int(r.layer) {
				n += c.left.take(r.run)
			}
		}
		return n
	}
	j.chains(r, func(c *chain) {
		if c.seen == j.turn {
			n += c.left.take(r.run)
		}
	})
	return n
}

// explainTenant takes all rows of one tenant.
func (j *judge) explainTenant(tenant uint32) uint64 {
	var n uint64
	for i := range j.facts {
		f := &j.facts[i]
		if f.tenant == tenant {
			j.chains(f, func(c *chain) { n += c.left.take(f.run) })
		}
	}
	return n
}

// leftOver books rows that have no class.
func (j *judge) leftOver(c *chain) {
	n := c.left.count()
	if n == 0 {
		return
	}
	if !j.e.closed || j.b.examples.full(kindUnexplained) {
		j.unclassed(c.counts, n, nil)
		return
	}
	c.left.each(func(row uint32) bool {
		j.unclassed(c.counts, 1, func() string {
			return c.rowName(j.e, j.capture, row) + j.meaning(c, row) + " is neither stored nor explained"
		})
		return true
	})
}

// unclassed books rows that are in flight, or unexplained when their epoch is
// closed.
func (j *judge) unclassed(counts *HookCounts, n uint64, text func() string) {
	if !j.e.closed {
		j.a.InFlight += n
		counts.InFlight += n
		return
	}
	j.a.Unexplained += n
	counts.Bad += n
	if text != nil {
		j.b.examples.add(kindUnexplained, text)
	}
}

// meaning says which token a row of the capture at hand is.
func (j *judge) meaning(c *chain, row uint32) string {
	for i := range j.facts {
		f := &j.facts[i]
		if row < f.run.first || uint64(row) >= f.run.end() || (row-f.run.first)%f.run.stride != 0 {
			continue
		}
		found := false
		j.chains(f, func(other *chain) { found = found || other == c })
		if found {
			q := j.e.requests[f.number]
			return fmt.Sprintf(" (request %s sample %d position %d pass %d)", q.request, q.sample,
				f.position+int32(row-f.run.first), f.pass)
		}
	}
	return ""
}

func (j *judge) factName(f *record) string {
	return fmt.Sprintf("epoch %016x record %d:%d of request %s", j.e.id, f.seq, f.row, j.e.requests[f.number].request)
}

func (j *judge) hook(name string) *HookCounts {
	h := j.hooks[name]
	if h == nil {
		h = &HookCounts{Hook: name}
		j.hooks[name] = h
	}
	return h
}

// distinct sorts facts and keeps the first of those that say the same: an agent
// that attached anew repeats facts. Place alone would not do: what is read and
// what an obituary tells are numbered apart. Facts that explain need no such care:
// a row that has its class is not explained again.
func distinct(facts []record) []record {
	identity := func(a, b record) int {
		return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.seq, b.seq), cmp.Compare(a.row, b.row),
			cmp.Compare(a.number, b.number), cmp.Compare(a.position, b.position), cmp.Compare(a.pass, b.pass),
			cmp.Compare(a.layout, b.layout), cmp.Compare(a.entries, b.entries), cmp.Compare(a.reason, b.reason))
	}
	slices.SortStableFunc(facts, identity)
	return slices.CompactFunc(facts, func(a, b record) bool { return identity(a, b) == 0 })
}

// bySteps groups facts by step and layout.
func bySteps(facts []record) (groups [][]record) {
	compare := func(a, b record) int { return cmp.Or(cmp.Compare(a.seq, b.seq), cmp.Compare(a.layout, b.layout)) }
	slices.SortStableFunc(facts, compare)
	for len(facts) > 0 {
		n := 1
		for n < len(facts) && compare(facts[0], facts[n]) == 0 {
			n++
		}
		groups = append(groups, facts[:n])
		facts = facts[n:]
	}
	return groups
}

func byCapture(facts []record) {
	slices.SortFunc(facts, func(a, b record) int {
		return cmp.Or(cmp.Compare(a.capture, b.capture), cmp.Compare(a.run.first, b.run.first))
	})
}

func sorted(facts []record) []record { byCapture(facts); return facts }

// explanations are facts that say why rows are missing, sorted by capture.
type explanations struct{ dead, aborted, dropped, lost []record }

// of cuts the facts of one capture off the front. Captures ascend.
func (x *explanations) of(capture uint64) explanations {
	return explanations{cut(&x.dead, capture), cut(&x.aborted, capture), cut(&x.dropped, capture), cut(&x.lost, capture)}
}

func cut(facts *[]record, capture uint64) []record {
	f := *facts
	for len(f) > 0 && f[0].capture < capture {
		f = f[1:]
	}
	n := 0
	for n < len(f) && f[n].capture == capture {
		n++
	}
	*facts = f[n:]
	return f[:n]
}
