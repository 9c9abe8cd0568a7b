package detector

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sonde/schema"
)

// fakeEngine answers commands by the rules: another epoch or another id is unknown,
// and what ended is finished.
type fakeEngine struct {
	mu      sync.Mutex
	epoch   uint64
	running map[uint64]string // number -> engine id
	stopped []uint64
	asked   []schema.AbortCommand
}

func (f *fakeEngine) answer(c schema.AbortCommand) schema.AbortReply {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, c)
	if c.Epoch != f.epoch {
		return schema.AbortReply{Outcome: schema.AbortUnknown}
	}
	if slices.Contains(f.stopped, c.Number) {
		return schema.AbortReply{Outcome: schema.AbortFinished, FinalLength: 7}
	}
	if id, ok := f.running[c.Number]; !ok || id != c.EngineID {
		return schema.AbortReply{Outcome: schema.AbortUnknown}
	}
	f.stopped = append(f.stopped, c.Number)
	delete(f.running, c.Number)
	return schema.AbortReply{Outcome: schema.AbortStopped, FinalLength: 7}
}

func TestEnforceStopsTheRequestAndSaysWhatCameOfIt(t *testing.T) {
	k := newDesk(t, ModeEnforce, draft())
	f := &fakeEngine{epoch: testEpoch, running: map[uint64]string{1: "r1-engine", 2: "r2-engine"}}
	serveAborts(t, k.b, f.answer)
	e := newEngine(t, testEpoch)
	k.feed(e.open(1, "r1", 0), e.open(2, "r2", 0))
	k.feed(e.step(token{number: 1, request: "r1", score: 5}, token{number: 2, request: "r2", score: 0.1}))
	rows := k.alerts()
	if len(rows) != 3 {
		t.Fatalf("want warn, stop and the outcome of stop, got %+v", rows)
	}
	stop, outcome := rows[1], rows[2]
	if stop.Level != LevelStop || stop.Action != ActionAbort || stop.Outcome != "" {
		t.Errorf("first row of stop is %+v", stop)
	}
	if outcome.Outcome != schema.AbortStopped || outcome.FinalLength != 7 {
		t.Errorf("second row of stop is %+v", outcome)
	}
	outcome.Outcome, outcome.FinalLength = "", 0
	if outcome != stop {
		t.Errorf("rows of one id differ in more than the outcome: %+v and %+v", stop, outcome)
	}
	want := schema.AbortCommand{Epoch: testEpoch, Number: 1, EngineID: "r1-engine", Position: 0,
		ExpiresWallNS: e.now + int64(defaultWindow), AlertID: stop.ID}
	if len(f.asked) != 1 || f.asked[0] != want {
		t.Errorf("asked %+v, want %+v", f.asked, want)
	}
	if len(f.running) != 1 {
		t.Errorf("still running: %v, want only request 2", f.running)
	}
}

func TestOtherModesNeverStop(t *testing.T) {
	for _, mode := range []string{ModeShadow, ModeAlert} {
		k := newDesk(t, mode, draft())
		f := &fakeEngine{epoch: testEpoch}
		serveAborts(t, k.b, f.answer)
		e := newEngine(t, testEpoch)
		k.feed(e.open(1, "r1", 0))
		k.feed(e.text(1, "r1", 0, 9, 9)...)
		rows := k.alerts()
		if len(rows) != 2 || rows[1].Action != ActionNone || rows[1].Mode != mode || len(f.asked) != 0 {
			t.Errorf("mode %s: rows %+v, commands %v", mode, rows, f.asked)
		}
	}
}

// The client sends its request again under the same name: messages and alerts of the
// first one that are delivered again must not touch the second.
func TestARedeliveredAlertCannotStopALaterRequest(t *testing.T) {
	k := newDesk(t, ModeEnforce, draft())
	f := &fakeEngine{epoch: testEpoch, running: map[uint64]string{1: "r1-engine"}}
	serveAborts(t, k.b, f.answer)
	e := newEngine(t, testEpoch)
	open := e.open(1, "r1", 0)
	text := e.text(1, "r1", 0, 9, 9)
	k.feed(open)
	k.feed(text...)
	k.alerts()
	k.feed(e.end(1, "r1", 0, 2))
	f.mu.Lock()
	f.running[2] = "r1-engine" // even the engine gives the same id
	f.mu.Unlock()
	k.feed(e.open(2, "r1", 0))
	k.feed(e.text(2, "r1", 0, 0, 0)...)
	k.feed(open)
	k.feed(text...)
	if rows := k.alerts(); len(rows) != 0 {
		t.Errorf("redelivery raised %+v", rows)
	}
	// Another run that knows nothing reads the old messages from the bus.
	fresh := newDeskOn(t, k.b, Use{k.r.judges[0].bundle, ModeEnforce})
	fresh.feed(open)
	fresh.feed(text...)
	if rows := fresh.alerts(); len(rows) != 3 || rows[2].Outcome != schema.AbortFinished {
		t.Errorf("the old alert came to %+v", rows)
	}
	// The engine started anew: numbers begin again, the epoch does not.
	f.mu.Lock()
	f.epoch, f.stopped, f.running = testEpoch+1, nil, map[uint64]string{1: "r1-engine"}
	f.mu.Unlock()
	fresh = newDeskOn(t, k.b, Use{k.r.judges[0].bundle, ModeEnforce})
	fresh.feed(open)
	fresh.feed(text...)
	if rows := fresh.alerts(); len(rows) != 3 || rows[2].Outcome != schema.AbortUnknown {
		t.Errorf("the old alert came to %+v", rows)
	}
	if f.running[1] == "" || len(f.stopped) != 0 {
		t.Error("a redelivered alert stopped a later request")
	}
}

func TestOldDataStopsNobody(t *testing.T) {
	k := newDesk(t, ModeEnforce, draft())
	f := &fakeEngine{epoch: testEpoch, running: map[uint64]string{1: "r1-engine"}}
	serveAborts(t, k.b, f.answer)
	e := newEngine(t, testEpoch)
	e.now -= int64(defaultWindow + time.Second)
	k.feed(e.open(1, "r1", 0))
	k.feed(e.text(1, "r1", 0, 9, 9)...)
	rows := k.alerts()
	if len(rows) != 2 || rows[1].Action != ActionNone || len(f.asked) != 0 {
		t.Errorf("rows %+v, commands %v", rows, f.asked)
	}
	if got := counter(t, k.r.metrics.aborts.WithLabelValues("german", "expired")); got != 1 {
		t.Errorf("%v aborts are counted as expired, want 1", got)
	}
}

func TestARequestThatEndedIsNotStopped(t *testing.T) {
	k := newDesk(t, ModeEnforce, draft())
	f := &fakeEngine{epoch: testEpoch}
	serveAborts(t, k.b, f.answer)
	e := newEngine(t, testEpoch)
	text := e.text(1, "r1", 3, 9, 9)
	k.feed(e.open(1, "r1", 3), e.end(1, "r1", 3, 2))
	k.feed(text...)
	rows := k.alerts()
	if len(rows) != 2 || rows[1].Outcome != schema.AbortFinished || rows[1].FinalLength != 5 || len(f.asked) != 0 {
		t.Errorf("rows %+v, commands %v", rows, f.asked)
	}
}

func TestAbortsAreRepeatedUntilTheyAreAnswered(t *testing.T) {
	k := newDesk(t, ModeEnforce, draft())
	e := newEngine(t, testEpoch)
	k.feed(e.open(1, "r1", 0))
	k.feed(e.text(1, "r1", 0, 9)...) // nobody serves the subject yet
	var tries atomic.Int64
	stop, err := k.b.Serve(schema.AbortSubject("acme", "llm", 0), func([]byte) []byte {
		if tries.Add(1) < 3 {
			return []byte("no reply at all")
		}
		return schema.AbortReply{Outcome: schema.AbortStopped, FinalLength: 3}.Encode()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	rows := k.alerts()
	if len(rows) != 3 || rows[2].Outcome != schema.AbortStopped || rows[2].FinalLength != 3 || tries.Load() != 3 {
		t.Errorf("%d tries, rows %+v", tries.Load(), rows)
	}
}

func TestAbortsThatNobodyAnswersEndAsErrors(t *testing.T) {
	k := newDesk(t, ModeEnforce, draft())
	k.r.o.AbortWindow = 200 * time.Millisecond
	e := newEngine(t, testEpoch)
	e.now = time.Now().UnixNano()
	k.feed(e.open(1, "r1", 0))
	k.feed(e.text(1, "r1", 0, 9)...)
	rows := k.alerts()
	if len(rows) < 2 || rows[len(rows)-1].Level != LevelStop {
		t.Fatalf("rows %+v", rows)
	}
	if last := rows[len(rows)-1]; last.Action == ActionAbort && last.Outcome != schema.AbortError {
		t.Errorf("last row %+v", last)
	}
}

func TestTooManyWaitingAbortsAreNamed(t *testing.T) {
	d := draft()
	d.Manifest.Limits.MaxStopRate = 1
	k := newDesk(t, ModeEnforce, d)
	k.r.o.AbortWindow = 300 * time.Second
	var release sync.WaitGroup
	release.Add(1)
	serveAborts(t, k.b, func(schema.AbortCommand) schema.AbortReply {
		release.Wait()
		return schema.AbortReply{Outcome: schema.AbortStopped}
	})
	e := newEngine(t, testEpoch)
	for number := range uint64(maxAborts + 5) {
		request := fmt.Sprint("r", number)
		k.feed(e.open(number, request, 0))
		k.feed(e.text(number, request, 0, 9)...)
	}
	release.Done()
	outcomes := map[string]int{}
	for _, row := range k.alerts() {
		if row.Level == LevelStop && row.Outcome != "" {
			outcomes[row.Outcome]++
		}
	}
	if outcomes[schema.AbortStopped] != maxAborts || outcomes[schema.AbortError] != 5 {
		t.Errorf("outcomes %v, want %d stopped and 5 errors", outcomes, maxAborts)
	}
}

// A detector that wants to stop everybody is broken: it loses the right to stop,
// keeps its voice, and somebody is told.
func TestTheBreakerTakesTheRightToStop(t *testing.T) {
	k := newDesk(t, ModeEnforce, draft()) // share 0.5 of at least 20 requests: 10 stops
	f := &fakeEngine{epoch: testEpoch, running: map[uint64]string{}}
	serveAborts(t, k.b, f.answer)
	e := newEngine(t, testEpoch)
	for number := range uint64(30) {
		request := fmt.Sprint("r", number)
		f.mu.Lock()
		f.running[number] = request + "-engine"
		f.mu.Unlock()
		k.feed(e.open(number, request, 0))
		k.feed(e.text(number, request, 0, 9)...)
		k.r.running.Wait()
	}
	stops := 0
	for _, row := range k.alerts() {
		if row.Level == LevelStop && row.Outcome == "" {
			stops++
		}
	}
	if len(f.stopped) != 10 || stops != 30 {
		t.Errorf("%d requests stopped and %d alerts, want 10 and 30", len(f.stopped), stops)
	}
	problems := k.r.Problems()
	if len(problems) != 1 || !strings.Contains(problems[0], "stops nothing any more") {
		t.Errorf("problems are %q", problems)
	}
	if counter(t, k.r.metrics.breaker) != 1 || counter(t, k.r.metrics.aborts.WithLabelValues("german", "breaker")) != 20 {
		t.Error("the metrics do not show the open breaker")
	}
	k.r.sweep(time.Now().Add(time.Hour))
	if len(k.r.Problems()) != 1 {
		t.Error("the breaker closed by itself")
	}
}

func TestTheBreakerForgetsOldStopsAndForgivesAFew(t *testing.T) {
	b := breaker{rate: 0.05}
	for request := range 1000 {
		slot := b.begin()
		if request%50 == 0 && b.stop(slot) { // 2 of 100
			t.Fatalf("opened at request %d with %d stops", request, b.stops)
		}
	}
	first := b.begin()
	for range breakerWindow + 1 {
		b.begin()
	}
	if b.stop(first); b.stops != 0 {
		t.Errorf("a stop of a request long ago counts: %d", b.stops)
	}
	slot := b.begin()
	b.stop(slot)
	b.stop(slot)
	if b.stops != 1 {
		t.Errorf("one request counts as %d stops", b.stops)
	}
	opened := 0
	for range 10 {
		if b.stop(b.begin()) {
			opened++
		}
	}
	if opened != 1 || !b.open {
		t.Errorf("11 stops in a row opened the breaker %d times", opened)
	}
}

func TestDetectionsBeyondTheQueueAreInTheLogAndCounted(t *testing.T) {
	k := newDesk(t, ModeAlert, draft())
	e := newEngine(t, testEpoch)
	for number := range uint64(maxUnpublished/2 + 5) { // two alerts each
		k.feed(e.open(number, "r", 0))
		k.feed(e.text(number, "r", 0, 9)...)
	}
	if got := counter(t, k.r.metrics.unpublished.WithLabelValues("queue_full")); got != 10 {
		t.Errorf("%v detections are counted as unpublished, want 10", got)
	}
	if rows := k.alerts(); len(rows) != maxUnpublished {
		t.Errorf("%d detections wait, want %d", len(rows), maxUnpublished)
	}
}
