package materializer

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"sonde/bus"
	"sonde/lakehouse"
	"sonde/lakehouse/commitlog"
	"sonde/schema"
)

// clock is a wall clock that tests put forward.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.offset.Load())) }
func (c *clock) forward(d time.Duration) { c.offset.Add(int64(d)) }
func closedFact(epoch uint64) ([]byte, error) {
	return schema.EncodeLedger(schema.Header{Tenant: "", Engine: "e", Epoch: epoch},
		[]schema.LedgerRow{{Seq: 1 << 40, Fact: schema.FactClosed, Reason: "bye"}})
}

// settle publishes messages and waits until they are committed.
func (r *running) settle(messages ...[]byte) {
	r.t.Helper()
	publish(r.t, r.b, messages)
	r.drain()
}

func TestLateDuplicatesOfAForgottenEpochAreDroppedAndLateNewsAreStored(t *testing.T) {
	random := newRandom(t)
	b, lake := newBus(t), t.TempDir()
	sources := newSources(random, 2, 30)
	old := sources[:len(sources)/2] // of the first epoch
	late := map[*source][]schema.Cursor{}
	for _, s := range old { // the last rows come late, long after the end of the epoch
		late[s] = s.rows[len(s.rows)-4:]
		s.rows = s.rows[:len(s.rows)-4]
	}
	messages := shuffled(random, sources, false)
	closed, err := closedFact(old[0].header.Epoch)
	if err != nil {
		t.Fatal(err)
	}
	c := &clock{}
	o := options(b, lake)
	o.now = c.now
	run := start(t, o)
	run.settle(append(messages, closed)...)
	c.forward(2 * forgetAfter)
	other := sources[len(sources)/2]
	run.settle(other.message(schema.Cursor{}, 0, 1)) // a commit in which nothing of the old epoch moves
	for round := range 3 {
		state := loadState(t, lake)
		if !state.Forgotten[epochText(old[0].header.Epoch)] || state.Forgotten[epochText(other.header.Epoch)] {
			t.Fatalf("round %d: forgotten are %v", round, state.Forgotten)
		}
		for key := range state.Chains {
			if k, err := schema.ParseChainKey(key); err != nil || k.Epoch == old[0].header.Epoch {
				t.Fatalf("round %d: the log still has chain %s", round, key)
			}
		}
		var again [][]byte
		for _, s := range old { // everything again, in one message, with a new row in each round
			s.rows = append(s.rows, late[s][0])
			late[s] = late[s][1:]
			again = append(again, s.message(schema.Cursor{}, 0, len(s.rows)),
				s.message(schema.Cursor{}, len(s.rows)-2, len(s.rows)))
		}
		run.settle(again...)
		checkStored(t, lake, sources)
		if round == 1 { // what is in the log must do
			if err := run.end(); err != nil {
				t.Fatal(err)
			}
			run = start(t, o)
			for len(run.m.held()) == 0 || run.m.held()[0].committed.Load() == nil { // it has not read the log
				time.Sleep(time.Millisecond)
			}
		}
		c.forward(2 * forgetAfter)
		run.settle(other.message(schema.Cursor{}, 0, 1))
	}
	if valueOf(t, run.m.metrics.lookups) == 0 {
		t.Error("the table was never asked")
	}
	if err := run.end(); err != nil {
		t.Fatal(err)
	}
	checkStored(t, lake, sources)
}

// loadState is what the log says of partition 0.
func loadState(t *testing.T, lake string) *commitlog.Partition {
	t.Helper()
	s, err := commitlog.Load(lake)
	if err != nil {
		t.Fatal(err)
	}
	return s.Partitions[0]
}

// gappy is a chain whose messages never follow each other, as after many losses.
func gappy(messages int) *source {
	s := &source{header: schema.Header{Kind: schema.KindVectors, Tenant: "t", Engine: "e", Epoch: 5, Hook: "h",
		DType: "u8"}}
	for i := range messages {
		s.rows = append(s.rows, schema.Cursor{Seq: uint64(10 * (i + 1)), Row: uint32(i % 4)})
	}
	return s
}

func (s *source) alone(i int) []byte { return s.message(s.rows[i], i, i+1) }

func TestSpansBeyondTheBoundAreLookedUpInTheTable(t *testing.T) {
	b, lake := newBus(t), t.TempDir()
	s := gappy(2 * maxSpans)
	run := start(t, options(b, lake))
	order := newRandom(t).Perm(len(s.rows))
	for k := 0; k < len(order); k += 32 {
		var messages [][]byte
		for _, i := range order[k : k+32] {
			messages = append(messages, s.alone(i))
		}
		run.settle(messages...)
	}
	for key, state := range loadState(t, lake).Chains {
		c, err := parseChain(state)
		if err != nil || len(c.spans) > maxSpans || c.ask != askBelow {
			t.Fatalf("chain %s is %q, %v", key, state, err)
		}
	}
	again := order[:20] // a random part
	for _, i := range again {
		publish(t, b, [][]byte{s.alone(i)})
	}
	run.drain()
	if err := run.end(); err != nil {
		t.Fatal(err)
	}
	checkStored(t, lake, []*source{s})
	if n := valueOf(t, run.m.metrics.duplicates); n != float64(len(again)) {
		t.Errorf("%v duplicates; want %d", n, len(again))
	}
}

func TestTooManyChainsAreForgottenFromTheIdlestEpochOn(t *testing.T) {
	now := time.Unix(1000, 0)
	c, err := newChains(&commitlog.Partition{}, 1, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	c.inTable = func(uint64) (bool, error) { return false, nil }
	c.elsewhere = func(uint64) bool { return false }
	for i := range maxChains + 10 {
		now = now.Add(time.Microsecond)
		if _, err := c.of(schema.ChainKey{Epoch: uint64(i / 1000), Layer: i}); err != nil {
			t.Fatal(err)
		}
	}
	ids := c.forgettable()
	if len(ids) != 1 || ids[0] != 0 {
		t.Errorf("epochs %v are to be forgotten; want the oldest", ids)
	}
	c.forget(ids)
	if c.count != maxChains+10-1000 || c.count > maxChains || !c.forgotten[0] {
		t.Errorf("%d chains are left", c.count)
	}
}

func TestBeyondTheBoundOfForgottenEpochsTheTableDecidesWhichAreNew(t *testing.T) {
	asked := 0
	c, err := newChains(&commitlog.Partition{}, 1, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	c.inTable = func(id uint64) (bool, error) { asked++; return id%2 == 0, nil }
	c.elsewhere = func(uint64) bool { return false }
	for i := range commitlog.MaxForgotten {
		c.forgotten[uint64(i)+1<<32] = true
	}
	for id := range uint64(4) {
		for layer := range 2 {
			chain, err := c.of(schema.ChainKey{Epoch: id, Layer: layer})
			if err != nil || (chain.ask == askAll) != (id%2 == 0) {
				t.Errorf("epoch %d: ask %d, %v", id, chain.ask, err)
			}
		}
	}
	if asked != 4 {
		t.Errorf("asked %d times for 4 epochs", asked)
	}
	c.forget([]uint64{1})
	if len(c.forgotten) != commitlog.MaxForgotten {
		t.Errorf("%d epochs are remembered as forgotten", len(c.forgotten))
	}
}

// Each step of making a file is the last one of some run.
func TestDeathBeforeAnyStepOfACommitRepeatsAndLosesNothing(t *testing.T) {
	random := newRandom(t)
	errDead := errors.New("dead")
	for dieAt := 4 + random.IntN(4); dieAt < 60; dieAt += 4 {
		b, lake := newBus(t), t.TempDir()
		sources := newSources(random, 1, 4)
		messages := shuffled(random, sources, false)
		publish(t, b, messages)
		o := options(b, lake)
		o.CommitBytes = 8 << 10
		steps := 0
		o.check = func(string, string) error {
			if steps++; steps > dieAt {
				return errDead
			}
			return nil
		}
		o.retry = func(context.Context) error { return errDead }
		run := start(t, o)
		for done := false; !done; {
			select {
			case err := <-run.done:
				if !errors.Is(err, errDead) {
					t.Fatalf("step %d: %v", dieAt, err)
				}
				done = true
			default:
				if done = run.m.Committed(0).Next > uint64(len(messages)); !done {
					time.Sleep(100 * time.Microsecond)
				}
			}
		}
		run.stop()
		materialize(t, options(b, lake))
		checkStored(t, lake, sources)
		if t.Failed() {
			t.Fatalf("death before step %d", dieAt)
		}
	}
}

func TestALakeThatCannotBeUsedSaysSo(t *testing.T) {
	b, lake := newBus(t), t.TempDir()
	run := start(t, options(b, lake))
	run.settle(gappy(1).alone(0))
	if err := run.end(); err != nil {
		t.Fatal(err)
	}
	state := loadState(t, lake)
	l, err := commitlog.OpenLog(lake, commitlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := l.Claim(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(commitlog.Commit{Source: state.Source, Chains: map[string]string{"nonsense": "1:1"}}); err != nil {
		t.Fatal(err)
	}
	m, err := New(options(b, lake))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Run(context.Background()); err == nil {
		t.Error("a log with nonsense in it was used")
	}
	if _, err := New(Options{Bus: bus.Bus(nil)}); err == nil {
		t.Error("options without a bus were taken")
	}
	if _, err := lakehouse.Open(lake); err != nil {
		t.Error(fmt.Errorf("the reader: %w", err))
	}
}
