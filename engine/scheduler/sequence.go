package scheduler

import (
	"sonde/engine/model"
	"sonde/ring2"
)

// request is an open request.
type request struct {
	Request
	arrival  uint64 // priority: what came first is served first
	ticket   *Ticket
	open     int // samples that have not ended
	samples  []*sequence
	unforked []*sequence // those that wait until another one has computed the prompt
	longest  int         // tokens of the longest sample that has ended
}

// state says where a sequence stands.
type state uint8

const (
	unforked state = iota // waits for the prompt, holds nothing
	waiting               // wants to run, holds nothing
	running               // holds KV blocks
	ended
)

// sequence is one sample of a request.
type sequence struct {
	request  *request
	sample   int
	number   uint64
	state    state
	opened   bool // the recorder knows it
	tokens   []int32
	length   int     // of tokens at the end, those that were kept
	computed int     // positions whose keys and values are in blocks
	blocks   []int32 // of the positions below computed, and those being computed
	hashes   []blockHash
	passes   []uint32 // how often each position was computed
	history  []span   // what was computed, kept only where a stop string may disown it
	text     text
	split    bool // the prompt was split over several steps
}

// span is a range that a step computed.
type span struct {
	step            uint64
	position, count int
	pass            int
}

func newSequence(r *request, sample int, number uint64, t model.Tokenizer) *sequence {
	prompt := r.Prompt[:len(r.Prompt):len(r.Prompt)] // Samples must not append into each other's tokens.
	return &sequence{request: r, sample: sample, number: number, tokens: prompt, text: newText(t, r.Stop)}
}

func (q *sequence) generated() int { return len(q.tokens) - len(q.request.Prompt) }

// before says which of two sequences is served first.
func (q *sequence) before(o *sequence) int {
	if q.request != o.request {
		return compare(q.request.arrival, o.request.arrival)
	}
	return q.sample - o.sample
}

func compare(a, b uint64) int {
	if a < b {
		return -1
	}
	return 1
}

// leads says whether others wait for this sequence's prompt.
func (q *sequence) leads() bool { return q.state != unforked && len(q.request.unforked) > 0 }

// slots is how many sequences of a step this one stands for, now or once it has
// forked.
func (q *sequence) slots() int {
	if q.leads() {
		return 1 + len(q.request.unforked)
	}
	return 1
}

func (q *sequence) pass(position int) int {
	if position < len(q.passes) {
		return int(q.passes[position])
	}
	return 0
}

func (q *sequence) phase(position int) ring2.Phase {
	switch {
	case q.pass(position) > 0:
		return ring2.PhaseRecompute
	case position < len(q.request.Prompt):
		return ring2.PhasePrefill
	default:
		return ring2.PhaseDecode
	}
}

// chunk is the number of tokens, at most limit, that can be computed next in one
// range: they have the same pass and phase.
func (q *sequence) chunk(limit int) int {
	first, end := q.computed, min(len(q.tokens), q.computed+limit)
	pass, phase := q.pass(first), q.phase(first)
	n := first
	for n < end && q.pass(n) == pass && q.phase(n) == phase {
		n++
	}
	return n - first
}

// decoding says whether only the last, generated token is to be computed.
func (q *sequence) decoding() bool { return q.computed == len(q.tokens)-1 && q.generated() > 0 }

// count notes that a range was computed.
func (q *sequence) count(step uint64, n int) {
	for len(q.passes) < q.computed+n {
		q.passes = append(q.passes, 0)
	}
	if len(q.request.Stop) > 0 {
		q.history = append(q.history, span{step, q.computed, n, q.pass(q.computed)})
	}
	for i := range n {
		q.passes[q.computed+i]++
	}
	q.computed += n
}

// hash is the chain of the hashes of the first full blocks.
func (q *sequence) chain(blocks, blockTokens int) []blockHash {
	for i := len(q.hashes); i < blocks; i++ {
		parent := rootHash(q.request.Adapter)
		if i > 0 {
			parent = q.hashes[i-1]
		}
		q.hashes = append(q.hashes, parent.next(q.tokens[i*blockTokens:(i+1)*blockTokens]))
	}
	return q.hashes[:blocks]
}

// cached is the number of positions that the sequence never computed itself,
// since a prefix or another sample had them.
func (q *sequence) cached() int {
	n := 0
	for _, c := range q.passes {
		if c == 0 {
			n++
		}
	}
	return n
}

// passCount is the number of passes that some position has seen.
func (q *sequence) passCount() int {
	n := uint32(0)
	for _, c := range q.passes {
		n = max(n, c)
	}
	return int(n)
}
