package scheduler

import (
	"fmt"
	"slices"
	"time"

	"sonde/ring2"
)

// step computes what is due, if anything is.
func (s *Scheduler) step() error {
	if len(s.running)+len(s.waiting) == 0 {
		return nil
	}
	began := time.Now()
	s.prepare()
	p := &s.plan
	if len(p.ranges) == 0 {
		panic("BUG: there is work, but a step without any was planned")
	}
	step, err := s.o.Recorder.Step(p.ranges, p.phases)
	if err != nil {
		return fmt.Errorf("compute a step of %d tokens: %w", p.tokens, err)
	}
	for i, q := range p.sequences {
		r := &p.ranges[i]
		s.metrics.tokens.WithLabelValues(p.phases[i].String()).Add(float64(len(r.Tokens)))
		q.count(step, len(r.Tokens))
		s.rememberBlocks(q, len(r.Tokens))
		if r.Logits != nil {
			for _, member := range s.fork(q) {
				s.sample(member, r.Logits)
			}
		}
	}
	took := time.Since(began)
	s.metrics.step(len(p.ranges), took)
	if s.o.OnStep != nil {
		s.o.OnStep(StepInfo{Start: began, Duration: took, Tokens: p.tokens, Sequences: len(p.ranges)})
	}
	return nil
}

// rememberBlocks makes blocks known to the prefix cache that the last n tokens
// filled.
func (s *Scheduler) rememberBlocks(q *sequence, n int) {
	full := q.computed / s.o.BlockTokens
	for i := (q.computed - n) / s.o.BlockTokens; i < full && s.o.PrefixCache; i++ {
		s.pool.remember(q.blocks[i], q.chain(full, s.o.BlockTokens)[i])
	}
}

// fork lets those samples run that waited for the prompt which q has just
// completed. It returns them and q.
func (s *Scheduler) fork(q *sequence) []*sequence {
	members := append([]*sequence{q}, q.request.unforked...)
	q.request.unforked = nil
	for _, o := range members[1:] {
		o.state, o.computed, o.blocks, o.hashes = running, q.computed, slices.Clone(q.blocks), slices.Clone(q.hashes)
		for _, b := range o.blocks {
			s.pool.retain(b)
		}
		s.running = insert(s.running, o)
	}
	return members
}

// sample draws the next token of a sequence and ends it where it has to end.
func (s *Scheduler) sample(q *sequence, logits []float32) {
	id, err := s.sampler.draw(logits, q.request.Sampling, q.sample, len(q.tokens))
	if err != nil {
		s.o.Logger.Error("a sequence ends", "request", q.request.ID, "sample", q.sample, "error", err)
		s.end(q, ring2.FinishError, q.generated(), Event{Token: -1, Text: q.text.rest()})
		return
	}
	q.tokens = append(q.tokens, id)
	if id == s.o.Model.Info().EOS {
		s.end(q, ring2.FinishStop, q.generated(), Event{Token: id, Text: q.text.rest()})
		return
	}
	if kept := q.text.add(id); kept >= 0 {
		s.end(q, ring2.FinishStop, kept, Event{Token: id, Text: q.text.ready()})
		return
	}
	if q.generated() == q.request.MaxTokens || len(q.tokens) == s.context {
		s.end(q, ring2.FinishLength, q.generated(), Event{Token: id, Text: q.text.rest()})
		return
	}
	q.request.ticket.push(Event{Sample: q.sample, Token: id, Text: q.text.ready(), Generated: q.generated()})
}
