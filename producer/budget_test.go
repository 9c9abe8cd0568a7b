package producer

import (
	"strings"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/ring2"
	"sonde/schema"
)

func TestTheBudgetIsARateWithASecondOfCredit(t *testing.T) {
	now := time.Unix(0, 0)
	b := newBudget(100, func() time.Time { return now })
	if !b.take(60) || b.take(60) || !b.take(40) || b.take(1) {
		t.Error("a full bucket does not hold exactly 100 bytes")
	}
	now = now.Add(500 * time.Millisecond)
	if !b.take(50) || b.take(1) {
		t.Error("half a second does not give exactly 50 bytes")
	}
	now = now.Add(time.Hour)
	if !b.take(100) || b.take(1) {
		t.Error("an hour gives more than 100 bytes")
	}
	if free := newBudget(0, time.Now); !free.take(1 << 62) {
		t.Error("no budget is a limit")
	}
}

func budgeted(bytes int64) Policy {
	return Policy{BudgetBytesPerS: bytes, Rules: []Rule{
		{Hooks: []string{"resid_post"}, Layers: Layers{Ranges: [][2]int{{0, 0}}}, Priority: 1},
		{Hooks: []string{"*"}, Layers: Layers{All: true}, Priority: 2}}}
}

func TestOverBudgetTheLowestPriorityGoesFirst(t *testing.T) {
	w := newWorld(t, Options{Policy: budgeted(30)}) // token_ids, resid_post.1 and logits have 24, resid_post.0 has 8
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	until(t, "the agent is attached", func() bool { return s.ReleaseSeq() == 2 })
	e.open(1, "acme", 1)
	e.step(decode(1, 0))
	e.bye(w, done)
	got := w.balanced()
	if a := got.account; a.Stored != 3 || a.Dropped[reasonBudget] != 1 {
		t.Errorf("account %v", a)
	}
	for key := range got.vectors {
		if strings.Contains(key, "resid_post.0") {
			t.Errorf("%s is stored", key)
		}
	}
	if f := got.find(schema.FactDropped); len(f) != 1 || f[0].Reason != reasonBudget || f[0].Row%2 != 1 {
		t.Errorf("facts %+v", f)
	}
}

// What one agent dropped for its budget, the next may publish: consumers have been
// told that there is nothing, and must find a reason.
func TestWhatAnEarlierAgentMayHaveDroppedIsNamed(t *testing.T) {
	w := newWorld(t, Options{Policy: budgeted(30)})
	s := newFakeSession()
	e := newEngine(s, testEntries)
	model := ring2.AppendModel(nil, ring2.Model{Name: "test", WeightsDigest: "sha256:1"})
	w.attach(s)
	until(t, "the first records are released", func() bool { return s.ReleaseSeq() == 2 })
	w.bus.OnPublish(func(m bus.Message, _ int) bustest.Fate {
		if strings.Contains(m.Subject, ".ledger.") {
			return bustest.Fail
		}
		return bustest.Take
	})
	e.open(1, "acme", 1)
	e.step(decode(1, 0))
	e.step(decode(1, 1))
	until(t, "all is read", func() bool { return w.agent.Snapshot().Total.Captured == 8 })
	w.stop()
	w.bus.OnPublish(nil)
	second := s.again(ring2.Record{Seq: 0, Kind: ring2.KindModel, Payload: model},
		ring2.Record{Seq: 1, Kind: ring2.KindLayout, Payload: ring2.AppendLayout(nil, e.layout)})
	if s.ReleaseSeq() > 2 {
		second.snapshot = append(second.snapshot, ring2.Record{Seq: 2, Kind: ring2.KindRequestOpen, Payload: openRecord(1,
			"acme", 1)})
	}
	e.s = second
	w.start(Options{Policy: budgeted(1 << 20)})
	done := w.attach(second)
	e.bye(w, done)
	got := w.balanced()
	if f := got.find(schema.FactDropped); len(f) != 6 { // three units in each of two steps
		t.Errorf("facts %+v", f)
	}
}
