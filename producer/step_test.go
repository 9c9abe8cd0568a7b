package producer

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/ring2"
	"sonde/schema"
)

func TestEveryRowArrivesUnderItsOwnNameAndTenant(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	e.open(1, "acme", 5)
	e.open(2, "other", 3)
	e.step(prefill(1, 5), prefill(2, 3))
	for i := range uint32(20) {
		e.step(decode(2, 3+i), decode(1, 5+i))
	}
	e.finish(1)
	e.finish(2)
	e.bye(w, done)
	got := w.balanced()
	const rows = 8*3 + 40*4
	if a := got.account; a.Stored != rows || a.Expected != rows || len(got.vectors) != rows {
		t.Errorf("stored %d of %d, want %d", a.Stored, a.Expected, rows)
	}
	if !got.account.AtRest() || len(got.requests) != 4 {
		t.Errorf("at rest %v, requests %+v", got.account.AtRest(), got.requests)
	}
	for _, v := range got.vectors {
		if v.CaptureNS != 1005 {
			t.Fatalf("capture_ns is %d; the step's clock and the offset to the wall make 1005", v.CaptureNS)
		}
	}
	if c := w.agent.Snapshot().Total; c.Acknowledged != 184 || c.Captured != 184 {
		t.Errorf("live ledger %+v", c)
	}
	if closed := got.find(schema.FactClosed); len(closed) != 1 || closed[0].Reason != "bye" {
		t.Errorf("closed facts %+v", closed)
	}
}

func TestNothingIsReleasedBeforeItsRowsAndFactsAreAcknowledged(t *testing.T) {
	for _, held := range []string{".resid_post.1", ".ledger."} {
		w := newWorld(t, Options{Policy: everything()})
		s := newFakeSession()
		e := newEngine(s, testEntries)
		done := w.attach(s)
		until(t, "the first records are released", func() bool { return s.ReleaseSeq() == 2 })
		failed := 0
		w.bus.OnPublish(func(m bus.Message, _ int) bustest.Fate {
			if !strings.Contains(m.Subject, held) || failed == 200 {
				return bustest.Take
			}
			failed++
			if r := s.ReleaseSeq(); r > 3 {
				t.Errorf("released up to %d while %s is not acknowledged", r, held)
			}
			return bustest.Fail
		})
		e.open(1, "acme", 2)
		e.step(prefill(1, 2)) // records 3 and 4
		e.step(decode(1, 2))
		e.bye(w, done)
		for _, r := range s.releases {
			if r == 4 || r == 6 {
				t.Errorf("released up to %d, between a STEP and its CAPTURE", r)
			}
		}
		w.balanced()
	}
}

func TestBatchesCloseBySizeAgeStepOrFullRing(t *testing.T) {
	long := Options{Policy: everything(), LingerMS: 60000}
	vectors := func(w *world, hook string) (n int) {
		for _, m := range w.bus.Messages() {
			if strings.Contains(m.Subject, ".vectors."+hook) {
				n++
			}
		}
		return n
	}
	for name, c := range map[string]struct {
		change func(o *Options, s *fakeSession)
		hook   string
	}{
		"size":  {func(o *Options, s *fakeSession) { o.BatchBytes = 500 }, "resid_post.0"},
		"age":   {func(o *Options, s *fakeSession) { o.LingerMS = 1 }, "resid_post.0"},
		"live":  {func(o *Options, s *fakeSession) { o.Live = []HookLayer{{"resid_post", 0}} }, "resid_post.0"},
		"descs": {func(o *Options, s *fakeSession) { s.config.DescCount = 16 }, "resid_post.0"},
		"bytes": {func(o *Options, s *fakeSession) { s.config.DataBytes = 4096 }, "resid_post.0"},
	} {
		t.Run(name, func(t *testing.T) {
			o, s := long, newFakeSession()
			c.change(&o, s)
			w := newWorld(t, o)
			e := newEngine(s, testEntries)
			w.attach(s)
			e.open(1, "acme", 1)
			for i := range uint32(20) {
				e.step(decode(1, i))
			}
			until(t, "a batch closes", func() bool { return vectors(w, c.hook) > 0 })
			if name == "live" {
				until(t, "one message for each step", func() bool { return vectors(w, c.hook) == 20 })
				if n := vectors(w, "resid_post.1"); n > 0 {
					t.Errorf("%d batches of another hook closed", n)
				}
				if w.agent.Snapshot().Total.InFlight == 0 {
					t.Error("nothing is in flight while batches are open")
				}
			}
		})
	}
}

func TestTheAgeOfTheOldestBatchIsAMetric(t *testing.T) {
	w := newWorld(t, Options{Policy: everything(), LingerMS: 400})
	s := newFakeSession()
	e := newEngine(s, testEntries)
	w.attach(s)
	e.open(1, "acme", 1)
	e.step(decode(1, 0))
	until(t, "an age", func() bool {
		_, rings := w.agent.rings()
		return rings[rankName{"engine", 0}].oldestNS > 0
	})
}

func TestRowsOfUnknownRequestsAreDroppedAndNeverGuessed(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	e.open(1, "acme", 1)
	e.step(decode(1, 0), decode(99, 7))
	e.bye(w, done)
	got := w.balanced()
	if a := got.account; a.Stored != 4 || a.Dropped[reasonUnknownRequest] != 4 {
		t.Errorf("account\n%v", a)
	}
	if c := w.agent.Snapshot().Total; c.Dropped[reasonUnknownRequest] != 4 || c.Filtered != 0 {
		t.Errorf("live ledger %+v", c)
	}
}

func TestDropsAbortsAndLossesAreNamed(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	until(t, "the agent is attached", func() bool { return s.ReleaseSeq() == 2 })
	e.open(1, "acme", 1)
	e.dropped(ring2.ReasonNoSpace, decode(1, 0))
	e.stepBut(func(c *ring2.Record) { c.Flags, c.Payload = ring2.FlagAborted, nil }, decode(1, 1))
	e.stepBut(func(c *ring2.Record) { c.Payload = c.Payload[:len(c.Payload)-5] }, decode(1, 2)) // does not fit
	e.s.put(ring2.KindMissing, ring2.AppendMissing(nil, ring2.Missing{Ranges: []ring2.MissingRange{{Number: 1, Position: 3,
		Count: 2, Layout: 7, Reason: ring2.ReasonControlFull, Rows: 8, FirstStep: 3, LastStep: 4}}}))
	e.stepBut(func(c *ring2.Record) { c.Kind = 0 }, decode(1, 5)) // dies in its copy
	s.set(func() { s.counters.CapturedRows = 6*4 + 13 })          // 13 rows that no record names
	s.end(io.EOF)
	w.await(done)
	got := w.balanced()
	a := got.account
	want := "4 map[control_full:8 corrupt:4 no_space:4 unnamed:13] 4 0"
	if s := fmt.Sprint(a.Aborted, a.Dropped, a.Lost, a.Stored); s != want || !a.AtRest() {
		t.Errorf("aborted, dropped, lost, stored: %s, want %s\n%v", s, want, a)
	}
	c := w.agent.Snapshot().Total
	if s := fmt.Sprint(c.Aborted, c.Dropped, c.Lost, c.Acknowledged); s != want {
		t.Errorf("live: %s, want %s", s, want)
	}
	if closed := got.find(schema.FactClosed); len(closed) != 1 || closed[0].Reason != "died" {
		t.Errorf("closed facts %+v", closed)
	}
}

// In a step of several captures, any may be the ones that a death left behind.
func TestOfACutOffStepExactlyTheLostCapturesAreLost(t *testing.T) {
	for lost := range 8 {
		w := newWorld(t, Options{Policy: everything()})
		s := newFakeSession()
		s.put(ring2.KindModel, ring2.AppendModel(nil, ring2.Model{}))
		step := ring2.Step{Ranges: []ring2.StepRange{{Number: 1, Count: 2, LayoutMask: 7}}}
		var captures []ring2.Record
		for i := range 3 {
			e := engine{s: s, layout: ring2.Layout{ID: uint32(i), Entries: []ring2.LayoutEntry{{Hook: "h", Layer: i,
				DType: ring2.F32}}}}
			s.put(ring2.KindLayout, ring2.AppendLayout(nil, e.layout))
			one := ring2.Step{Ranges: step.Ranges, Layouts: []ring2.StepLayout{{CaptureSeq: uint64(6 + i)}}}
			step.Layouts = append(step.Layouts, ring2.StepLayout{Layout: uint32(i), CaptureSeq: uint64(6 + i)})
			captures = append(captures, e.capture(&one))
		}
		s.put(ring2.KindRequestOpen, openRecord(1, "acme", 2))
		s.put(ring2.KindStep, ring2.AppendStep(nil, step))
		s.set(func() {
			for i, c := range captures {
				if lost>>i&1 == 1 {
					s.lost = append(s.lost, c.Seq)
				} else {
					s.records = append(s.records, c)
				}
			}
			s.claim += 3
		})
		s.put(ring2.KindRequestEnd, ring2.AppendRequestEnd(nil, ring2.RequestEnd{Number: 1}))
		s.end(io.EOF)
		w.await(w.attach(s))
		got := w.balanced()
		n := uint64(lost&1 + lost>>1&1 + lost>>2&1)
		if a := got.account; a.Lost != 2*n || a.Stored != 6-2*n || len(got.requests) != 2 {
			t.Errorf("captures %03b lost: %v", lost, a)
		}
		if s.ReleaseSeq() != s.ClaimSeq() && lost>>2 == 0 {
			t.Errorf("captures %03b lost: released %d of %d", lost, s.ReleaseSeq(), s.ClaimSeq())
		}
	}
}

func TestMergedMissingRangesCountTheirExactRows(t *testing.T) {
	w := newWorld(t, Options{Policy: Policy{Rules: []Rule{{Hooks: []string{"resid_post"}, Layers: Layers{All: true}}}}})
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	e.open(1, "acme", 1)
	// Of 100 tokens, 4 entries each, 40 are missing; half of their entries are chosen.
	e.s.put(ring2.KindMissing, ring2.AppendMissing(nil, ring2.Missing{Ranges: []ring2.MissingRange{{Number: 1, Position: 0,
		Count: 100, Layout: 7, Reason: ring2.ReasonControlFull, Rows: 160, FirstStep: 3, LastStep: 90}}}))
	s.set(func() { s.counters.CapturedRows = 160 })
	e.bye(w, done)
	got := w.balanced()
	if a := got.account; a.Dropped["control_full"]+a.Filtered != 160 || a.Dropped["control_full"] < 70 ||
		a.Dropped["control_full"] > 110 || a.Dropped["unnamed"] != 0 {
		t.Errorf("account %v", a)
	}
	if c := w.agent.Snapshot().Total; c.Captured+c.Filtered != 160 {
		t.Errorf("live %+v", c)
	}
}

func TestAmendmentsAndRequestsArePublished(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	open := ring2.RequestOpen{Number: 1, ExternalID: "req-1", EngineID: "cmpl", Sample: 2, Tenant: "acme", Adapter: "lora",
		TraceParent: "00-1", OptIn: true, PromptTokens: 3, MaxTokens: 9, OpenWallNS: 77,
		Labels: []ring2.Label{{Key: "a", Value: "b"}}}
	s.put(ring2.KindRequestOpen, ring2.AppendRequestOpen(nil, open))
	e.step(prefill(1, 3))
	s.put(ring2.KindAmend, ring2.AppendAmend(nil, ring2.Amend{Step: 0, Ranges: []ring2.AmendRange{
		{Number: 1, Position: 1, Count: 1, Verdict: ring2.VerdictAccepted},
		{Number: 1, Position: 2, Count: 1, Verdict: ring2.VerdictRejected}}}))
	s.put(ring2.KindRequestEnd, ring2.AppendRequestEnd(nil, ring2.RequestEnd{Number: 1, PromptTokens: 3,
		GeneratedTokens: 4, CachedTokens: 1, Passes: 2, Reason: ring2.FinishDetector, EndWallNS: 99}))
	e.bye(w, done)
	got := w.balanced()
	if len(got.requests) != 2 {
		t.Fatalf("requests %+v", got.requests)
	}
	o, end := got.requests[0], got.requests[1]
	if s := words(o.Event, o.Number, o.Request, o.EngineID, o.Sample, o.Tenant, o.Adapter, o.TraceParent, o.Labels,
		o.OptIn, o.PromptTokens, o.MaxTokens, o.WallNS); s != "open 1 req-1 cmpl 2 acme lora 00-1 map[a:b] true 3 9 77" {
		t.Errorf("opened %s", s)
	}
	if s := words(end.Event, end.Number, end.Request, end.Labels, end.GeneratedTokens, end.CachedTokens, end.Passes,
		end.Reason, end.WallNS); s != "end 1 req-1 map[a:b] 4 1 2 detector 99" {
		t.Errorf("ended %s", s)
	}
	var verdicts string
	for _, f := range got.find(schema.FactAmend) {
		verdicts += fmt.Sprint(f.Reason, f.Position, " ")
	}
	if verdicts != "accepted1 rejected2 " {
		t.Errorf("amendments %s", verdicts)
	}
}

func words(v ...any) string { return strings.TrimSpace(fmt.Sprintln(v...)) }
