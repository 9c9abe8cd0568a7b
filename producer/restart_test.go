package producer

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/ring2"
	"sonde/schema"
)

// again is the session of the next agent on the same ring: it reads from the
// release word, with a snapshot of what is alive.
func (s *fakeSession) again(alive ...ring2.Record) *fakeSession {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := newFakeSession()
	n.config, n.claim, n.release, n.counters = s.config, s.claim, s.release, s.counters
	for _, r := range append(s.read, s.records...) {
		r.Payload = bytes.Clone(r.Payload)
		n.records = append(n.records, r)
	}
	n.snapshot = alive
	return n
}

func TestTheNextAgentPublishesTheSameRowsUnderTheSameNames(t *testing.T) {
	for _, kept := range []string{".vectors.token_ids.", ".ledger.", ".vectors.resid_post.1", ".requests."} {
		w := newWorld(t, Options{Policy: everything()})
		s := newFakeSession()
		e := newEngine(s, testEntries)
		model, layout := s.records[0], s.records[1]
		model.Payload, layout.Payload = bytes.Clone(model.Payload), bytes.Clone(layout.Payload)
		w.attach(s)
		until(t, "the first records are released", func() bool { return s.ReleaseSeq() == 2 })
		w.bus.OnPublish(func(m bus.Message, _ int) bustest.Fate {
			if bytes.Contains([]byte(m.Subject), []byte(kept)) {
				return bustest.Fail
			}
			return bustest.Take
		})
		e.open(1, "acme", 1)
		for i := range uint32(10) {
			e.step(decode(1, i))
		}
		until(t, "all is read", func() bool { return w.agent.Snapshot().Total.Captured == 40 })
		w.stop()
		if c := w.agent.Snapshot().Total; c.InFlight != 0 || c.Captured != c.Acknowledged {
			t.Errorf("after its end an agent still counts %+v", c)
		}
		w.bus.OnPublish(nil)
		second := s.again(model, layout)
		if s.ReleaseSeq() > 2 {
			second.snapshot = append(second.snapshot, ring2.Record{Seq: 2, Kind: ring2.KindRequestOpen, Payload: openRecord(1,
				"acme", 1)})
		}
		e.s = second
		w.start(Options{Policy: everything()})
		done := w.attach(second)
		e.step(decode(1, 10))
		e.finish(1)
		e.bye(w, done)
		got := w.balanced()
		if a := got.account; a.Stored != 44 || a.Expected != 44 || !a.AtRest() {
			t.Errorf("%s: %v", kept, a)
		}
		if len(got.requests) != 2 {
			t.Errorf("%s: requests %+v", kept, got.requests)
		}
	}
}

// journal writes the obituaries of an engine that died after some steps.
type journal struct {
	s     *fakeSession
	epoch uint64
	seq   uint64
	first bool
}

func (j *journal) tell(kind ring2.Kind, flags uint16, seq uint64, payload []byte) {
	if !j.first {
		j.first, flags = true, flags|ring2.ObituaryFirst
	}
	j.s.put(ring2.KindObituary, ring2.AppendObituary(nil, ring2.Obituary{DeadEpoch: j.epoch, Seq: seq, Kind: kind,
		Flags: flags, Payload: payload}))
}

func (j *journal) put(kind ring2.Kind, payload []byte) {
	j.tell(kind, 0, j.seq, payload)
	j.seq++
}

func (j *journal) step(number uint64, ranges ...ring2.StepRange) {
	st := ring2.Step{Step: number, Ranges: ranges, Layouts: []ring2.StepLayout{{Layout: 7, CaptureSeq: j.seq + 1}}}
	j.put(ring2.KindStep, ring2.AppendStep(nil, st))
	j.seq++
}

func (j *journal) unput(kind ring2.Kind, payload []byte) {
	j.tell(kind, ring2.ObituaryNeverPut, j.seq, payload)
}

func (j *journal) unputStep(number uint64, ranges ...ring2.StepRange) {
	st := ring2.Step{Step: number, Ranges: ranges,
		Layouts: []ring2.StepLayout{{Layout: 7, Outcome: ring2.ReasonControlFull}}}
	j.unput(ring2.KindStep, ring2.AppendStep(nil, st))
}

// tellLife is a journal of 2 steps that were in the ring and 2 that were not, one of
// which a MISSING record names.
func (j *journal) tellLife() {
	j.put(ring2.KindModel, ring2.AppendModel(nil, ring2.Model{Name: "dead"}))
	j.put(ring2.KindLayout, ring2.AppendLayout(nil, ring2.Layout{ID: 7, Entries: testEntries}))
	j.put(ring2.KindRequestOpen, openRecord(1, "acme", 1))
	j.step(0, decode(1, 0))
	j.unputStep(1, decode(1, 1))
	j.put(ring2.KindMissing, ring2.AppendMissing(nil, ring2.Missing{Ranges: []ring2.MissingRange{{Number: 1, Position: 1,
		Count: 1, Layout: 7, Reason: ring2.ReasonControlFull, Rows: 4, FirstStep: 1, LastStep: 1}}}))
	j.unput(ring2.KindRequestOpen, openRecord(2, "acme", 1))
	j.step(2, decode(1, 2))
	j.unputStep(3, decode(1, 3), decode(2, 0))
}

func (j *journal) end() { j.tell(ring2.KindEndOfJournal, 0, j.seq, nil) }

func TestObituariesNameWhatDiedWithBothEnds(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	// Some of what the dead engine captured is stored, and its agent got no further.
	dead := newFakeSession()
	dead.config.Epoch = 0xdead
	e := newEngine(dead, testEntries)
	w.attach(dead)
	e.open(1, "acme", 1)
	e.step(decode(1, 0))
	until(t, "a step is stored", func() bool { return w.agent.Snapshot().Total.Acknowledged == 4 })
	w.stop()

	w.start(Options{Policy: everything()})
	s := newFakeSession()
	own := newEngine(s, testEntries)
	done := w.attach(s)
	own.open(1, "other", 1)
	j := journal{s: s, epoch: 0xdead}
	j.tellLife()
	own.step(decode(1, 0))
	j.end()
	own.bye(w, done)
	got := w.balanced()
	a := got.account
	if s := words(a.Expected, a.Stored, a.Lost, a.Dropped); s != "24 8 4 map[control_full:12]" || !a.AtRest() {
		t.Errorf("expected, stored, lost, dropped: %s\n%v", s, a)
	}
	if closed := got.find(schema.FactClosed); len(closed) != 2 || closed[0].Epoch != 0xdead || closed[0].Reason != "died" {
		t.Errorf("closed facts %+v", closed)
	}
	if len(got.requests) != 3 {
		t.Errorf("requests %+v", got.requests)
	}
	if c := w.agent.Snapshot().Total; c.Captured != 4 {
		t.Errorf("the live ledger counts rows of another writer: %+v", c)
	}
}

// An agent that dies while it is told a journal leaves any part of it in the ring,
// before the next telling.
func TestAJournalThatIsToldAgainCountsOnce(t *testing.T) {
	for cut := range 12 {
		w := newWorld(t, Options{Policy: everything()})
		whole := newFakeSession()
		(&journal{s: whole, epoch: 0xdead}).tellLife()
		s := newFakeSession()
		s.put(ring2.KindModel, ring2.AppendModel(nil, ring2.Model{}))
		for _, r := range whole.records[min(cut, len(whole.records)):] { // the tail of the first telling
			s.put(r.Kind, bytes.Clone(r.Payload))
		}
		if cut%2 == 0 {
			(&journal{s: s, epoch: 0xdead, seq: 8, first: true}).end()
		}
		again := journal{s: s, epoch: 0xdead}
		again.tellLife()
		again.end()
		done := w.attach(s)
		seq := s.put(ring2.KindBye, nil)
		until(t, "everything is released", func() bool { return s.ReleaseSeq() == seq+1 })
		s.end(io.EOF)
		w.await(done)
		got := w.balanced()
		if a := got.account; words(a.Expected, a.Lost, a.Dropped) != "20 8 map[control_full:12]" || !a.AtRest() {
			t.Errorf("cut at %d: %v", cut, a)
		}
	}
}

// The ring of a dead engine shows how many rows its last records did not name; its
// journal knows which.
func TestRowsThatTheRingOnlyCountsAreNamedByTheObituary(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	dead := newFakeSession()
	dead.config.Epoch = 0xdead
	e := newEngine(dead, testEntries)
	done := w.attach(dead)
	until(t, "the agent is attached", func() bool { return dead.ReleaseSeq() == 2 })
	e.open(1, "", 1)
	e.step(decode(1, 0))
	dead.set(func() { dead.counters.CapturedRows = 4 + 8 })
	dead.end(io.EOF)
	w.await(done)
	if a := w.balanced().account; words(a.Expected, a.Stored, a.Dropped) != "12 4 map[unnamed:8]" || !a.AtRest() {
		t.Errorf("before the obituary: %v", a)
	}

	s := newFakeSession()
	next := newEngine(s, testEntries)
	nextDone := w.attach(s)
	j := journal{s: s, epoch: 0xdead}
	j.put(ring2.KindModel, ring2.AppendModel(nil, ring2.Model{}))
	j.put(ring2.KindLayout, ring2.AppendLayout(nil, ring2.Layout{ID: 7, Entries: testEntries}))
	j.put(ring2.KindRequestOpen, openRecord(1, "", 1))
	j.step(0, decode(1, 0))
	j.unputStep(1, decode(1, 1))
	j.unputStep(2, decode(1, 2))
	j.end()
	next.bye(w, nextDone)
	got := w.balanced()
	if a := got.account; words(a.Expected, a.Stored, a.Dropped) != "12 4 map[control_full:8]" || !a.AtRest() {
		t.Errorf("after the obituary: %v", a)
	}
}

// What a MISSING record says about the time before the agent came must not hide what
// no record of the ring says.
func TestTheObituaryIsHeardAlsoWhereTheRingSeemsComplete(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	dead := newFakeSession()
	dead.config.Epoch = 0xdead
	dead.counters.CapturedRows = 4 // that were dropped before the agent came
	e := newEngine(dead, testEntries)
	done := w.attach(dead)
	until(t, "the agent is attached", func() bool { return dead.ReleaseSeq() == 2 })
	e.open(1, "acme", 1)
	missing := ring2.AppendMissing(nil, ring2.Missing{Ranges: []ring2.MissingRange{{Number: 1, Position: 0, Count: 1,
		Layout: 7, Reason: ring2.ReasonControlFull, Rows: 4}}})
	dead.put(ring2.KindMissing, missing)
	dead.set(func() { dead.counters.CapturedRows += 4 }) // of a step that nothing names
	dead.end(io.EOF)
	w.await(done)

	s := newFakeSession()
	next := newEngine(s, testEntries)
	nextDone := w.attach(s)
	j := journal{s: s, epoch: 0xdead}
	j.put(ring2.KindModel, ring2.AppendModel(nil, ring2.Model{}))
	j.put(ring2.KindLayout, ring2.AppendLayout(nil, ring2.Layout{ID: 7, Entries: testEntries}))
	j.put(ring2.KindRequestOpen, openRecord(1, "acme", 1))
	j.put(ring2.KindMissing, missing)
	j.unputStep(1, decode(1, 1))
	j.end()
	next.bye(w, nextDone)
	if a := w.balanced().account; words(a.Expected, a.Dropped) != "8 map[control_full:8]" || !a.AtRest() {
		t.Errorf("account %v", a)
	}
}

func TestObituariesOfAClosedEpochAreIgnored(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	dead := newFakeSession()
	dead.config.Epoch = 0xdead
	e := newEngine(dead, testEntries)
	done := w.attach(dead)
	e.open(1, "acme", 1)
	e.step(decode(1, 0))
	until(t, "a step is stored", func() bool { return w.agent.Snapshot().Total.Acknowledged == 4 })
	// The next engine comes before the agent has read the end of the one before.
	s := newFakeSession()
	next := newEngine(s, testEntries)
	nextDone := w.attach(s)
	j := journal{s: s, epoch: 0xdead}
	j.tellLife()
	j.end()
	until(t, "the next engine is attached", func() bool { return s.ReleaseSeq() == 2 })
	e.bye(w, done)
	next.bye(w, nextDone)
	got := w.balanced()
	if a := got.account; a.Expected != 4 || a.Stored != 4 || !a.AtRest() {
		t.Errorf("account %v", a)
	}
	if closed := got.find(schema.FactClosed); len(closed) != 2 {
		t.Errorf("closed facts %+v", closed)
	}
}

func TestTheLivingAgentCountsAsLostWhatItsEngineTookAlong(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	w.agent.longestParting = 10 * time.Millisecond
	s := newFakeSession()
	e := newEngine(s, testEntries)
	w.attach(s)
	e.open(1, "acme", 1)
	until(t, "all is released", func() bool { return s.ReleaseSeq() == 3 })
	w.bus.Stop()
	e.step(decode(1, 0))
	until(t, "a step is read", func() bool { return w.agent.Snapshot().Total.InFlight == 4 })
	s.end(io.EOF)
	until(t, "the end is read", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.records) == 0 })
	r := w.agent.reader(rankName{"engine", 0}, testEpoch)
	until(t, "the rank waits for the bus", func() bool {
		return fmt.Sprint(r.inflightB.Load()) != "0"
	})
	w.stop()
	c := w.agent.Snapshot().Total
	if c.Lost != 4 || c.Captured != 4 {
		t.Errorf("live ledger %+v", c)
	}
	if err := c.Balance(); err != nil {
		t.Error(err)
	}
}

// An operator changes the policy and restarts the agent. Steps that both agents read
// hold rows that only one of them chose.
func TestAPolicyThatChangesBetweenTwoAgentsLeavesNoRowWithoutAReason(t *testing.T) {
	only := func(hooks ...string) Policy {
		return Policy{Rules: []Rule{{Hooks: hooks, Layers: Layers{All: true}}}}
	}
	for _, held := range []string{".vectors.token_ids.", ".vectors.resid_post.", ".ledger."} {
		w := newWorld(t, Options{Policy: only("token_ids", "resid_post")})
		s := newFakeSession()
		e := newEngine(s, testEntries)
		alive := append(s.records[:2:2], ring2.Record{Seq: 2, Kind: ring2.KindRequestOpen, Payload: openRecord(1, "acme", 1)})
		for i := range alive {
			alive[i].Payload = bytes.Clone(alive[i].Payload)
		}
		w.attach(s)
		e.open(1, "acme", 1)
		until(t, "the first records are released", func() bool { return s.ReleaseSeq() == 3 })
		w.bus.OnPublish(func(m bus.Message, _ int) bustest.Fate {
			if bytes.Contains([]byte(m.Subject), []byte(held)) {
				return bustest.Fail
			}
			return bustest.Take
		})
		for i := range uint32(5) {
			e.step(decode(1, i))
		}
		until(t, "all is read", func() bool { return w.agent.Snapshot().Total.Captured == 15 })
		w.stop()
		w.bus.OnPublish(nil)
		second := s.again(alive...)
		e.s = second
		w.start(Options{Policy: only("token_ids", "logits")})
		done := w.attach(second)
		e.step(decode(1, 5))
		e.bye(w, done)
		if a := w.balanced().account; !a.AtRest() || a.Stored < 12 {
			t.Errorf("%s: %v", held, a)
		}
	}
}

// bye ends the epoch of an engine in peace.
func (e *engine) bye(w *world, done <-chan struct{}) {
	w.Helper()
	seq := e.s.put(ring2.KindBye, nil)
	until(w.T, "everything is released", func() bool { return e.s.ReleaseSeq() == seq+1 })
	e.s.end(io.EOF)
	w.await(done)
}
