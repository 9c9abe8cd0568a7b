package scheduler

import (
	"slices"

	"sonde/engine/model"
	"sonde/ring2"
)

// plan is what the next step computes: ranges[i] belongs to sequences[i].
type plan struct {
	ranges    []model.Range
	phases    []ring2.Phase
	sequences []*sequence
	logits    [][]float32 // storage of the ranges' logits, kept from step to step
	tokens    int
}

// prepare plans the next step. Sequences that run go first, in the order of
// their arrival; then waiting ones join as far as there is room. Generated
// tokens are not limited: PrefillChunk bounds the others.
func (s *Scheduler) prepare() {
	p := &s.plan
	p.ranges, p.phases, p.sequences, p.tokens = p.ranges[:0], p.phases[:0], p.sequences[:0], 0
	budget, preempted := s.o.PrefillChunk, false
	for i := 0; i < len(s.running); i++ { // The list may lose its tail meanwhile.
		q := s.running[i]
		n := 1
		if !q.decoding() {
			n = q.chunk(budget)
			budget -= n
		}
		if n == 0 {
			continue
		}
		for !s.hold(q, n) {
			preempted = true
			victim := s.running[len(s.running)-1]
			s.preempt(victim)
			if victim == q {
				n = 0
				break
			}
		}
		if n > 0 {
			s.add(q, n)
		}
	}
	for !preempted && budget > 0 && len(s.waiting) > 0 {
		q := s.waiting[0]
		if !s.enter(q) {
			break
		}
		n := q.chunk(budget)
		budget -= n
		if !s.hold(q, n) {
			panic("BUG: a sequence was let in although its blocks are not there")
		}
		s.add(q, n)
	}
}

// add puts the next n tokens of a sequence into the step.
func (s *Scheduler) add(q *sequence, n int) {
	p := &s.plan
	end := q.computed + n
	r := model.Range{Request: q.request.ID, Number: q.number, Sample: q.sample, Pass: q.pass(q.computed),
		Position: q.computed, Tokens: q.tokens[q.computed:end], Blocks: q.blocks[:s.blocksFor(end)]}
	if end == len(q.tokens) {
		i := len(p.ranges)
		for len(p.logits) <= i {
			p.logits = append(p.logits, make([]float32, s.o.Model.Info().Vocab))
		}
		r.Logits = p.logits[i]
	}
	p.ranges, p.sequences = append(p.ranges, r), append(p.sequences, q)
	p.phases = append(p.phases, q.phase(q.computed))
	p.tokens += n
	if prompt := len(q.request.Prompt); q.computed < prompt && (n < prompt-q.computed || q.split) {
		q.split = end < prompt
		s.metrics.chunks.Inc()
	}
}

func (s *Scheduler) blocksFor(tokens int) int {
	return (tokens + s.o.BlockTokens - 1) / s.o.BlockTokens
}

// hold makes sure that a sequence has blocks of its own for its next n tokens. It
// returns false when there are none; what it took so far stays taken.
func (s *Scheduler) hold(q *sequence, n int) bool {
	// Only the block that holds position computed can be shared and half full.
	if i := q.computed / s.o.BlockTokens; i < len(q.blocks) && s.pool.shared(q.blocks[i]) {
		b, ok := s.pool.take()
		if !ok {
			return false
		}
		s.o.Model.CopyBlock(b, q.blocks[i])
		s.pool.release(q.blocks[i])
		q.blocks[i] = b
	}
	for len(q.blocks) < s.blocksFor(q.computed+n) {
		b, ok := s.pool.take()
		if !ok {
			return false
		}
		q.blocks = append(q.blocks, b)
	}
	return true
}

// enter lets a waiting sequence run when its slots and all its blocks are there.
func (s *Scheduler) enter(q *sequence) bool {
	slots := q.slots()
	for _, o := range s.running {
		slots += o.slots()
	}
	if slots > s.o.MaxBatch {
		return false
	}
	var hits []int32
	idle := 0
	if s.o.PrefixCache { // The last token is always computed: its logits are wanted.
		hits, idle = s.pool.lookup(q.chain((len(q.tokens)-1)/s.o.BlockTokens, s.o.BlockTokens))
	}
	if s.blocksFor(len(q.tokens))-len(hits) > s.pool.available()-idle {
		if len(s.running) == 0 {
			panic("BUG: a sequence does not fit although nothing runs")
		}
		return false
	}
	for _, b := range hits {
		s.pool.retain(b)
	}
	q.blocks, q.computed = hits, len(hits)*s.o.BlockTokens
	s.metrics.hits.Add(float64(q.computed))
	s.waiting = slices.Delete(s.waiting, 0, 1)
	q.state = running
	s.running = insert(s.running, q)
	return true
}

// preempt takes all blocks from a sequence, which computes what they held again
// once there is room.
func (s *Scheduler) preempt(q *sequence) {
	s.releaseBlocks(q)
	s.running = s.running[:len(s.running)-1]
	s.wait(q)
	s.metrics.preemptions.Inc()
}
