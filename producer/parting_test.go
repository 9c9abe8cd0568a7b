package producer

import (
	"context"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/ring2"
	"sonde/schema"
)

// end is what Next says after the records; after io.EOF the engine is gone.
func (s *fakeSession) end(err error) {
	s.set(func() { s.err = err })
	if err == io.EOF {
		close(s.gone)
	}
}

func (s *fakeSession) Gone() <-chan struct{} { return s.gone }

// A supervisor stops a whole host: engines die and the agent is told to stop in the
// same moment. The rings go with the agent.
func TestNoRowOfADeadEngineVanishesWithTheAgentThatIsStopped(t *testing.T) {
	for _, late := range []bool{false, true} { // the agent hears first, or the engine dies first
		w := newWorld(t, Options{Policy: everything()})
		w.agent.longestParting, w.agent.dyingEngine = 15*time.Second, 10*time.Second
		s := newFakeSession()
		e := newEngine(s, testEntries)
		done := w.attach(s)
		until(t, "the agent reads", func() bool { return s.ReleaseSeq() == 2 })
		w.bus.Stop()
		e.open(1, "acme", 1)
		for i := range uint32(200) {
			e.step(decode(1, i))
		}
		e.stepBut(func(r *ring2.Record) { r.Kind = 0 }, decode(1, 200))
		if !late {
			s.end(io.EOF)
		}
		stopped := make(chan struct{})
		go func() { w.stop(); close(stopped) }()
		<-w.ctx.Done()
		if late {
			s.end(io.EOF)
		}
		w.bus.Start()
		w.await(done)
		<-stopped
		got := w.balanced()
		if a := got.account; words(a.Expected, a.Stored, a.Lost) != "804 800 4" || !a.AtRest() {
			t.Errorf("late %v: %v", late, a)
		}
		if closed := got.find(schema.FactClosed); len(closed) != 1 || closed[0].Reason != "died" {
			t.Errorf("late %v: closed facts %+v", late, closed)
		}
	}
}

// The same with a real ring without a journal, and an engine that says goodbye but
// does not wait for the answer.
func TestNoRowOfAnEngineThatHurriedAwayVanishesWithItsAgent(t *testing.T) {
	l := newLive(t, Options{Policy: everything(), InflightBytes: 4 << 10, BatchBytes: 1000})
	l.agent.longestParting = 15 * time.Second
	rng := random(t)
	m := newModel(t, rand.New(rand.NewPCG(rng.Uint64(), 0)), l.socket)
	until(t, "the agent reads", func() bool {
		m.step() // of which some are without rows
		return l.agent.Snapshot().Total.Acknowledged > 0
	})
	l.bus.Stop()
	for range 60 {
		m.step()
	}
	m.copies.Wait()
	hurry, cancel := context.WithCancel(t.Context())
	cancel()
	if m.w.Close(hurry) == nil {
		t.Error("the agent released what it cannot have published")
	}
	stopped := make(chan struct{})
	go func() { l.stop(); close(stopped) }()
	<-l.ctx.Done()
	l.bus.Start()
	<-stopped
	if a := l.balanced().account; !a.AtRest() || a.Stored == 0 {
		t.Errorf("account %v", a)
	}
}

// An agent must end, whatever its bus does; then it says what goes with it.
func TestAnAgentWhoseBusIsGoneStillEndsAndCountsWhatItTakesAlong(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	w.agent.longestParting = 20 * time.Millisecond
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	until(t, "the agent reads", func() bool { return s.ReleaseSeq() == 2 })
	w.bus.Stop()
	e.open(1, "acme", 1)
	e.step(decode(1, 0))
	until(t, "the step is read", func() bool { return w.agent.Snapshot().Total.InFlight == 4 })
	s.end(io.EOF)
	w.stop()
	w.await(done)
	if c := w.agent.Snapshot().Total; c.Lost != 4 || c.InFlight != 0 || c.Balance() != nil {
		t.Errorf("live ledger %+v", c)
	}
}

// The rows of a living engine are the next agent's: an agent that is restarted to be
// updated must not wait for a slow bus.
func TestAnAgentThatIsStoppedLeavesTheRingOfALivingEngine(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	w.agent.longestParting = time.Hour
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	until(t, "the agent reads", func() bool { return s.ReleaseSeq() == 2 })
	w.bus.OnPublish(func(bus.Message, int) bustest.Fate { return bustest.Fail })
	e.open(1, "acme", 1)
	e.step(decode(1, 0))
	until(t, "the step is read", func() bool { return w.agent.Snapshot().Total.InFlight == 4 })
	w.stop()
	w.await(done)
	if c := w.agent.Snapshot().Total; s.ReleaseSeq() != 2 || c.Captured != 0 || c.Lost != 0 {
		t.Errorf("released to %d; live ledger %+v", s.ReleaseSeq(), c)
	}
}
