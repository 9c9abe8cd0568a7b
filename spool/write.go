package spool

import (
	"errors"
	"fmt"
	"time"
)

// errFull: there is no room, and nothing that may be discarded for it.
var errFull = errors.New("the spool is full")

// write appends what the bus does not take to segments, as long as there is such.
func (s *Spool) write() {
	tick := time.NewTicker(max(s.o.After/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.toWrite:
		case <-tick.C:
		}
		for s.spills() && s.ctx.Err() == nil {
			s.gather()
			err := errors.Join(s.spill(), s.removeSettled())
			s.tell(err)
			if err != nil {
				s.pause(err)
			}
		}
		s.tell(s.removeSettled()) // nothing else needs the disk now
	}
}

// pause waits: for a disk that may take something again, or, in a full spool, until
// the bus took something.
func (s *Spool) pause(why error) {
	timer := time.NewTimer(s.o.retry)
	defer timer.Stop()
	woken := s.toWrite
	if !errors.Is(why, errFull) {
		woken = nil
	}
	select {
	case <-woken:
	case <-timer.C:
	case <-s.ctx.Done():
	}
}

// spills reports whether messages in memory must go to the disk: the bus is away, or
// it has not caught up with what is there.
func (s *Spool) spills() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	began := s.spilling
	s.spilling = false
	for _, it := range s.queue {
		if it.answered || it.gone != nil {
			continue
		}
		away := time.Since(it.since) >= s.o.After
		full := 2*s.queueBytes >= s.o.WindowBytes && time.Since(s.lastAnswer) >= s.o.After/8
		s.spilling = s.unhanded > 0 || away || full
		break
	}
	if s.spilling && !began && s.records == 0 {
		s.log.Warn("the bus is away: what it does not take is spooled to disk", "folder", s.o.Dir,
			"silent_for", time.Since(s.lastAnswer).Round(time.Millisecond), "waiting_bytes", s.queueBytes)
	}
	return s.spilling
}

// gather waits for more, so that one sync is of many messages. Nobody is in a hurry
// while the bus takes what is there: then its disk, which may be this one, goes first.
func (s *Spool) gather() {
	wait, most := s.o.SyncInterval, s.o.SyncBytes
	s.mu.Lock()
	if time.Since(s.lastAnswer) < s.o.After/4 {
		wait, most = max(wait, s.o.After/2), max(most, s.o.WindowBytes/2)
	}
	s.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		s.mu.Lock()
		enough := s.queueBytes >= most
		s.mu.Unlock()
		if enough {
			return
		}
		select {
		case <-s.toWrite:
		case <-timer.C:
			return
		case <-s.ctx.Done():
			return
		}
	}
}

// batch is what is written and not synced yet.
type batch struct {
	g       *segment
	items   []*item
	entries []*entry // of them, in their order
	of      []int    // for each item: one past its last entry
	kept    []*entry // for each item: the entry that holds its message, or nil
	dropped []uint64 // for each item: rows that were discarded
}

// spill writes, syncs and lets go of one batch of messages.
func (s *Spool) spill() error {
	b := &batch{}
	defer s.unmark()
	for _, it := range s.takeBatch() {
		err := s.put(b, it)
		if errors.Is(err, errFull) {
			return errors.Join(err, s.commit(b))
		}
		if err != nil {
			return errors.Join(err, s.abandon(b))
		}
	}
	return s.commit(b)
}

// takeBatch marks the next messages of the queue as being written.
func (s *Spool) takeBatch() []*item {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*item
	bytes := int64(0)
	for _, it := range s.queue {
		if it.answered || it.gone != nil {
			continue
		}
		if len(out) > 0 && bytes+int64(len(it.m.Data)) > s.o.SyncBytes {
			break
		}
		it.writing = true
		out, bytes = append(out, it), bytes+int64(len(it.m.Data))
	}
	return out
}

// put writes a message, or what is left of it where the spool is full.
func (s *Spool) put(b *batch, it *item) error {
	parts, dropped, err := s.admit(b, it)
	if err != nil {
		return err
	}
	var kept *entry
	for i := range parts {
		e, err := s.append(b, &parts[i])
		if err != nil {
			return err
		}
		if i == len(parts)-1 && (dropped == 0 || len(parts[i].Rows) > 0) {
			kept = e
		}
	}
	b.items, b.kept, b.dropped = append(b.items, it), append(b.kept, kept), append(b.dropped, dropped)
	b.of = append(b.of, len(b.entries))
	return nil
}

// append writes the record of a message behind the last one.
func (s *Spool) append(b *batch, m *Message) (*entry, error) {
	g, err := s.active()
	if err != nil {
		return nil, err
	}
	b.g = g
	s.buf = appendHead(s.buf[:0], s.number, m)
	s.number++
	s.buf = append(s.buf, m.Data...)
	if err := s.writeAt(g.file, s.buf, g.size); err != nil {
		return nil, err
	}
	e := s.entryOf(g, g.size, m, int64(len(s.buf)))
	g.size += int64(len(s.buf))
	b.entries = append(b.entries, e)
	s.metrics.written.Inc()
	s.metrics.writtenBytes.Add(float64(len(s.buf)))
	if g.size >= s.segmentBytes() {
		return e, s.seal(b)
	}
	return e, nil
}

// seal ends the active segment. What stands in it is synced.
func (s *Spool) seal(b *batch) error {
	if err := s.sync(b.g.file); err != nil {
		return err
	}
	s.mu.Lock()
	s.used += b.g.size - b.g.synced
	b.g.synced, b.g.sealed = b.g.size, true
	s.mu.Unlock()
	return nil
}

// commit syncs a batch and tells whose messages these are.
func (s *Spool) commit(b *batch) error {
	if b.g != nil && !b.g.sealed {
		if err := s.sync(b.g.file); err != nil {
			return errors.Join(err, s.abandon(b))
		}
		s.mu.Lock()
		s.used += b.g.size - b.g.synced
		b.g.synced = b.g.size
		s.mu.Unlock()
	}
	s.doneMu.Lock()
	defer s.doneMu.Unlock()
	at := 0
	for i, it := range b.items {
		s.let(it, b.entries[at:b.of[i]], b.kept[i], b.dropped[i])
		at = b.of[i]
	}
	s.mu.Lock()
	s.measure()
	s.mu.Unlock()
	*b = batch{}
	wake(s.toDrain)
	return nil
}

// let enters the records of a message, which leaves the queue, unless it was answered
// meanwhile: then they are garbage. Callers hold doneMu.
func (s *Spool) let(it *item, entries []*entry, kept *entry, dropped uint64) {
	s.mu.Lock()
	over := it.done == nil || it.gone != nil || it.told != nil
	for _, e := range entries {
		e.seg.entries = append(e.seg.entries, e)
		if over {
			e.state = entrySettled
			continue
		}
		e.seg.left++
		if e == kept {
			e.counted = e.rows > 0
			if it.handed {
				e.state, e.pending, it.entry = entryHanded, 1, e
			}
		}
		s.enter(e)
	}
	s.mu.Unlock()
	if over {
		return
	}
	s.call(it, 0, nil)
	if dropped > 0 {
		s.metrics.discarded.Inc()
		s.o.Handlers.Settled(it.m.Owner, dropped, Discarded)
	}
}

// unmark ends the writing of messages, also of those whose turn did not come.
func (s *Spool) unmark() {
	s.doneMu.Lock()
	defer s.doneMu.Unlock()
	var gone, answered []*item
	s.mu.Lock()
	for _, it := range s.queue {
		switch {
		case !it.writing:
		case it.told != nil:
			answered = append(answered, it)
		case it.gone != nil && !it.handed:
			gone = append(gone, it)
		}
		it.writing, it.claimed = false, false
	}
	s.trimQueue()
	s.mu.Unlock()
	for _, it := range answered {
		s.call(it, it.told.seq, it.told.err)
	}
	for _, it := range gone {
		s.call(it, 0, it.gone)
	}
	wake(s.toDrain)
}

// abandon takes back a batch that could not be written. What was sealed or cannot be
// cut off stays as copies, which readers drop.
func (s *Spool) abandon(b *batch) error {
	g := b.g
	if g == nil || g.sealed {
		return nil
	}
	// What a failed sync left of the pages is unknown: nothing is appended behind them.
	s.mu.Lock()
	g.sealed = true
	s.mu.Unlock()
	if err := g.file.Truncate(g.synced); err != nil {
		return fmt.Errorf("cut %s: %w", g.path, err)
	}
	g.size = g.synced
	return nil
}

// tell keeps what is wrong with the disk, and logs it once.
func (s *Spool) tell(err error) {
	what := ""
	if err != nil && !errors.Is(err, errFull) {
		what = "the spool cannot be written: " + err.Error()
	}
	s.mu.Lock()
	before := s.trouble
	s.trouble = what
	s.mu.Unlock()
	if what != "" && before == "" {
		s.metrics.failed.Set(1)
		s.log.Error("the spool cannot be written; it is tried again, and publishing waits", "error", err)
	} else if what == "" && before != "" {
		s.metrics.failed.Set(0)
		s.log.Info("the spool can be written again", "folder", s.o.Dir)
	}
}
