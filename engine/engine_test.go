package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sonde/engine/arithmetic"
	"sonde/engine/capture"
	"sonde/engine/model"
	"sonde/engine/witness"
	"sonde/ring2"
)

func loadArithmetic() (model.Model, model.Tokenizer, error) {
	return arithmetic.New(arithmetic.Options{Layers: 2}), arithmetic.Tokenizer{}, nil
}

func options(t *testing.T) Options {
	o := Defaults()
	dir := t.TempDir()
	o.Load, o.Listen, o.Logger = loadArithmetic, "127.0.0.1:0", slog.New(slog.DiscardHandler)
	o.StateDir, o.WitnessDir = filepath.Join(dir, "state"), filepath.Join(dir, "witness")
	o.StepLog, o.RingSocket = filepath.Join(dir, "steps"), filepath.Join(dir, "s")
	o.KVBlocks, o.PrefillChunk, o.MaxBatch = 48, 24, 8
	return o
}

// agent reads one engine's ring to its end and counts.
type agent struct {
	epoch           uint64
	rows            uint64 // that arrived
	opened, ended   int
	reasons         map[ring2.Finish]int
	bye, eof        bool
	obituaries      int
	engine, version string
}

func (a *agent) run(ctx context.Context, l *ring2.Listener) error {
	s, err := l.Accept(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	a.epoch, a.engine, a.reasons = s.Config().Epoch, s.Config().EngineInstance, map[ring2.Finish]int{}
	layouts, steps := map[uint32]ring2.Layout{}, map[uint64]ring2.Step{}
	var records []ring2.Record
	for {
		records, err = s.Next(ctx, records[:0])
		for i := range records {
			r := &records[i]
			switch r.Kind {
			case ring2.KindModel:
				m, err := ring2.ParseModel(r.Payload)
				if err != nil {
					return err
				}
				a.version = m.EngineVersion
			case ring2.KindLayout:
				l, err := ring2.ParseLayout(r.Payload)
				if err != nil {
					return err
				}
				layouts[l.ID] = l
			case ring2.KindStep:
				step, err := ring2.ParseStep(r.Payload)
				if err != nil {
					return err
				}
				steps[step.Step] = step
			case ring2.KindCapture:
				step := steps[r.Step]
				for i, l := range step.Layouts {
					if l.Layout == r.Layout {
						for _, e := range layouts[l.Layout].Entries {
							a.rows += uint64(step.EntryRows(i, e.Select))
						}
					}
				}
			case ring2.KindRequestOpen:
				a.opened++
			case ring2.KindRequestEnd:
				e, err := ring2.ParseRequestEnd(r.Payload)
				if err != nil {
					return err
				}
				a.ended++
				a.reasons[e.Reason]++
			case ring2.KindObituary:
				a.obituaries++
			case ring2.KindBye:
				a.bye = true
			}
			s.Release(r.Seq + 1)
		}
		if errors.Is(err, io.EOF) {
			a.eof = true
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// start runs an engine and returns its address and the end of Run.
func start(t *testing.T, ctx context.Context, o Options) (string, <-chan error) {
	t.Helper()
	ready, done := make(chan string, 1), make(chan error, 1)
	o.Ready = func(address string) { ready <- "http://" + address }
	go func() { done <- Run(ctx, o) }()
	select {
	case address := <-ready:
		return address, done
	case err := <-done:
		t.Fatalf("the engine ended: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("the engine never served")
	}
	return "", nil
}

func complete(address, body string) (string, error) {
	resp, err := http.Post(address+"/v1/completions", "application/json", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return string(text), err
}

// The parts work alone; an engine whose parts do not fit together captures
// nothing, or never ends.
func TestEngineCapturesWitnessesAndEndsInOrder(t *testing.T) {
	o := options(t)
	o.Version, o.Instance, o.WaitAgent, o.StepDelay = "9.9", "engine-x", time.Minute, time.Millisecond
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	listener, err := ring2.Listen(o.RingSocket, ring2.ListenerOptions{Logger: o.Logger})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var a agent
	read := make(chan error, 1)
	go func() { read <- a.run(context.Background(), listener) }()
	address, done := start(t, ctx, o)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			text, err := complete(address, fmt.Sprintf(`{"prompt":"hello %d","max_tokens":9,"n":2}`, i%3))
			if err != nil || !json.Valid([]byte(text)) || !strings.Contains(text, "finish_reason") {
				t.Errorf("%s %v", text, err)
			}
		})
	}
	wg.Wait()
	left := make(chan string, 1)
	go func() {
		text, err := complete(address, `{"prompt":"long","max_tokens":100000}`)
		left <- fmt.Sprint(text, err)
	}()
	awaitMetric(t, address, "sonde_engine_ring_captured_rows_total", 1)
	awaitMetric(t, address, `sonde_engine_tokens_total{phase="decode"}`, 12*2)
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if text := <-left; !strings.Contains(text, "finish_reason") && !strings.Contains(text, "stopping") {
		t.Errorf("the open request was left with %s", text)
	}
	if err := <-read; err != nil {
		t.Error(err)
	}
	if a.opened < 24 || a.opened != a.ended || !a.bye || !a.eof || a.engine != "engine-x" || a.version != "9.9" {
		t.Errorf("the agent saw %+v", a)
	}
	witnessed := uint64(0)
	err = witness.Read(o.WitnessDir, func(r witness.Row) error {
		if witnessed++; r.Epoch != a.epoch {
			t.Errorf("witnessed in epoch %x, captured in %x", r.Epoch, a.epoch)
		}
		return nil
	})
	if err != nil || witnessed == 0 || witnessed != a.rows {
		t.Errorf("%d rows arrived, %d were witnessed, %v", a.rows, witnessed, err)
	}
	checkStepLog(t, o.StepLog)
}

func checkStepLog(t *testing.T, name string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := 0
	for scan := bufio.NewScanner(f); scan.Scan(); lines++ {
		var wall, took, tokens, sequences int64
		n, err := fmt.Sscan(scan.Text(), &wall, &took, &tokens, &sequences)
		if n != 4 || err != nil || wall < 1e18 || took <= 0 || tokens < sequences || sequences < 1 || sequences > 8 {
			t.Errorf("step log line %q", scan.Text())
		}
	}
	if lines < 10 {
		t.Errorf("the step log has %d lines", lines)
	}
}

func awaitMetric(t *testing.T, address, series string, want float64) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		resp, err := http.Get(address + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body) // What is missing is waited for.
		resp.Body.Close()
		for line := range strings.Lines(string(text)) {
			var v float64
			if rest, ok := strings.CutPrefix(line, series+" "); ok {
				if _, err := fmt.Sscan(rest, &v); err == nil && v >= want {
					return
				}
			}
		}
	}
	t.Fatalf("%s never reached %v", series, want)
}

// An engine without an agent, and one without a ring, must serve all the same,
// and tell an agent that comes late what it computed.
func TestEngineServesWithoutAnAgent(t *testing.T) {
	for _, socket := range []bool{true, false} {
		o := options(t)
		o.WaitAgent = 20 * time.Millisecond
		if !socket {
			o.RingSocket = ""
		}
		ctx, stop := context.WithCancel(context.Background())
		address, done := start(t, ctx, o)
		text, err := complete(address, `{"prompt":"a","max_tokens":3}`)
		if err != nil || !strings.Contains(text, "finish_reason") {
			t.Errorf("%s %v", text, err)
		}
		var a agent
		read := make(chan error, 1)
		if socket {
			listener, err := ring2.Listen(o.RingSocket, ring2.ListenerOptions{Logger: o.Logger})
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() { read <- a.run(context.Background(), listener) }()
			awaitMetric(t, address, "sonde_engine_ring_attached", 1)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if !socket {
			continue
		}
		if err := <-read; err != nil || a.opened != 1 || a.ended != 1 || a.rows == 0 || !a.bye {
			t.Errorf("the late agent saw %+v, %v", a, err)
		}
	}
}

// Steps that the ring can never hold would be dropped, every one of them.
func TestStepsAreMadeToFitTheRing(t *testing.T) {
	o := options(t)
	o.RingBytes, o.PrefillChunk, o.MaxBatch = 1<<20, 4096, 512
	m, _, _ := loadArithmetic()
	e := &engine{o: &o, model: m}
	selection := mustSelect(t, m)
	e.selection = selection
	if err := e.fitSteps(); err != nil {
		t.Fatal(err)
	}
	bytes := selection.StepBytes(o.PrefillChunk+o.MaxBatch, o.MaxBatch, o.KVBlocks*o.BlockTokens)
	if bytes > o.RingBytes/4 || o.MaxBatch < 16 || o.PrefillChunk < o.MaxBatch {
		t.Errorf("chunk %d, batch %d: %d bytes of %d", o.PrefillChunk, o.MaxBatch, bytes, o.RingBytes)
	}
	o.RingBytes = 1 << 12
	if err := e.fitSteps(); err == nil || !strings.Contains(err.Error(), "larger ring") {
		t.Errorf("a ring that is too small: %v", err)
	}
}

// A start that fails must say why, and leave nothing behind that blocks the next.
func TestStartThatFailsSaysWhy(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, c := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"model":   {func(o *Options) { o.Load = failingLoad }, "load the model: no such folder"},
		"hooks":   {func(o *Options) { o.Hooks = []string{"resid_pots"} }, "resid_pots"},
		"address": {func(o *Options) { o.Listen = taken.Addr().String() }, "listen for requests"},
		"ring":    {func(o *Options) { o.RingBytes = 1<<20 + 1 }, "power of two"},
		"witness": {func(o *Options) { o.WitnessDir = "/dev/null/x" }, "witness folder"},
		"log":     {func(o *Options) { o.StepLog = "/dev/null/x" }, "step log"},
		"blocks":  {func(o *Options) { o.KVBlocks, o.RingSocket = 0, "" }, "KV blocks"},
	} {
		o := options(t)
		c.change(&o)
		if err := Run(context.Background(), o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func failingLoad() (model.Model, model.Tokenizer, error) {
	return nil, nil, errors.New("no such folder")
}

func mustSelect(t *testing.T, m model.Model) *capture.Selection {
	t.Helper()
	s, err := capture.Select(m, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What no agent ever took must be named by the next engine, under the epoch that
// computed it.
func TestSuccessorTellsWhatNobodyTook(t *testing.T) {
	o := options(t)
	ctx, stop := context.WithCancel(context.Background())
	address, done := start(t, ctx, o)
	if text, err := complete(address, `{"prompt":"a","max_tokens":3}`); err != nil {
		t.Errorf("%s %v", text, err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	listener, err := ring2.Listen(o.RingSocket, ring2.ListenerOptions{Logger: o.Logger})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var a agent
	read := make(chan error, 1)
	go func() { read <- a.run(context.Background(), listener) }()
	ctx, stop = context.WithCancel(context.Background())
	address, done = start(t, ctx, o)
	awaitMetric(t, address, "sonde_engine_ring_obituaries_total", 6) // model, layouts, open
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := <-read; err != nil || a.obituaries < 6 || a.opened != 0 || !a.bye {
		t.Errorf("the agent saw %+v, %v", a, err)
	}
}
