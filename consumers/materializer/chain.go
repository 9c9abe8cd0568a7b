package materializer

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"sonde/schema"
)

// maxSpans bounds the spans that a chain remembers from one commit to the next.
// Beyond it, the oldest are forgotten, and the table is asked instead.
const maxSpans = 64

// span is a run of a chain that was seen: [from, to).
type span struct{ from, to schema.Cursor }

// ask says which rows that a chain did not see may be in the table all the same.
type ask int

const (
	askNothing ask = iota
	askBelow       // those below top: spans were forgotten
	askAll         // any: the whole chain was forgotten once
)

// chain says which rows of a chain were seen: all before mark, and those in the
// spans above it.
type chain struct {
	mark  schema.Cursor
	spans []span // ascending, apart from each other and from mark
	ask   ask
	dirty bool // changed since the last commit
}

// top is one past everything that was ever seen, but with askAll.
func (c *chain) top() schema.Cursor {
	if n := len(c.spans); n > 0 {
		return c.spans[n-1].to
	}
	return c.mark
}

// add notes that [from, to) was seen.
func (c *chain) add(from, to schema.Cursor) {
	if !from.Less(to) {
		return
	}
	c.dirty = true
	if !c.mark.Less(from) {
		if c.mark.Less(to) {
			c.mark = to
		}
	} else {
		i := sort.Search(len(c.spans), func(i int) bool { return !c.spans[i].to.Less(from) }) // first that reaches from
		j := i
		for ; j < len(c.spans) && !to.Less(c.spans[j].from); j++ {
			if c.spans[j].from.Less(from) {
				from = c.spans[j].from
			}
			if to.Less(c.spans[j].to) {
				to = c.spans[j].to
			}
		}
		c.spans = slices.Replace(c.spans, i, j, span{from, to})
	}
	for len(c.spans) > 0 && !c.mark.Less(c.spans[0].from) {
		if c.mark.Less(c.spans[0].to) {
			c.mark = c.spans[0].to
		}
		c.spans = slices.Delete(c.spans, 0, 1)
	}
}

// unseen calls f with each run of rows of s that was not seen.
func (c *chain) unseen(s schema.Span, f func(first, rows uint32)) {
	first, end := s.First, s.First+s.Rows
	cut := func(from, to schema.Cursor) { // what was seen, ascending
		low, high, ok := rowsOf(s.Seq, from, to)
		if !ok || high <= first || low >= end {
			return
		}
		if low > first {
			f(first, low-first)
		}
		first = min(high, end)
	}
	cut(schema.Cursor{}, c.mark)
	i := sort.Search(len(c.spans), func(i int) bool { return s.Start().Less(c.spans[i].to) })
	for ; i < len(c.spans) && first < end && c.spans[i].from.Less(s.End()); i++ {
		cut(c.spans[i].from, c.spans[i].to)
	}
	if first < end {
		f(first, end-first)
	}
}

// rowsOf is the part of [from, to) that lies in one record: rows [low, high).
func rowsOf(seq uint64, from, to schema.Cursor) (low, high uint32, ok bool) {
	if from.Seq > seq || to.Seq < seq {
		return 0, 0, false
	}
	if from.Seq == seq {
		low = from.Row
	}
	high = ^uint32(0)
	if to.Seq == seq {
		high = to.Row
	}
	return low, high, low < high
}

// shrink forgets the oldest spans above the bound and reports how many. It is
// called when everything that was seen is about to be in the table.
func (c *chain) shrink() int {
	n := max(len(c.spans)-maxSpans, 0)
	if n > 0 {
		c.spans = slices.Delete(c.spans, 0, n)
		c.ask = max(c.ask, askBelow)
	}
	return n
}

// String is the state in the log: the mark, then each span as from-to, then "?" or
// "*" when the table must be asked.
func (c *chain) String() string {
	var b strings.Builder
	b.WriteString(c.mark.String())
	for _, s := range c.spans {
		b.WriteByte(' ')
		b.WriteString(s.from.String())
		b.WriteByte('-')
		b.WriteString(s.to.String())
	}
	b.WriteString([]string{"", " ?", " *"}[c.ask])
	return b.String()
}

// parseChain reads what String wrote.
func parseChain(text string) (*chain, error) {
	words := strings.Split(text, " ")
	mark, err := schema.ParseCursor(words[0])
	if err != nil {
		return nil, err
	}
	c := &chain{mark: mark}
	for i, word := range words[1:] {
		if n := slices.Index([]string{"?", "*"}, word); n >= 0 && i == len(words)-2 {
			c.ask = ask(n) + askBelow
			break
		}
		a, b, _ := strings.Cut(word, "-")
		from, err := schema.ParseCursor(a)
		if err != nil {
			return nil, err
		}
		to, err := schema.ParseCursor(b)
		if err != nil {
			return nil, err
		}
		if !c.top().Less(from) || !from.Less(to) {
			return nil, fmt.Errorf("span %.60q does not follow %s", word, c.top())
		}
		c.spans = append(c.spans, span{from, to})
	}
	return c, nil
}
