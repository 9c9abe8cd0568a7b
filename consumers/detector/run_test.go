package detector

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/schema"
)

// publish stores messages and waits for them.
func publish(t *testing.T, b bus.Bus, deliveries ...bus.Delivery) {
	t.Helper()
	done := make(chan error, len(deliveries))
	for _, d := range deliveries {
		if err := b.Publish(context.Background(), bus.Message{Subject: d.Subject, Data: d.Data}, func(_ uint64, err error) {
			done <- err
		}); err != nil {
			t.Fatal(err)
		}
	}
	for range deliveries {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// start runs a desk's runtime until stop, which waits for its end.
func (k *desk) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.r.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run ended with %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for range 2000 {
		if holds() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("in vain waited for: %s", what)
}

func (k *desk) scored() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.scores)
}

// has reports whether a token of a request was scored.
func (k *desk) has(request string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.scores, func(s Score) bool { return s.Request == request })
}

// detections are those on the bus, in its order.
func detections(t *testing.T, b *bustest.Bus) (rows []schema.DetectionRow, headers []schema.Header) {
	t.Helper()
	for _, d := range b.Messages() {
		batch, err := schema.Decode(d.Data)
		if err != nil {
			t.Fatal(err)
		}
		if batch.Header.Kind != schema.KindDetections {
			continue
		}
		if schema.Subject(batch.Header) != d.Subject {
			t.Errorf("subject %s for %+v", d.Subject, batch.Header)
		}
		rows, headers = append(rows, batch.Detection(0)), append(headers, batch.Header)
	}
	return rows, headers
}

func TestRunJudgesWhatItReadsAndPublishesItsVerdicts(t *testing.T) {
	b := newBus(t)
	k := newDeskOn(t, b, Use{write(t, draft()), ModeAlert})
	e := newEngine(t, testEpoch)
	publish(t, b, e.open(1, "r1", 0))
	publish(t, b, e.text(1, "r1", 0, 1)...) // before the start
	stop := k.start(t)
	eventually(t, "the first token", func() bool { return k.scored() == 1 })
	publish(t, b, e.text(1, "r1", 1, 9)...)
	other := newEngine(t, testEpoch+1)
	other.header.Tenant = "other"
	publish(t, b, other.open(1, "o", 0))
	publish(t, b, other.text(1, "o", 0, 1.5)...)
	eventually(t, "three verdicts", func() bool { rows, _ := detections(t, b); return len(rows) == 3 })
	stop()
	rows, headers := detections(t, b)
	if got := levels(rows); !slices.Equal(got, []string{LevelWarn, LevelStop, LevelWarn}) {
		t.Errorf("levels %v", got)
	}
	if headers[0].Epoch == testEpoch || headers[0].Epoch != headers[2].Epoch ||
		headers[0].WeightsDigest != "sha256:abc" || headers[2].Tenant != "other" {
		t.Errorf("headers %+v", headers)
	}
	for i, want := range []struct{ prev, last schema.Cursor }{{schema.Cursor{}, schema.Cursor{Seq: 1, Row: 1}},
		{schema.Cursor{Seq: 1, Row: 1}, schema.Cursor{Seq: 2, Row: 1}}, {schema.Cursor{}, schema.Cursor{Seq: 3, Row: 1}}} {
		if headers[i].Prev != want.prev || headers[i].Last() != want.last {
			t.Errorf("detection %d: from %v to %v, want %v to %v", i, headers[i].Prev, headers[i].Last(), want.prev, want.last)
		}
	}
}

func TestARestartRepeatsNoAlert(t *testing.T) {
	b := newBus(t)
	bundle := write(t, draft())
	e := newEngine(t, testEpoch)
	first := newDeskOn(t, b, Use{bundle, ModeAlert})
	stop := first.start(t)
	publish(t, b, e.open(1, "r1", 0), e.open(2, "r2", 0))
	publish(t, b, e.text(1, "r1", 0, 1, 1)...)
	eventually(t, "warn", func() bool { rows, _ := detections(t, b); return len(rows) == 1 })
	stop()
	publish(t, b, e.text(2, "r2", 0, 1.5)...) // crosses while nobody looks
	second := newDeskOn(t, b, Use{bundle, ModeAlert})
	second.start(t)
	eventually(t, "the verdict on what happened meanwhile", func() bool {
		rows, _ := detections(t,
			b)
		return len(rows) == 2
	})
	publish(t, b, e.text(1, "r1", 2, 9)...)
	eventually(t, "stop", func() bool { rows, _ := detections(t, b); return len(rows) >= 3 })
	publish(t, b, e.text(2, "r2", 1, 0)...)
	eventually(t, "the last token", func() bool { return second.scored() == 5 })
	rows, _ := detections(t, b)
	if got := levels(rows); !slices.Equal(got, []string{LevelWarn, LevelWarn, LevelStop}) ||
		rows[0].Request != "r1" || rows[1].Request != "r2" || rows[2].Request != "r1" {
		t.Errorf("detections are %+v", rows)
	}
}

// The first run died between the command and its answer. The second one asks again;
// a stop that was announced is never left without an outcome.
func TestARestartFindsOutWhatCameOfAnAbort(t *testing.T) {
	b := newBus(t)
	bundle := write(t, draft())
	e := newEngine(t, testEpoch)
	e.now += int64(time.Hour) // never expires in this test
	first := newDeskOn(t, b, Use{bundle, ModeEnforce})
	stop := first.start(t)
	publish(t, b, e.open(1, "r1", 0))
	publish(t, b, e.text(1, "r1", 0, 9)...)
	eventually(t, "the alerts", func() bool { rows, _ := detections(t, b); return len(rows) == 2 })
	stop()
	var asked atomic.Int64
	serveAborts(t, b, func(c schema.AbortCommand) schema.AbortReply {
		asked.Add(1)
		return schema.AbortReply{Outcome: schema.AbortStopped, FinalLength: 2}
	})
	stop = newDeskOn(t, b, Use{bundle, ModeEnforce}).start(t)
	eventually(t, "the outcome", func() bool { rows, _ := detections(t, b); return len(rows) == 3 })
	rows, _ := detections(t, b)
	if rows[2].ID != rows[1].ID || rows[2].Outcome != schema.AbortStopped || asked.Load() != 1 {
		t.Errorf("asked %d times, detections %+v", asked.Load(), rows)
	}
	stop()
	third := newDeskOn(t, b, Use{bundle, ModeEnforce})
	third.start(t)
	eventually(t, "the third run to read on", func() bool { return third.scored() == 1 })
	publish(t, b, e.text(1, "r1", 1, 9)...)
	eventually(t, "the third run to catch up", func() bool { return third.scored() == 2 })
	if rows, _ := detections(t, b); len(rows) != 3 || asked.Load() != 1 {
		t.Errorf("asked %d times, %d detections, want once and 3", asked.Load(), len(rows))
	}
}

func TestAStartReadsOnlyTheLastMinutes(t *testing.T) {
	b := newBus(t)
	e := newEngine(t, testEpoch)
	publish(t, b, e.open(1, "old", 0))
	publish(t, b, e.text(1, "old", 0, 1, 1, 1, 1, 1, 1, 1)...)
	time.Sleep(20 * time.Millisecond)
	k := newDeskOn(t, b, Use{write(t, draft()), ModeAlert})
	k.r.o.Lookback = 10 * time.Millisecond
	stop := k.start(t)
	news := 0
	eventually(t, "a new token", func() bool {
		news++
		publish(t, b, e.open(uint64(1+news), "new", 0))
		publish(t, b, e.text(uint64(1+news), "new", 0, 1)...)
		return k.has("new")
	})
	stop()
	if k.has("old") {
		t.Error("an old token was scored")
	}
	all := newDeskOn(t, b, Use{write(t, draft()), ModeAlert})
	all.start(t)
	eventually(t, "all tokens", func() bool { return all.scored() == 7+news })
}

func TestAStreamMadeAnewIsReadFromItsStart(t *testing.T) {
	b := newBus(t)
	k := newDeskOn(t, b, Use{write(t, draft()), ModeAlert})
	k.start(t)
	e := newEngine(t, testEpoch)
	publish(t, b, e.open(1, "r1", 0))
	publish(t, b, e.text(1, "r1", 0, 0.1)...)
	eventually(t, "a token", func() bool { return k.scored() == 1 })
	b.Recreate()
	publish(t, b, e.text(1, "r1", 1, 0.1)...)
	eventually(t, "a token of the new stream", func() bool { return k.scored() == 2 })
	b.Stop()
	b.Start()
	publish(t, b, e.text(1, "r1", 2, 9)...)
	eventually(t, "alerts after the broker came back", func() bool { rows, _ := detections(t, b); return len(rows) == 2 })
}

func TestTheEndWaitsForWhatIsNotPublishedYet(t *testing.T) {
	b := newBus(t)
	k := newDeskOn(t, b, Use{write(t, draft()), ModeAlert})
	stop := k.start(t)
	var away atomic.Bool
	away.Store(true)
	b.OnPublish(func(m bus.Message, attempt int) bustest.Fate {
		if away.Load() && attempt < 100 && isDetection(m) {
			time.Sleep(time.Millisecond)
			return bustest.Fail
		}
		return bustest.Take
	})
	e := newEngine(t, testEpoch)
	publish(t, b, e.open(1, "r1", 0))
	publish(t, b, e.text(1, "r1", 0, 9)...)
	eventually(t, "the token", func() bool { return k.scored() == 1 })
	stop()
	if rows, _ := detections(t, b); len(rows) != 2 {
		t.Errorf("%d detections were published before the end, want 2", len(rows))
	}
}

func isDetection(m bus.Message) bool {
	h, err := schema.DecodeHeader(m.Data)
	return err == nil && h.Kind == schema.KindDetections
}

func TestAClosedBusIsAnError(t *testing.T) {
	b := bustest.New()
	k := newDeskOn(t, b, Use{write(t, draft()), ModeAlert})
	ended := make(chan error, 1)
	go func() { ended <- k.r.Run(context.Background()) }()
	e := newEngine(t, testEpoch)
	publish(t, b, e.open(1, "r1", 0))
	publish(t, b, e.text(1, "r1", 0, 0)...)
	eventually(t, "the run to read", func() bool { return k.scored() == 1 })
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, bus.ErrClosed) {
		t.Errorf("run ended with %v", err)
	}
}

// The price of a token of 4096 elements, from the message to the verdict.
func BenchmarkJudge(b *testing.B) {
	d := draft()
	d.Manifest.Binding.Width, d.Probe.Weight = 4096, make([]float32, 4096)
	d.Rows = [][]byte{make([]byte, 4*4096)}
	bundle, err := Write(b.TempDir()+"/bundle", d)
	if err != nil {
		b.Fatal(err)
	}
	k := newDeskOn(b, newBus(b), Use{bundle, ModeAlert})
	k.r.o.OnScore = nil
	e := newEngine(b, testEpoch)
	e.header.Shape = []int{4096}
	const rows = 64
	tokens := make([]token, rows)
	k.feed(e.open(1, "r1", 0))
	b.SetBytes(rows * 4 * 4096)
	for position := int32(0); b.Loop(); position += rows {
		b.StopTimer()
		for i := range tokens {
			tokens[i] = token{number: 1, request: "r1", position: position + int32(i)}
		}
		d := e.step(tokens...)
		b.StartTimer()
		k.feed(d)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*rows), "ns/token")
}

// Whoever waits for the verdicts of a replay must not go on before the last outcome.
func TestSettledMeansThatEveryVerdictIsOut(t *testing.T) {
	b := newBus(t)
	k := newDeskOn(t, b, Use{write(t, draft()), ModeEnforce})
	answer := make(chan struct{})
	serveAborts(t, b, func(schema.AbortCommand) schema.AbortReply {
		<-answer
		return schema.AbortReply{Outcome: schema.AbortStopped, FinalLength: 1}
	})
	k.start(t)
	e := newEngine(t, testEpoch)
	e.now += int64(time.Hour) // never expires in this test
	publish(t, b, e.open(1, "r1", 0))
	publish(t, b, e.text(1, "r1", 0, 9)...)
	const last = 2
	if k.r.Settled(0, 1<<40) {
		t.Error("settled at a position that does not exist yet")
	}
	eventually(t, "both verdicts", func() bool { rows, _ := detections(t, b); return len(rows) == 2 })
	if k.r.Settled(0, last) {
		t.Error("settled while the engine has not answered")
	}
	close(answer)
	eventually(t, "the end", func() bool { return k.r.Settled(0, last) })
	if rows, _ := detections(t, b); len(rows) != 3 {
		t.Errorf("settled with %d detections on the bus, want 3", len(rows))
	}
}
