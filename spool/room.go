package spool

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"sonde/bus"
)

// enter counts an entry that is on disk. Callers hold mu.
func (s *Spool) enter(e *entry) {
	s.records++
	if e.state == entryWaiting {
		s.await(e)
	}
}

// await counts an entry that the bus does not have. Callers hold mu.
func (s *Spool) await(e *entry) {
	s.unhanded++
	if e.rows > 0 && !e.stays {
		s.low[e.low]++
	}
}

// leave undoes await. Callers hold mu.
func (s *Spool) leave(e *entry) {
	s.unhanded--
	if e.rows == 0 || e.stays {
		return
	}
	if s.low[e.low]--; s.low[e.low] == 0 {
		delete(s.low, e.low)
	}
}

// settled ends an entry. Callers hold mu.
func (s *Spool) settled(e *entry) {
	e.state = entrySettled
	s.records--
	s.metrics.drained.Inc()
	if e.seg.left--; e.seg.left == 0 {
		wake(s.toWrite)
	}
}

// measure shows the size. Callers hold mu, or are alone.
func (s *Spool) measure() {
	s.metrics.bytes.Set(float64(s.used))
	s.metrics.messages.Set(float64(s.records))
}

// segmentBytes is where a segment ends.
func (s *Spool) segmentBytes() int64 { return min(max(s.o.MaxBytes/16, 4<<10), 64<<20) }

// roomFor reports whether so many bytes have room. One segment's worth stays free, to
// write a segment anew, and an eighth is for what is never discarded.
func (s *Spool) roomFor(b *batch, bytes int64, droppable bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit, records := s.o.MaxBytes-s.segmentBytes(), maxRecords
	if droppable {
		limit, records = limit-limit/8, records-records/8
	}
	used := s.used + bytes
	if b.g != nil {
		used += b.g.size - b.g.synced
	}
	return used <= limit && s.records+len(b.entries) < records
}

// lowest is the lowest priority of rows that may be discarded.
func (s *Spool) lowest() (priority int32, any bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.low {
		if !any || p < priority {
			priority, any = p, true
		}
	}
	return priority, any
}

// lowestFrom is the lowest priority of rows that is at least least.
func lowestFrom(rows []Run, least int64) (lowest int32, any bool) {
	for _, r := range rows {
		if int64(r.Priority) >= least && (!any || r.Priority < lowest) {
			lowest, any = r.Priority, true
		}
	}
	return lowest, any
}

// admit makes room for a message, or takes out of it what must give way. It returns
// what to write: facts about the rows that were taken out, and the message last,
// unless nothing is left of it. What the bus was given already stays whole.
func (s *Spool) admit(b *batch, it *item) (parts []Message, dropped uint64, err error) {
	m, facts, least := &it.m, []Message(nil), int64(math.MinInt32)
	for {
		var mine int32 // the lowest priority that can be taken out with a gain
		droppable := false
		if m != nil {
			mine, droppable = lowestFrom(m.Rows, least)
		}
		size := sizeOf(facts, m)
		if s.roomFor(b, size, droppable) {
			return with(facts, m), dropped, nil
		}
		if s.o.WhenFull == Wait {
			return nil, 0, errFull
		}
		if droppable = droppable && s.claim(it); !droppable && s.roomFor(b, size, false) {
			return with(facts, m), dropped, nil
		}
		if len(b.items) > 0 { // what is in the batch may give way, too
			if err := s.commit(b); err != nil {
				return nil, 0, err
			}
			continue
		}
		low, any := s.lowest()
		if any && (!droppable || low < mine || low == mine && s.o.WhenFull == DropOldest) {
			if err := s.lessen(low); err != nil {
				return nil, 0, err
			}
			continue
		}
		if !droppable {
			return nil, 0, errFull
		}
		kept, more, err := s.o.Handlers.Lessen(*m, mine)
		if err != nil {
			return nil, 0, fmt.Errorf("take rows out of a message to %s: %w", m.Subject, err)
		}
		less := slices.Clone(facts)
		for _, f := range more {
			less = append(less, Message{Message: f})
		}
		if sizeOf(less, kept) >= size { // these rows go with those above them
			least = int64(mine) + 1
			continue
		}
		dropped += m.RowCount()
		if kept != nil {
			dropped -= kept.RowCount()
		}
		m, facts = kept, less
	}
}

// with is facts, and a message behind them where there is one.
func with(facts []Message, m *Message) []Message {
	if m == nil {
		return facts
	}
	return append(facts, *m)
}

// sizeOf is the bytes of the records of facts and of a message behind them.
func sizeOf(facts []Message, m *Message) (n int64) {
	for i := range facts {
		n += recordSize(&facts[i])
	}
	if m != nil {
		n += recordSize(m)
	}
	return n
}

// claim keeps a message from the bus while it is admitted, unless the bus has it.
func (s *Spool) claim(it *item) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	it.claimed = !it.handed
	return it.claimed
}

// lessen takes the rows of one priority out of a segment: it is written anew, with
// facts about these rows in their place, and replaces the old one at once.
func (s *Spool) lessen(priority int32) error {
	g := s.victim(priority)
	if g == nil {
		return nil // the bus got them meanwhile
	}
	temp := g.path + tempSuffix
	r := &rewrite{s: s, g: g, priority: priority}
	err := r.write(temp)
	if err == nil {
		if err = s.step(stepRename, g.path); err == nil {
			err = os.Rename(temp, g.path)
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s anew: %w", g.path, err), r.undo(temp))
	}
	err = s.syncDir()
	r.swap()
	return err
}

// victim chooses a segment with rows of a priority, and marks their entries.
func (s *Spool) victim(priority int32) *segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	segments := slices.Clone(s.segments)
	if s.o.WhenFull == DropNewest {
		slices.Reverse(segments)
	}
	for _, g := range segments {
		found := false
		for _, e := range g.entries {
			if e.droppable() && e.low == priority {
				s.leave(e)
				e.state, found = entryLeaving, true
			}
		}
		if found {
			g.sealed = true
			return g
		}
	}
	return nil
}

// rewrite is a segment that is written anew.
type rewrite struct {
	s        *Spool
	g        *segment
	priority int32
	file     *os.File
	size     int64
	entries  []*entry
	moved    []placed
	lost     []lostRows
}

// placed is where an entry of the old file stands in the new one.
type placed struct {
	e     *entry
	at    entry
	found bool // false: nothing is left of its message
}

type lostRows struct {
	owner string
	rows  uint64
}

// write writes the new file and syncs it.
func (r *rewrite) write(temp string) error {
	var err error
	if r.file, err = r.s.create(temp, r.g.number); err != nil {
		return err
	}
	r.size = segmentHead
	for _, e := range r.g.entries {
		r.s.mu.Lock()
		state := e.state
		r.s.mu.Unlock()
		switch state {
		case entrySettled:
			continue
		case entryLeaving:
			err = r.lessen(e)
		default:
			err = r.copy(e)
		}
		if err != nil {
			return err
		}
	}
	return r.s.sync(r.file)
}

// copy takes a record as it is.
func (r *rewrite) copy(e *entry) error {
	b := make([]byte, e.size)
	if _, err := r.g.file.ReadAt(b, e.off); err != nil {
		return err
	}
	at := entry{off: r.size, size: e.size, rows: e.rows, low: e.low}
	r.entries, r.moved = append(r.entries, e), append(r.moved, placed{e, at, true})
	return r.put(b)
}

func (r *rewrite) put(b []byte) error {
	if err := r.s.writeAt(r.file, b, r.size); err != nil {
		return err
	}
	r.size += int64(len(b))
	return nil
}

// lessen writes facts about the rows of the priority, and the others.
func (r *rewrite) lessen(e *entry) error {
	m, err := r.s.read(e)
	var kept *Message
	var facts []Message
	if err == nil {
		var more []bus.Message
		kept, more, err = r.s.o.Handlers.Lessen(m, r.priority)
		for _, f := range more {
			facts = append(facts, Message{Message: f})
		}
	}
	if err != nil { // whoever reads it in its turn says what is wrong with it
		return r.copy(e)
	}
	if sizeOf(facts, kept) >= int64(e.size) { // these rows go with those above them
		next, any := lowestFrom(m.Rows, int64(r.priority)+1)
		e.low, e.stays = next, !any
		return r.copy(e)
	}
	for i := range facts {
		f := r.s.entryOf(r.g, r.size, &facts[i], recordSize(&facts[i]))
		r.entries = append(r.entries, f)
		if err := r.record(&facts[i]); err != nil {
			return err
		}
	}
	rows := m.RowCount()
	if kept == nil {
		r.moved = append(r.moved, placed{e: e})
	} else {
		rows -= kept.RowCount()
		at := *r.s.entryOf(r.g, r.size, kept, recordSize(kept))
		r.entries, r.moved = append(r.entries, e), append(r.moved, placed{e, at, true})
		if err := r.record(kept); err != nil {
			return err
		}
	}
	if e.counted {
		r.lost = append(r.lost, lostRows{e.owner, rows})
	}
	return nil
}

func (r *rewrite) record(m *Message) error {
	b := append(appendHead(nil, r.s.number, m), m.Data...)
	r.s.number++
	return r.put(b)
}

// undo leaves everything as it was.
func (r *rewrite) undo(temp string) error {
	var err error
	if r.file != nil {
		err = r.file.Close()
	}
	r.s.mu.Lock()
	for _, e := range r.g.entries {
		if e.state == entryLeaving {
			e.state = entryWaiting
			r.s.await(e)
		}
	}
	r.s.mu.Unlock()
	wake(r.s.toDrain)
	return errors.Join(err, removeIfThere(temp))
}

// swap puts the new file in the place of the old one.
func (r *rewrite) swap() {
	s, g := r.s, r.g
	s.doneMu.Lock()
	defer s.doneMu.Unlock()
	s.files.Lock()
	s.mu.Lock()
	old := g.file
	for _, p := range r.moved {
		switch {
		case p.found && p.e.state == entryLeaving:
			p.e.off, p.e.size, p.e.rows, p.e.low, p.e.state = p.at.off, p.at.size, p.at.rows, p.at.low, entryWaiting
			s.await(p.e)
		case p.found:
			p.e.off = p.at.off
		default:
			p.e.state = entrySettled
			s.records--
		}
	}
	left := 0
	known := map[*entry]bool{}
	for _, p := range r.moved {
		known[p.e] = true
	}
	for _, e := range r.entries {
		if !known[e] {
			s.enter(e) // a fact
		}
		if e.state != entrySettled {
			left++
		}
	}
	s.used += r.size - g.size
	g.file, g.size, g.synced, g.entries, g.at, g.left = r.file, r.size, r.size, r.entries, 0, left
	s.measure()
	s.mu.Unlock()
	s.files.Unlock()
	if err := old.Close(); err != nil {
		s.log.Warn("close the old file of a segment", "file", g.path, "error", err)
	}
	for _, l := range r.lost {
		s.metrics.discarded.Inc()
		s.o.Handlers.Settled(l.owner, l.rows, Discarded)
	}
	wake(s.toDrain)
}

// removeSettled removes segments of which nothing is left. It runs between batches.
func (s *Spool) removeSettled() error {
	s.mu.Lock()
	var gone []*segment
	for _, g := range s.segments {
		if g.left == 0 && (g.sealed || !s.spilling) {
			g.sealed = true
			gone = append(gone, g)
		}
	}
	s.mu.Unlock()
	for _, g := range gone {
		if err := s.step(stepRemove, g.path); err != nil {
			return fmt.Errorf("remove %s: %w", g.path, err)
		}
		if err := removeIfThere(g.path); err != nil {
			return err
		}
		s.files.Lock()
		err := g.file.Close()
		s.mu.Lock()
		s.segments = slices.DeleteFunc(s.segments, func(o *segment) bool { return o == g })
		s.used -= g.synced
		s.measure()
		if len(s.segments) == 0 {
			s.log.Info("the spool is empty: the bus has everything", "folder", s.o.Dir)
		}
		s.mu.Unlock()
		s.files.Unlock()
		if err != nil {
			return fmt.Errorf("close %s: %w", g.path, err)
		}
	}
	return nil
}
