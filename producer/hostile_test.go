package producer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"testing"

	"sonde/ring2"
)

func step(st ring2.Step) []byte { return ring2.AppendStep(nil, st) }

func capture7(seq uint64) []ring2.StepLayout { return []ring2.StepLayout{{Layout: 7, CaptureSeq: seq}} }

func raw(s *fakeSession, r ring2.Record) {
	s.set(func() { r.Seq = s.claim; s.claim++; s.records = append(s.records, r) })
}

var one = []ring2.StepRange{decode(1, 0)}

// afterGoodbye is the one whose epoch may be closed already.
const afterGoodbye = "life after goodbye"

var hostileRecords = map[string]func(s *fakeSession){
	"torn step":     func(s *fakeSession) { s.put(ring2.KindStep, []byte{1, 2, 3}) },
	"torn model":    func(s *fakeSession) { s.put(ring2.KindModel, []byte{9}) },
	"torn layout":   func(s *fakeSession) { s.put(ring2.KindLayout, []byte{9}) },
	"torn open":     func(s *fakeSession) { s.put(ring2.KindRequestOpen, []byte{9}) },
	"torn end":      func(s *fakeSession) { s.put(ring2.KindRequestEnd, []byte{9}) },
	"torn amend":    func(s *fakeSession) { s.put(ring2.KindAmend, []byte{9}) },
	"torn missing":  func(s *fakeSession) { s.put(ring2.KindMissing, []byte{9}) },
	"torn obituary": func(s *fakeSession) { s.put(ring2.KindObituary, []byte{9}) },
	"capture alone": func(s *fakeSession) { raw(s, ring2.Record{Kind: ring2.KindCapture, Layout: 7}) },
	"unknown layout": func(s *fakeSession) {
		s.put(ring2.KindStep, step(ring2.Step{Layouts: []ring2.StepLayout{{Layout: 8}}}))
	},
	"capture elsewhere": func(s *fakeSession) {
		s.put(ring2.KindStep, step(ring2.Step{Ranges: one, Layouts: capture7(99)}))
	},
	"capture before": func(s *fakeSession) {
		s.put(ring2.KindStep, step(ring2.Step{Ranges: one, Layouts: capture7(2)}))
	},
	"no capture": func(s *fakeSession) {
		s.put(ring2.KindStep, step(ring2.Step{Ranges: one, Layouts: capture7(s.ClaimSeq() + 1)}))
		s.put(ring2.KindRequestEnd, ring2.AppendRequestEnd(nil, ring2.RequestEnd{Number: 1}))
	},
	"capture of another step": func(s *fakeSession) {
		s.put(ring2.KindStep, step(ring2.Step{Ranges: one, Layouts: capture7(s.ClaimSeq() + 1)}))
		raw(s, ring2.Record{Kind: ring2.KindCapture, Layout: 7, Step: 5})
	},
	"a million million rows": func(s *fakeSession) {
		s.put(ring2.KindStep, step(ring2.Step{Ranges: []ring2.StepRange{{Number: 1, Count: math.MaxInt32, LayoutMask: 1}},
			Layouts: []ring2.StepLayout{{Layout: 7, Outcome: ring2.ReasonNoSpace}}}))
	},
	"positions beyond 31 bits": func(s *fakeSession) {
		s.put(ring2.KindStep, step(ring2.Step{Ranges: []ring2.StepRange{{Number: 1, Position: math.MaxInt32, Count: 1,
			LayoutMask: 1}}, Layouts: []ring2.StepLayout{{Layout: 7, Outcome: ring2.ReasonNoSpace}}}))
	},
	"missing without end": func(s *fakeSession) {
		s.put(ring2.KindMissing, ring2.AppendMissing(nil, ring2.Missing{Ranges: []ring2.MissingRange{{Number: 1,
			Count: math.MaxUint32, Layout: 7, Rows: 1}}}))
	},
	"missing rows without end": func(s *fakeSession) {
		s.put(ring2.KindMissing, ring2.AppendMissing(nil, ring2.Missing{Ranges: []ring2.MissingRange{{Number: 1,
			Count: 1, Layout: 7, Rows: math.MaxUint64}}}))
	},
	"layout twice the hook": func(s *fakeSession) {
		s.put(ring2.KindLayout, ring2.AppendLayout(nil, ring2.Layout{ID: 9, Entries: []ring2.LayoutEntry{
			{Hook: "h", DType: ring2.F32}, {Hook: "h", DType: ring2.F16}}}))
	},
	"its own obituary": func(s *fakeSession) {
		(&journal{s: s, epoch: s.config.Epoch}).put(ring2.KindModel, nil)
	},
	"a hundred obituaries": func(s *fakeSession) {
		for i := range uint64(100) {
			(&journal{s: s, epoch: 0xdead0000 + i}).put(ring2.KindModel, ring2.AppendModel(nil, ring2.Model{}))
		}
	},
	afterGoodbye: func(s *fakeSession) {
		s.put(ring2.KindBye, nil)
		s.put(ring2.KindModel, ring2.AppendModel(nil, ring2.Model{}))
	},
	"a corrupt ring": func(s *fakeSession) { s.end(errors.New("record 9: its descriptor has a wrong checksum")) },
	"layouts without end": func(s *fakeSession) {
		for i := range uint32(maxLayouts + 1) {
			s.put(ring2.KindLayout, ring2.AppendLayout(nil, ring2.Layout{ID: 8 + i, Entries: testEntries[:1]}))
		}
	},
	"choices without end": func(s *fakeSession) {
		st := ring2.Step{Ranges: []ring2.StepRange{{Number: 1, Count: maxStepTokens, LayoutMask: math.MaxUint64}}}
		for range 64 {
			st.Layouts = append(st.Layouts, ring2.StepLayout{Layout: 7, Outcome: ring2.ReasonNoSpace})
		}
		s.put(ring2.KindStep, step(st))
	},
}

// A ring whose records make no sense is not read on; its neighbours are.
func TestHostileRecordsQuarantineTheirRankAlone(t *testing.T) {
	for name, hostile := range hostileRecords {
		w := newWorld(t, Options{Policy: everything()})
		neighbour := newFakeSession()
		neighbour.config.Epoch, neighbour.config.Rank = 0xfeed, 1
		good := newEngine(neighbour, testEntries)
		goodDone := w.attach(neighbour)
		good.open(1, "acme", 1)
		s := newFakeSession()
		e := newEngine(s, testEntries)
		w.attach(s)
		e.open(1, "acme", 1)
		e.step(decode(1, 0))
		hostile(s)
		until(t, name+": the rank is quarantined", func() bool { return w.agent.counters.quarantined.Load() == 1 })
		if c := w.agent.Snapshot(); c.Ranks[0].Acknowledged != 4 || c.Ranks[0].InFlight != 0 {
			t.Errorf("%s: what came before is not acknowledged: %+v", name, c.Ranks[0])
		}
		good.step(decode(1, 0))
		good.bye(w, goodDone)
		if s.closed {
			t.Errorf("%s: the session is closed; the engine will redial for ever", name)
		}
		// A new writer of the rank takes its place.
		next := newFakeSession()
		next.config.Epoch = 0xbeef
		later := newEngine(next, testEntries)
		done := w.attach(next)
		later.bye(w, done)
		until(t, name+": the quarantined session ends", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.closed })
		got := w.balanced()
		open := len(got.account.OpenEpochs) == 1 && got.account.OpenEpochs[0] == testEpoch
		if a := got.account; a.Stored != 8 || !open && name != afterGoodbye {
			t.Errorf("%s: %v", name, a)
		}
		w.stop()
	}
}

func TestAHostileSnapshotQuarantines(t *testing.T) {
	layout := ring2.AppendLayout(nil, ring2.Layout{ID: 7, Entries: testEntries})
	for name, snapshot := range map[string][]ring2.Record{
		"torn":       {{Seq: 1, Kind: ring2.KindLayout, Payload: []byte{1}}},
		"descending": {{Seq: 3, Kind: ring2.KindLayout, Payload: layout}, {Seq: 2, Kind: ring2.KindLayout, Payload: layout}},
		"ahead":      {{Seq: 9, Kind: ring2.KindLayout, Payload: layout}},
	} {
		w := newWorld(t, Options{Policy: everything()})
		s := newFakeSession()
		s.release, s.claim, s.snapshot = 5, 5, snapshot
		w.attach(s)
		until(t, name, func() bool { return w.agent.counters.quarantined.Load() == 1 })
	}
}

// A writer may change its memory after a capture was checked. The agent then stores
// what it finds, or gives up the rank, and nothing worse.
func TestRowsThatChangeAfterTheyWereChecked(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	s := newFakeSession()
	e := newEngine(s, []ring2.LayoutEntry{{Hook: "h", DType: ring2.F32, Ragged: true}})
	s.put(ring2.KindRequestOpen, openRecord(1, "acme", 1))
	st := ring2.Step{Ranges: []ring2.StepRange{{Number: 1, Count: 2, LayoutMask: 1}},
		Layouts: []ring2.StepLayout{{Layout: 7, CaptureSeq: s.ClaimSeq() + 1}}}
	s.put(ring2.KindStep, ring2.AppendStep(nil, st))
	payload := append(make([]byte, 0, 200), u64(8*3+8)...) // the table of sizes, padded
	payload = append(payload, make([]byte, 56)...)
	for _, offset := range []uint64{0, 3, 8} { // not whole elements
		payload = append(payload, u64(offset)...)
	}
	payload = append(payload, make([]byte, 8)...)
	s.set(func() {
		s.records = append(s.records, ring2.Record{Seq: s.claim, Kind: ring2.KindCapture, Layout: e.layout.ID,
			Payload: payload})
		s.claim++
	})
	w.attach(s)
	until(t, "quarantined", func() bool { return w.agent.counters.quarantined.Load() == 1 })
	total := w.agent.Snapshot().Total
	if err := total.Balance(); err != nil {
		t.Error(err)
	}
}

func TestRowsThatFitNoMessageAreDroppedAsOversize(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	s := newFakeSession()
	huge := ring2.LayoutEntry{Hook: "huge", DType: ring2.F32, Shape: []uint32{maxRowBytes/4 + 1}}
	entries := append([]ring2.LayoutEntry{huge}, testEntries...)
	e := newEngine(s, entries)
	done := w.attach(s)
	e.open(1, "acme", 1)
	e.step(decode(1, 0))
	e.bye(w, done)
	if a := w.balanced().account; a.Stored != 4 || a.Dropped[reasonOversize] != 1 {
		t.Errorf("account %v", a)
	}
}

// FuzzRecords changes bytes of a sound session. Whatever comes, the agent neither
// panics nor stores a row under a wrong name, and the law holds.
func FuzzRecords(f *testing.F) {
	for i := range 40 {
		f.Add(uint16(i), uint16(i*3), byte(i))
	}
	f.Fuzz(func(t *testing.T, record, at uint16, to byte) {
		w := newWorld(t, Options{Policy: everything()})
		s := newFakeSession()
		e := newEngine(s, testEntries)
		e.open(1, "acme", 2)
		e.step(prefill(1, 2))
		e.step(decode(1, 2))
		(&journal{s: s, epoch: 0xdead}).tellLife()
		e.finish(1)
		s.put(ring2.KindBye, nil)
		r := &s.records[int(record)%len(s.records)]
		r.Payload = bytes.Clone(r.Payload)
		if len(r.Payload) > 0 && r.Kind != ring2.KindCapture {
			r.Payload[int(at)%len(r.Payload)] = to
		}
		done := w.attach(s)
		until(t, "all is read or refused", func() bool {
			return w.agent.counters.quarantined.Load() == 1 || s.ReleaseSeq() == s.ClaimSeq()
		})
		s.end(io.EOF)
		if w.agent.counters.quarantined.Load() == 0 {
			w.await(done)
		}
		w.stop()
		total := w.agent.Snapshot().Total
		if err := total.Balance(); err != nil {
			t.Error(err)
		}
		for _, m := range w.bus.Messages() {
			if len(m.Data) == 0 {
				t.Error(fmt.Errorf("an empty message to %s", m.Subject))
			}
		}
	})
}
