package spool

import (
	"context"
	"errors"
	"time"

	"sonde/bus"
)

// drain hands messages to the bus in their order, one after the other: first those
// on disk, then those in memory.
func (s *Spool) drain() {
	for s.ctx.Err() == nil {
		if it := s.takeRefused(); it != nil {
			s.replace(it, s.o.Handlers.Refused(it.m, it.gone))
			continue
		}
		e, it := s.nextToHand()
		switch {
		case e != nil:
			s.handEntry(e)
		case it != nil:
			s.hand(it)
		default:
			select {
			case <-s.toDrain:
			case <-s.ctx.Done():
			}
		}
	}
}

// nextToHand marks the next message as handed. Both are nil while there is none.
func (s *Spool) nextToHand() (*entry, *item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.segments {
		for ; g.at < len(g.entries); g.at++ {
			e := g.entries[g.at]
			if e.state == entryHanded || e.state == entrySettled {
				continue
			}
			if e.state == entryLeaving || e.barrier && s.outstanding > 0 ||
				!s.mayHand(int64(e.size), min(s.o.WindowBytes/4, s.o.MaxBytes/16)) {
				return nil, nil
			}
			s.leave(e)
			e.state, e.pending = entryHanded, 1
			s.inBus += int64(e.size)
			s.outstanding++
			return e, nil
		}
	}
	for ; s.toHand < len(s.queue); s.toHand++ {
		it := s.queue[s.toHand]
		if it.handed || it.answered || it.gone != nil {
			continue
		}
		if it.claimed || it.m.Barrier && s.outstanding > 0 || !s.mayHand(int64(len(it.m.Data)), s.o.WindowBytes) {
			return nil, nil
		}
		it.handed, it.bytes = true, int64(len(it.m.Data))
		s.inBus += it.bytes
		s.outstanding++
		return nil, it
	}
	return nil, nil
}

// mayHand bounds what the bus has and did not answer. While it is away, such messages
// can neither be discarded nor stored; of those on disk it gets few at a time. Callers
// hold mu.
func (s *Spool) mayHand(bytes, most int64) bool { return s.inBus == 0 || s.inBus+bytes <= most }

// hand gives a message of the queue to the bus.
func (s *Spool) hand(it *item) {
	ctx, cancel := context.WithCancel(s.ctx)
	s.mu.Lock()
	it.cancel = cancel
	gone := it.gone != nil && it.done != nil
	s.mu.Unlock()
	if gone { // while it was marked
		cancel()
	}
	s.publish(ctx, it)
}

func (s *Spool) publish(ctx context.Context, it *item) {
	err := s.o.Bus.Publish(ctx, it.m.Message, func(seq uint64, err error) { s.answer(it, seq, err) })
	if err != nil {
		s.answer(it, 0, err)
	}
}

// handEntry reads a message from the disk and gives it to the bus. Where the disk
// gives back other bytes than it got, facts about its rows go in its place.
func (s *Spool) handEntry(e *entry) {
	m, err := s.read(e)
	if err == nil {
		s.publish(s.ctx, &item{m: m, entry: e, bytes: int64(e.size)})
		return
	}
	s.metrics.damaged.Inc()
	s.log.Error("a message of the spool cannot be read back; facts name its rows", "subject", m.Subject, "error", err)
	e.outcome = Damaged
	var facts []bus.Message
	if m.Subject != "" {
		facts = s.o.Handlers.Damaged(m)
	}
	s.replace(&item{entry: e, bytes: int64(e.size)}, facts)
}

// replace publishes facts in the place of a message from the disk that was handed out.
func (s *Spool) replace(it *item, facts []bus.Message) {
	e := it.entry
	s.mu.Lock()
	e.pending += uint32(len(facts))
	s.outstanding += len(facts)
	s.mu.Unlock()
	for _, f := range facts {
		s.publish(s.ctx, &item{m: Message{Message: f}, entry: e, instead: true})
	}
	s.answer(&item{entry: e, bytes: it.bytes}, 0, nil)
}

// takeRefused is a message from the disk that the bus refused.
func (s *Spool) takeRefused() *item {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.refused) == 0 {
		return nil
	}
	it := s.refused[0]
	s.refused = s.refused[1:]
	it.entry.quiet = true
	return it
}

// answer takes the bus's answer to a message.
func (s *Spool) answer(it *item, seq uint64, err error) {
	s.doneMu.Lock()
	defer s.doneMu.Unlock()
	s.mu.Lock()
	s.lastAnswer = time.Now()
	e := it.entry
	refused := errors.Is(err, bus.ErrRefused)
	switch {
	case e == nil || err != nil && !refused:
		// A message of the queue. Of one from the disk it is the end of this process, or of
		// the bus: the next one publishes it.
	case refused && !it.instead:
		it.gone = err
		s.refused = append(s.refused, it)
		s.mu.Unlock()
		wake(s.toDrain)
		return
	default:
		e.pending--
	}
	s.outstanding--
	s.inBus -= it.bytes
	writing := e == nil && it.writing
	if writing { // done gives the data back to the caller, who writes into them
		it.told = &told{seq, err}
	}
	settled := e != nil && e.pending == 0 && e.state == entryHanded
	if settled {
		s.settled(e)
	}
	s.mu.Unlock()
	if it.cancel != nil {
		it.cancel()
	}
	switch {
	case writing:
	case e == nil:
		s.call(it, seq, err)
	case settled && e.counted && !e.quiet:
		s.o.Handlers.Settled(e.owner, uint64(e.rows), e.outcome)
	}
	wake(s.toDrain)
}
