package producer

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/ring2"
	"sonde/schema"
	"sonde/spool"
)

func spooling(t *testing.T, maxBytes int64, whenFull spool.WhenFull) Options {
	return Options{Policy: everything(), BatchBytes: 1000, InflightBytes: 32 << 10,
		Spool: SpoolOptions{Dir: filepath.Join(t.TempDir(), "spool"), MaxBytes: maxBytes, WhenFull: whenFull,
			SyncInterval: time.Millisecond, After: 5 * time.Millisecond}}
}

// lawful checks the live ledger all the time until the test ends.
func (w *world) lawful() {
	stop := make(chan struct{})
	var watch sync.WaitGroup
	agent := w.agent
	watch.Go(func() {
		for {
			s := agent.Snapshot()
			if err := s.Total.Balance(); err != nil {
				w.Error(err)
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
	})
	w.Cleanup(func() { close(stop); watch.Wait() })
}

func (w *world) drained() {
	w.Helper()
	until(w.T, "the spool is empty", func() bool { return w.agent.Spool().Bytes == 0 })
}

func TestRowsOfAnOutageArriveAndTheRingIsReleasedMeanwhile(t *testing.T) {
	w := newWorld(t, spooling(t, 16<<20, ""))
	w.lawful()
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	until(t, "the agent reads", func() bool { return s.ReleaseSeq() == 2 })
	w.bus.Stop()
	e.open(1, "acme", 1)
	for i := range uint32(2000) {
		e.step(decode(1, i))
	}
	until(t, "the ring is released", func() bool { return s.ReleaseSeq() == s.ClaimSeq() })
	if c := w.agent.Snapshot().Total; c.Captured != 8000 || c.InFlight != 8000 {
		t.Errorf("rows in the spool count as %+v", c)
	}
	w.bus.Start()
	for i := range uint32(100) {
		e.step(decode(1, 2000+i))
	}
	e.bye(w, done)
	w.drained()
	if a := w.balanced().account; a.Stored != 8400 || !a.AtRest() {
		t.Errorf("account %v", a)
	}
	if c := w.agent.Snapshot().Total; c.Acknowledged != 8400 {
		t.Errorf("live ledger %+v", c)
	}
}

func TestWhatHasNoRoomInTheSpoolIsNamedRowByRow(t *testing.T) {
	for _, whenFull := range []spool.WhenFull{spool.DropNewest, spool.DropOldest} {
		o := spooling(t, 3<<20, whenFull)
		o.BatchBytes = 150_000
		w := newWorld(t, o)
		w.lawful()
		s := newFakeSession()
		e := newEngine(s, wide)
		done := w.attach(s)
		until(t, "the agent reads", func() bool { return s.ReleaseSeq() == 2 })
		w.bus.Stop()
		e.open(1, "acme", 1)
		for i := range uint32(600) {
			e.step(decode(1, i))
		}
		e.s.put(ring2.KindBye, nil)
		e.s.end(io.EOF)
		w.await(done)
		dropped := w.agent.Snapshot().Total.Dropped[reasonSpoolFull]
		w.bus.Start()
		w.drained()
		a := w.balanced().account
		if dropped == 0 || a.Dropped[reasonSpoolFull] != dropped || a.Stored != a.Expected-dropped || !a.AtRest() {
			t.Errorf("%s: %d rows were dropped; account %v", whenFull, dropped, a)
		}
	}
}

// wide has rows that outweigh the facts about them.
var wide = []ring2.LayoutEntry{
	{Hook: "resid_post", Layer: 0, DType: ring2.BF16, Shape: []uint32{4096}},
	{Hook: "mlp_out", Layer: 0, DType: ring2.BF16, Shape: []uint32{4096}},
}

func TestTheNextAgentPublishesWhatTheSpoolHoldsBeforeTheRing(t *testing.T) {
	o := spooling(t, 4<<20, "")
	w := newWorld(t, o)
	s := newFakeSession()
	e := newEngine(s, testEntries)
	model, layout := s.records[0], s.records[1]
	model.Payload, layout.Payload = bytes.Clone(model.Payload), bytes.Clone(layout.Payload)
	w.attach(s)
	until(t, "the agent reads", func() bool { return s.ReleaseSeq() == 2 })
	w.bus.Stop()
	e.open(1, "acme", 1)
	for i := range uint32(300) {
		e.step(decode(1, i))
	}
	until(t, "the ring is released", func() bool { return s.ReleaseSeq() == s.ClaimSeq() })
	w.stop()
	open := ring2.Record{Seq: 2, Kind: ring2.KindRequestOpen, Payload: openRecord(1, "acme", 1)}
	e.s = s.again(model, layout, open)
	w.start(o)
	if c := w.agent.Snapshot().Total; c.Captured != 1200 || c.InFlight != 1200 {
		t.Errorf("the next agent counts what it finds as %+v", c)
	}
	w.lawful()
	done := w.attach(e.s)
	for i := range uint32(100) {
		e.step(decode(1, 300+i))
	}
	w.bus.Start()
	e.bye(w, done)
	w.drained()
	if a := w.balanced().account; a.Stored != 1600 || !a.AtRest() {
		t.Errorf("account %v", a)
	}
	last := uint64(0)
	for _, d := range w.bus.Messages() {
		if strings.Contains(d.Subject, ".vectors.token_ids.") {
			h, err := schema.DecodeHeader(d.Data)
			if err != nil || h.First().Seq < last {
				t.Errorf("a message of seq %d stands behind one of %d, %v", h.First().Seq, last, err)
			}
			last = h.First().Seq
		}
	}
}

func TestAMessageThatIsRefusedAfterItsTimeInTheSpoolIsADeadLetter(t *testing.T) {
	o := spooling(t, 4<<20, "")
	o.DeadLetterDir = filepath.Join(t.TempDir(), "dead")
	w := newWorld(t, o)
	w.lawful()
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	until(t, "the agent reads", func() bool { return s.ReleaseSeq() == 2 })
	w.bus.OnPublish(refuse(".vectors.resid_post.0"))
	w.bus.Stop()
	e.open(1, "acme", 1)
	for i := range uint32(50) {
		e.step(decode(1, i))
	}
	e.s.put(ring2.KindBye, nil)
	e.s.end(io.EOF)
	w.await(done)
	w.bus.Start()
	w.drained()
	if a := w.balanced().account; a.DeadLettered != 50 || a.Stored != 150 || !a.AtRest() {
		t.Errorf("account %v", a)
	}
	if all := w.bus.Messages(); !strings.Contains(all[len(all)-1].Subject, ".ledger.") {
		t.Errorf("the closed fact does not come last, but %s", all[len(all)-1].Subject)
	}
}

// Under pressure, whatever the priorities, outages and restarts: every row is stored
// or named, and none of a higher priority is dropped by a spool that never had to.
func TestRandomPrioritiesOutagesAndRestartsLoseNoRowUntold(t *testing.T) {
	rng := random(t)
	for round := range 3 {
		whenFull := []spool.WhenFull{spool.DropNewest, spool.DropOldest, spool.Wait}[round]
		o := spooling(t, 2<<20, whenFull)
		o.BatchBytes, o.DeadLetterDir = 100_000, filepath.Join(t.TempDir(), "dead")
		o.Policy = Policy{Rules: []Rule{
			{Hooks: []string{"mlp_out"}, Layers: Layers{All: true}, Priority: rng.IntN(3)},
			{Hooks: []string{"*"}, Layers: Layers{All: true}, Window: Window{Decode: "every:3"}, Priority: rng.IntN(3)},
			{Hooks: []string{"*"}, Layers: Layers{All: true}, Priority: rng.IntN(3), As: AsStats}}}
		randomOutages(t, rng, o)
	}
}

func randomOutages(t *testing.T, rng *rand.Rand, o Options) {
	w := newWorld(t, o)
	s := newFakeSession()
	e := newEngine(s, wide)
	alive := []ring2.Record{s.records[0], s.records[1]}
	e.open(1, "acme", 1)
	alive = append(alive, s.records[2])
	for i := range alive {
		alive[i].Payload = bytes.Clone(alive[i].Payload)
	}
	done := w.attach(s)
	until(t, "the agent reads", func() bool { return s.ReleaseSeq() == 3 })
	refused := fmt.Sprint(rng.IntN(5), ":")
	w.bus.OnPublish(func(m bus.Message, attempt int) bustest.Fate {
		if strings.Contains(m.Subject, ".vectors.") && strings.Contains(m.ID, refused) {
			return bustest.Refuse
		}
		return bustest.Take
	})
	at := uint32(0)
	for range 12 {
		if w.bus.Start(); rng.IntN(3) > 0 {
			w.bus.Stop()
		}
		for range rng.IntN(120) {
			e.step(decode(1, at))
			at++
		}
		if rng.IntN(3) == 0 && e.s.ReleaseSeq() >= 3 {
			w.stop()
			e.s = e.s.again(alive...)
			w.start(o)
			done = w.attach(e.s)
		}
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
	}
	w.bus.Start()
	e.bye(w, done)
	w.drained()
	a := w.balanced().account
	if a.Stored+a.DeadLettered+a.Dropped[reasonSpoolFull] != a.Expected || !a.AtRest() {
		t.Errorf("account %v", a)
	}
	if o.Spool.WhenFull == spool.Wait && a.Dropped[reasonSpoolFull] > 0 {
		t.Error("rows were dropped by a spool that waits")
	}
}
