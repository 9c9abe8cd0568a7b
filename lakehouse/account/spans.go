package account

import (
	"cmp"
	"slices"
)

// span is a run of consecutive rows of one record: first to last.
type span struct {
	seq         uint64
	first, last uint32
}

// each calls f with each row.
func (s span) each(f func(row uint32) bool) {
	for row := uint64(s.first); row <= uint64(s.last) && f(uint32(row)); row++ {
	}
}

func (s span) rows() uint64 { return uint64(s.last-s.first) + 1 }

func compareSpans(a, b span) int {
	return cmp.Or(cmp.Compare(a.seq, b.seq), cmp.Compare(a.first, b.first))
}

// spanSet collects the rows of one chain, in any order, in 16 bytes a run. Rows
// mostly come in ascending order; what does not is merged in, now and then.
type spanSet struct {
	sorted []span // ascending, neither overlapping nor touching
	tail   []span // not merged yet
}

// tailMin is how long the tail may grow before it is merged, at the least. From
// there on it may be as long as the sorted part, so that merging stays linear.
const tailMin = 4096

// add puts one row in. repeated is told of rows that were there before, perhaps
// during a later call.
func (s *spanSet) add(seq uint64, row uint32, repeated func(span)) {
	if n := len(s.tail); n > 0 && s.tail[n-1].seq == seq && row > 0 && s.tail[n-1].last == row-1 {
		s.tail[n-1].last++
		return
	}
	if len(s.tail) >= tailMin && len(s.tail) >= len(s.sorted) {
		s.merge(repeated)
	}
	s.tail = append(s.tail, span{seq, row, row})
}

// merge makes sorted the union of both parts.
func (s *spanSet) merge(repeated func(span)) {
	if len(s.tail) == 0 {
		return
	}
	slices.SortFunc(s.tail, compareSpans)
	out := make([]span, 0, len(s.sorted)+len(s.tail))
	i, j := 0, 0
	for i < len(s.sorted) || j < len(s.tail) {
		var next span
		if j == len(s.tail) || i < len(s.sorted) && compareSpans(s.sorted[i], s.tail[j]) <= 0 {
			next = s.sorted[i]
			i++
		} else {
			next = s.tail[j]
			j++
		}
		out = appendSpan(out, next, repeated)
	}
	s.sorted, s.tail = slices.Clip(out), s.tail[:0]
}

// appendSpan adds a span that does not start before the last one.
func appendSpan(out []span, next span, repeated func(span)) []span {
	n := len(out)
	if n == 0 || out[n-1].seq != next.seq || uint64(out[n-1].last)+1 < uint64(next.first) {
		return append(out, next)
	}
	before := &out[n-1]
	if before.last >= next.first {
		repeated(span{next.seq, next.first, min(before.last, next.last)})
	}
	before.last = max(before.last, next.last)
	return out
}
