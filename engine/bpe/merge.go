package bpe

import "container/heap"

// merger is the memory for merging one word, kept from word to word.
type merger struct {
	symbols []symbol
	queue   candidates
}

// symbol is a token of the word, linked to its neighbours; -1: none.
type symbol struct {
	id, previous, next int32
	gone               bool // merged into its left neighbour
}

// candidate is a pair of neighbours that may be merged: the one at a position
// with what follows it.
type candidate struct {
	merge
	at int32
}

// appendWord appends the ids of one word. The queue keeps a word of n bytes at
// n log n steps: a prompt may be one word of any length.
func (t *Tokenizer) appendWord(ids []int32, m *merger, word string) []int32 {
	m.symbols, m.queue = m.symbols[:0], m.queue[:0]
	for i := range len(word) {
		m.symbols = append(m.symbols, symbol{id: t.first[word[i]], previous: int32(i) - 1, next: int32(i) + 1})
	}
	m.symbols[len(word)-1].next = -1
	for i := range m.symbols {
		t.propose(m, int32(i))
	}
	for len(m.queue) > 0 {
		c := heap.Pop(&m.queue).(candidate)
		left := &m.symbols[c.at]
		if left.gone || left.next < 0 {
			continue
		}
		right := &m.symbols[left.next]
		if now, ok := t.merges[pair{left.id, right.id}]; !ok || now != c.merge {
			continue // one of the two was merged with another in the meantime
		}
		left.id, left.next, right.gone = c.id, right.next, true
		if right.next >= 0 {
			m.symbols[right.next].previous = c.at
		}
		if left.previous >= 0 {
			t.propose(m, left.previous)
		}
		t.propose(m, c.at)
	}
	for i := int32(0); i >= 0; i = m.symbols[i].next {
		ids = append(ids, m.symbols[i].id)
	}
	return ids
}

func (t *Tokenizer) propose(m *merger, at int32) {
	left := m.symbols[at]
	if left.next < 0 {
		return
	}
	if found, ok := t.merges[pair{left.id, m.symbols[left.next].id}]; ok {
		heap.Push(&m.queue, candidate{found, at})
	}
}

// candidates is a heap: the merge that was learnt first, the leftmost of equals.
type candidates []candidate

func (c candidates) Len() int { return len(c) }

func (c candidates) Less(i, j int) bool {
	return c[i].rank < c[j].rank || c[i].rank == c[j].rank && c[i].at < c[j].at
}

func (c candidates) Swap(i, j int) { c[i], c[j] = c[j], c[i] }

func (c *candidates) Push(x any) { *c = append(*c, x.(candidate)) }

func (c *candidates) Pop() any {
	old := *c
	x := old[len(old)-1]
	*c = old[:len(old)-1]
	return x
}
