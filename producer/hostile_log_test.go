package producer

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sonde/ring2"
)

// warnings counts lines of a log that ask for attention.
type warnings struct {
	mu    sync.Mutex
	lines []string
}

func (w *warnings) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, string(bytes.TrimSpace(p)))
	return len(p), nil
}

func (w *warnings) all() []string { w.mu.Lock(); defer w.mu.Unlock(); return slices.Clone(w.lines) }

func (w *warnings) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// A person must find the one line that matters.
func TestAHostileRankCostsOneLogLine(t *testing.T) {
	for name, hostile := range hostileRecords {
		var log warnings
		w := newWorld(t, Options{Policy: everything(), Logger: log.logger()})
		s := newFakeSession()
		e := newEngine(s, testEntries)
		w.attach(s)
		e.open(1, "acme", 1)
		hostile(s)
		until(t, name+": the rank is quarantined", func() bool {
			return w.agent.counters.quarantined.Load() == 1 && len(log.all()) > 0
		})
		w.stop()
		if lines := log.all(); len(lines) != 1 || !strings.Contains(lines[0], "quarantined") {
			t.Errorf("%s: %d lines, want one:\n%s", name, len(lines), strings.Join(lines, "\n"))
		}
	}
}

// What quarantines nobody may come without end.
func TestAFloodOfNonsenseFillsNoLog(t *testing.T) {
	const flood = 2000
	for name, c := range map[string]struct {
		hostile func(s *fakeSession, e *engine)
		counted func(*counters) uint64
	}{
		"captures that do not fit": {func(_ *fakeSession, e *engine) {
			for i := range flood {
				e.stepBut(func(r *ring2.Record) { r.Payload = r.Payload[:1] }, decode(1, uint32(i)))
			}
		}, func(n *counters) uint64 { return n.corrupt.Load() }},
		"journals of dead writers": {func(s *fakeSession, _ *engine) {
			dead := &journal{s: s, epoch: 0xdead}
			for range flood {
				dead.put(ring2.KindStep, []byte{9})
			}
		}, func(n *counters) uint64 { return n.badObituaries.Load() }},
	} {
		t.Run(name, func(t *testing.T) {
			var log warnings
			began := time.Now()
			w := newWorld(t, Options{Policy: everything(), Logger: log.logger()})
			s := newFakeSession()
			e := newEngine(s, testEntries)
			w.attach(s)
			e.open(1, "acme", 1)
			c.hostile(s, e)
			until(t, "all is counted", func() bool { return c.counted(&w.agent.counters) == flood })
			w.stop()
			// One line at once, and one for each second that this takes here.
			if n, most := len(log.all()), 1+int(time.Since(began)/time.Second); n == 0 || n > most {
				t.Errorf("%d lines, want 1 to %d", n, most)
			}
		})
	}
}
