package detector

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"sonde/bus"
	"sonde/schema"
)

// The same life on a real broker: old messages, live ones, an abort with its answer, a
// second run that repeats nothing.
func TestARealBrokerCarriesVerdictsAndAborts(t *testing.T) {
	quietly := slog.New(slog.NewTextHandler(io.Discard, nil))
	server, err := bus.StartEmbedded(bus.EmbeddedOptions{StoreDir: t.TempDir(), Logger: quietly})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	b, err := bus.OpenNATS(context.Background(), bus.NATSOptions{Embedded: server, MaxBytes: 64 << 20, Logger: quietly})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	if _, err := b.Serve(schema.AbortSubject("acme", "llm", 0), func(data []byte) []byte {
		c, err := schema.ParseAbortCommand(data)
		if err != nil || c.EngineID != "r1-engine" {
			t.Errorf("command %+v: %v", c, err)
		}
		return schema.AbortReply{Outcome: schema.AbortStopped, FinalLength: 3}.Encode()
	}); err != nil {
		t.Fatal(err)
	}
	bundle := write(t, draft())
	run := func(rows chan schema.DetectionRow, scored *atomic.Int64) (stop func()) {
		r, err := New(Options{Bus: b, Detectors: []Use{{bundle, ModeEnforce}}, OnScore: func(Score) { scored.Add(1) },
			OnDetection: func(row schema.DetectionRow) { rows <- row }, Logger: quietly})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		return func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("run ended with %v", err)
			}
		}
	}
	e := newEngine(t, testEpoch)
	e.now = time.Now().Add(time.Hour).UnixNano() // never expires in this test
	publish(t, b, e.open(1, "r1", 0))
	publish(t, b, e.text(1, "r1", 0, 1)...)
	rows, scored := make(chan schema.DetectionRow, 10), &atomic.Int64{}
	stop := run(rows, scored)
	eventually(t, "the token of before", func() bool { return scored.Load() == 1 })
	publish(t, b, e.text(1, "r1", 1, 9)...)
	for _, want := range []struct{ level, outcome string }{{LevelWarn, ""}, {LevelStop, ""}, {LevelStop,
		schema.AbortStopped}} {
		if row := <-rows; row.Level != want.level || row.Outcome != want.outcome {
			t.Errorf("got %s with outcome %q, want %s with %q", row.Level, row.Outcome, want.level, want.outcome)
		}
	}
	stop()
	scored.Store(0)
	stop = run(rows, scored)
	eventually(t, "both tokens again", func() bool { return scored.Load() == 2 })
	publish(t, b, e.text(1, "r1", 2, 9)...)
	eventually(t, "the third token", func() bool { return scored.Load() == 3 })
	stop()
	if len(rows) != 0 {
		t.Errorf("the second run said %+v", <-rows)
	}
}
