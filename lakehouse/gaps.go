package lakehouse

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sonde/lakehouse/account"
	"sonde/lakehouse/table"
	"sonde/schema"
)

const tokenHook = table.TokenHook

// maxPositions bounds the positions of one sequence that gaps are looked for in.
const maxPositions = 1 << 24

// expectation is what the ledger says about one position at the hook.
type expectation struct {
	capture uint64 // 0: the row never reached the ring
	row     uint32
	reason  string // why there is no row; empty: it was captured
}

// ledgerView is what the ledger knows about the positions of one sequence at one
// hook.
type ledgerView struct {
	q        TensorQuery
	shard    int
	sequence Sequence
	request  Request
	entries  map[uint32]map[int]bool // layout: entries that are the hook, layer and shard
	sampled  bool                    // the hook only has rows of tokens that are sampled from
	wanted   map[int32]expectation   // by position: of its last pass
	passes   map[int32]int32         // that wanted is about
	verdicts map[int32]map[int32]bool
	captures map[uint64]string // capture: why all of its rows are missing
	dead     []account.Fact    // facts about messages of the hook that could not be taken
	closed   bool
	figures  map[int32]bool // positions of which only figures are stored
	facts    []account.Fact // expected, missing and dropped, until the layouts are known
}

func newLedgerView(q TensorQuery, shard int, s Sequence, r Request) *ledgerView {
	return &ledgerView{q: q, shard: shard, sequence: s, request: r, entries: map[uint32]map[int]bool{},
		wanted: map[int32]expectation{}, passes: map[int32]int32{}, verdicts: map[int32]map[int32]bool{},
		captures: map[uint64]string{}, figures: map[int32]bool{}}
}

// read takes the facts of the sequence, and those of its epoch that name no
// request.
func (v *ledgerView) read(ctx context.Context, l *Lake) error {
	err := l.factsOf(ctx, v.sequence, func(f *Fact) error {
		switch f.Fact {
		case schema.FactLayout:
			return v.layout(f)
		case schema.FactClosed:
			v.closed = true
		case schema.FactAborted:
			v.captures[f.CaptureSeq] = "the engine's copy failed"
		case schema.FactLost:
			v.captures[f.CaptureSeq] = "lost when the engine died"
		case schema.FactDeadLetter:
			v.refused(f)
		case schema.FactAmend:
			v.amend(f)
		case schema.FactExpected, schema.FactMissing, schema.FactDropped:
			if f.Hook != "" { // no room for a dead letter
				v.refused(f)
			} else if f.Number == v.sequence.Number {
				v.facts = append(v.facts, *f)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	order := func(f account.Fact) int { // a range is expected before it is explained
		return slices.Index([]string{schema.FactExpected, schema.FactMissing, schema.FactDropped}, f.Fact)
	}
	slices.SortStableFunc(v.facts, func(a, b account.Fact) int { return order(a) - order(b) })
	for i := range v.facts {
		if err := v.take(&v.facts[i]); err != nil {
			return err
		}
	}
	q := Query{Request: v.q.Request, Sample: &v.q.Sample, Hook: v.q.Hook, Layer: &v.q.Layer, Shard: &v.shard,
		Epoch: &v.sequence.Epoch, Number: &v.sequence.Number}
	return l.VectorStats(ctx, q, func(s *VectorStats) error {
		v.figures[s.Position] = true
		return nil
	})
}

// refused keeps a fact about rows of the hook in a message that could not be taken.
func (v *ledgerView) refused(f *Fact) {
	if f.Hook == v.q.Hook && int(f.Layer) == v.q.Layer {
		v.dead = append(v.dead, *f)
	}
}

// layout finds the entries of a layout that are the hook.
func (v *ledgerView) layout(f *Fact) error {
	var entries []struct {
		account.LayoutEntry
		Select string `json:"select"`
	}
	if err := json.Unmarshal([]byte(f.Detail), &entries); err != nil {
		return fmt.Errorf("layout fact %d of epoch %016x: %w", f.Layout, f.Epoch, err)
	}
	v.entries[f.Layout] = map[int]bool{}
	for i, e := range entries {
		if e.Hook == v.q.Hook && e.Layer == v.q.Layer && e.Shard == v.shard {
			v.entries[f.Layout][i] = true
			v.sampled = v.sampled || e.Select == "sampled"
		}
	}
	return nil
}

// chosen reports whether a fact is about the hook.
func (v *ledgerView) chosen(f *Fact) (bool, error) {
	if f.Entries == "" { // all that the layout holds
		return len(v.entries[f.Layout]) > 0, nil
	}
	entries, err := account.ParseEntries(f.Entries)
	if err != nil {
		return false, fmt.Errorf("fact %s of epoch %016x: %w", f.Fact, f.Epoch, err)
	}
	return slices.ContainsFunc(entries, func(e int) bool { return v.entries[f.Layout][e] }), nil
}

// take notes what a fact says about each of its positions. Of several passes, the
// last one that was not rejected counts.
func (v *ledgerView) take(f *Fact) error {
	chosen, err := v.chosen(f)
	if err != nil || !chosen {
		return err
	}
	if f.Count < 0 || f.Count > maxPositions {
		return fmt.Errorf("fact %s of epoch %016x names %d positions; at most %d", f.Fact, f.Epoch, f.Count, maxPositions)
	}
	for k := range f.Count {
		position := f.Position + k*max(f.Stride, 1)
		if pass, ok := v.passes[position]; ok && pass > f.Pass || v.rejected(position, f.Pass) || position < 0 {
			continue
		}
		e := expectation{capture: f.CaptureSeq, row: f.FirstRow + uint32(k*max(f.Stride, 1))}
		switch {
		case f.Fact == schema.FactExpected && f.Outcome == schema.OutcomeDropped:
			e.reason = "dropped by the ring: " + f.Reason
		case f.Fact == schema.FactMissing:
			e.reason = "never reached the ring: " + f.Reason
		case f.Fact == schema.FactDropped:
			e.reason = "dropped by the agent: " + f.Reason
		}
		if f.Fact == schema.FactMissing && v.wanted[position].reason != "" && v.passes[position] == f.Pass {
			continue // the expectation says more
		}
		v.wanted[position], v.passes[position] = e, f.Pass
	}
	return nil
}

// amend notes a verdict about one pass of a run of positions.
func (v *ledgerView) amend(f *Fact) {
	if f.Number != v.sequence.Number || f.Count < 0 || f.Count > maxPositions {
		return
	}
	for k := range f.Count {
		position := f.Position + k*max(f.Stride, 1)
		if v.verdicts[position] == nil {
			v.verdicts[position] = map[int32]bool{}
		}
		v.verdicts[position][f.Pass] = f.Reason == "rejected" || f.Reason == "phantom"
	}
}

// rejected reports whether the engine took this pass of a position back: a
// rejected draft, or a token behind the end.
func (v *ledgerView) rejected(position, pass int32) bool { return v.verdicts[position][pass] }

// takenBack reports whether the engine took back everything about a position.
func (v *ledgerView) takenBack(position int32) bool {
	if _, expected := v.wanted[position]; expected || len(v.verdicts[position]) == 0 {
		return false
	}
	for rejected := range maps.Values(v.verdicts[position]) {
		if !rejected {
			return false
		}
	}
	return true
}

// gaps lists the positions without rows, given those with rows, ascending.
func (v *ledgerView) gaps(have []int32) []Gap {
	has := make(map[int32]bool, len(have))
	for _, p := range have {
		has[p] = true
	}
	var missing []int32
	why := map[int32]string{}
	note := func(p int32, reason string) {
		if int(p) >= v.q.From && (v.q.To == 0 || int(p) < v.q.To) && !has[p] && why[p] == "" {
			missing = append(missing, p)
			why[p] = reason
		}
	}
	for p, e := range v.wanted {
		note(p, v.reason(p, e))
	}
	if v.prefixCounts(have) {
		for p := range v.request.CachedTokens {
			note(p, "served from the prefix cache: never computed in this request")
		}
	}
	if v.q.From > 0 || v.q.To > 0 {
		end := v.q.To
		if end == 0 {
			end = int(v.end(have))
		}
		for p := v.q.From; p < min(end, v.q.From+maxPositions); p++ {
			if !v.takenBack(int32(p)) {
				note(int32(p), v.unknown(int32(p)))
			}
		}
	}
	slices.Sort(missing)
	return runs(missing, why)
}

// end is one past the last position that anything is known about.
func (v *ledgerView) end(have []int32) int32 {
	end := int32(0)
	if len(have) > 0 {
		end = have[len(have)-1] + 1
	}
	for p := range v.wanted {
		end = max(end, p+1)
	}
	return end
}

// prefixCounts reports whether rows of the cached prefix would have been captured:
// the rows of the hook start right behind it.
func (v *ledgerView) prefixCounts(have []int32) bool {
	cached := v.request.CachedTokens
	if cached <= 0 || v.sampled {
		return false
	}
	first := int32(maxPositions)
	if len(have) > 0 {
		first = have[0]
	}
	for p := range v.wanted {
		first = min(first, p)
	}
	return first == cached
}

func (v *ledgerView) unknown(p int32) string {
	switch {
	case v.figures[p]:
		return "only its figures are stored (the policy says: as stats)"
	case p < v.request.CachedTokens:
		return "served from the prefix cache: never computed in this request"
	case !v.request.Ended && !v.closed:
		return "not captured: not chosen by the policy, or not computed yet"
	}
	return "not captured: not chosen by the policy, or never computed"
}

// reason says why an expected row is not there.
func (v *ledgerView) reason(p int32, e expectation) string {
	for _, f := range v.dead {
		if f.CaptureSeq == e.capture && covered(&f, e.row) {
			if f.Fact == schema.FactDropped {
				return "dropped: " + f.Reason
			}
			return strings.TrimSuffix("in a dead-letter directory: "+f.Reason, ": ")
		}
	}
	switch {
	case e.reason != "":
		return e.reason
	case v.figures[p]:
		return "only its figures are stored (the policy says: as stats)"
	case v.captures[e.capture] != "":
		return v.captures[e.capture]
	case v.closed:
		return "not explained by the ledger"
	}
	return "on its way: captured, and not yet in the lake"
}

// covered reports whether a fact about a refused message names a row.
func covered(f *Fact, row uint32) bool {
	stride := uint32(max(f.Stride, 1))
	return row >= f.FirstRow && (row-f.FirstRow)%stride == 0 && (row-f.FirstRow)/stride < uint32(max(f.Count, 0))
}

// runs joins neighbours with equal reasons.
func runs(positions []int32, why map[int32]string) []Gap {
	var gaps []Gap
	for _, p := range positions {
		if n := len(gaps); n > 0 && gaps[n-1].To == p && gaps[n-1].Reason == why[p] {
			gaps[n-1].To++
			continue
		}
		gaps = append(gaps, Gap{p, p + 1, why[p]})
	}
	return gaps
}
