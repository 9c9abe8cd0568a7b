package bus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"

	"sonde/catalogue"
)

const (
	watchEvery = 500 * time.Millisecond
	// probeBytes is what the disk must take before the store is opened anew.
	probeBytes = 1 << 20
	// calmAfter is how long a store must work until the next trouble is a new one.
	calmAfter   = 30 * time.Second
	firstReopen = time.Second
	lastReopen  = 30 * time.Second
)

type storeMetrics struct {
	failed   prometheus.Gauge
	reopened prometheus.Counter
}

func newStoreMetrics(reg prometheus.Registerer) (*storeMetrics, error) {
	m := &storeMetrics{failed: catalogue.NewGauge("sonde_bus_store_failed"),
		reopened: catalogue.NewCounter("sonde_bus_store_reopened_total")}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.failed, m.reopened} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of the embedded bus: %w", err)
		}
	}
	return m, nil
}

// Trouble says why the store takes nothing, "" when it does. Nobody needs to do more
// than mend the disk: publishing waits, and goes on by itself.
func (e *EmbeddedServer) Trouble() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.trouble
}

func (e *EmbeddedServer) setTrouble(what string) {
	e.mu.Lock()
	e.trouble = what
	e.mu.Unlock()
	failed := 0.0
	if what != "" {
		failed = 1
	}
	e.metrics.failed.Set(failed)
}

// watchStore looks after the store until ctx ends. The server itself never writes
// again after one write failed: messages get no answer until it is started anew.
func (e *EmbeddedServer) watchStore(ctx context.Context) {
	pause, reopened := firstReopen, time.Now()
	for {
		sleep(ctx, watchEvery)
		if ctx.Err() != nil {
			return
		}
		problem := storeProblem(e.s) // Only this goroutine changes e.s.
		if problem == "" {
			continue
		}
		if time.Since(reopened) > calmAfter {
			pause = firstReopen
		}
		e.setTrouble("the store in " + e.o.StoreDir + " cannot be written: " + problem)
		e.o.Logger.Error("the bus cannot write its store; publishing waits until the disk takes writes, then goes on by "+
			"itself", "store", e.o.StoreDir, "error", problem)
		if !e.reopen(ctx, pause) {
			return
		}
		pause, reopened = min(2*pause, lastReopen), time.Now()
		e.metrics.reopened.Inc()
		e.setTrouble("")
		e.o.Logger.Info("the bus opened its store anew", "store", e.o.StoreDir)
	}
}

// storeProblem is why a server has given up its store. Streams that it never could
// read are no such reason: starting it anew would not mend them.
func storeProblem(s *server.Server) string {
	if !s.JetStreamEnabled() {
		return "JetStream switched itself off"
	}
	if h := s.Healthz(nil); strings.Contains(h.Error, "write error") {
		return h.Error
	}
	return ""
}

// reopen waits until the disk takes writes, and starts the server anew: it finds
// everything that it acknowledged. It returns false when ctx ended.
func (e *EmbeddedServer) reopen(ctx context.Context, pause time.Duration) bool {
	for sleep(ctx, pause); ctx.Err() == nil; sleep(ctx, pause) {
		if probeDisk(e.o.StoreDir) != nil {
			continue
		}
		e.mu.Lock()
		old := e.s
		e.s = nil
		e.mu.Unlock()
		if old != nil {
			old.Shutdown()
			old.WaitForShutdown()
		}
		s, err := startServer(e.o)
		if err != nil {
			e.o.Logger.Error("the bus cannot open its store anew; it is tried again", "store", e.o.StoreDir, "error", err)
			continue
		}
		e.mu.Lock()
		e.s = s
		e.mu.Unlock()
		return true
	}
	return false
}

// probeDisk writes and syncs a file in a folder, and removes it.
func probeDisk(dir string) error {
	f, err := os.CreateTemp(dir, "probe-*")
	if err != nil {
		return fmt.Errorf("write in %s: %w", filepath.Clean(dir), err)
	}
	_, err = f.Write(make([]byte, probeBytes))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}
