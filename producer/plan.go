package producer

import (
	"math/bits"

	"sonde/ring2"
)

// planKey: which rules are about a request decides, with the layout, which rule
// may choose each entry's rows.
type planKey struct {
	layout uint32
	rules  uint64
	known  bool // the request is
}

// plan divides the entries of a layout into groups that are chosen alike.
type plan struct {
	groups     []planGroup
	perAll     int // entries with a row for each token
	perSampled int // entries with a row for each sampled token
}

type planGroup struct {
	sampled  bool
	rules    uint64 // rules that may choose a row, lowest first; 0: filtered
	every    int    // the rule that takes each row, noRule, or positionsDecide
	oversize bool   // a row fits no message
	entries  []int
	ragged   []int // of entries
	text     string
	rowBytes int64 // of all entries that are not ragged together, as tensors
}

const (
	positionsDecide = -1
	noRule          = -2 // each row counts although no rule can be asked: its request is unknown
)

func (e *epoch) plan(l *layout, q *request, known bool) *plan {
	key := planKey{l.ID, q.rules, known}
	if p := e.plans[key]; p != nil {
		return p
	}
	if len(e.plans) >= maxPlans {
		clear(e.plans)
	}
	p := newPlan(l, key, e.r.agent.policy.rules)
	e.plans[key] = p
	return p
}

func newPlan(l *layout, key planKey, rules []compiledRule) *plan {
	p := &plan{}
	for i, en := range l.Entries {
		g := planGroup{sampled: en.Select == ring2.SelectSampled, every: noRule}
		if g.sampled {
			p.perSampled++
		} else {
			p.perAll++
		}
		for k := range rules {
			if key.rules&(1<<k) != 0 && rules[k].matchesHook(en.Hook, en.Layer) {
				g.rules |= 1 << k
			}
		}
		if key.known {
			g.every, g.oversize = positionsDecide, l.oversize[i] && g.rules != 0
		}
		if first := bits.TrailingZeros64(g.rules); key.known && first < len(rules) && rules[first].everyPosition() {
			g.every = first
		}
		in := p.group(g)
		in.entries = append(in.entries, i)
		if en.Ragged {
			in.ragged = append(in.ragged, i)
		} else {
			in.rowBytes += int64(en.RowBytes())
		}
	}
	for i := range p.groups {
		p.groups[i].text = entriesText(p.groups[i].entries)
	}
	return p
}

// group finds or adds the group that is chosen like g.
func (p *plan) group(g planGroup) *planGroup {
	for i := range p.groups {
		if o := &p.groups[i]; o.sampled == g.sampled && o.rules == g.rules && o.oversize == g.oversize {
			return o
		}
	}
	p.groups = append(p.groups, g)
	return &p.groups[len(p.groups)-1]
}

// run is a set of positions that one rule chose: first, first+stride, ...
type run struct {
	rule          int
	first, stride int // offsets from the range's first row
	count         int
}

// choose splits n tokens from position on into runs of equal choice, appended to
// runs, and, when of is not nil, appends to it, for each token, its index in runs
// or -1. The result depends on nothing but its arguments.
func (p *compiledPolicy) choose(g *planGroup, position, prompt int64, n int, runs []run, of *[]int32) []run {
	note := func(at int32) {
		if of != nil {
			*of = append(*of, at)
		}
	}
	if g.every != positionsDecide {
		for range n {
			note(int32(len(runs)))
		}
		if n == 0 {
			return runs
		}
		return append(runs, run{rule: g.every, stride: 1, count: n})
	}
	var open [MaxRules]int32 // index in runs + 1 of each rule's last run
	for k := range n {
		rule := p.firstRule(g.rules, position+int64(k), prompt)
		if rule < 0 {
			note(-1)
			continue
		}
		if at := open[rule] - 1; at >= 0 && runs[at].takes(k) {
			note(at)
			continue
		}
		note(int32(len(runs)))
		runs = append(runs, run{rule: rule, first: k, stride: 1, count: 1})
		open[rule] = int32(len(runs))
	}
	return runs
}

func (p *compiledPolicy) firstRule(set uint64, position, prompt int64) int {
	for ; set != 0; set &= set - 1 {
		if i := bits.TrailingZeros64(set); p.rules[i].matchesPosition(position, prompt) {
			return i
		}
	}
	return -1
}

// takes adds offset k when it continues the run.
func (r *run) takes(k int) bool {
	if r.count == 1 {
		r.stride = k - r.first
	}
	if r.first+r.count*r.stride != k {
		return false
	}
	r.count++
	return true
}
