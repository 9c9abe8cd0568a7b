// Package engine is the reference engine: a model, a scheduler, the capture of
// its hooks onto a ring, and an HTTP interface, in one process.
package engine

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"sonde/engine/capture"
	"sonde/engine/model"
	"sonde/engine/scheduler"
	"sonde/engine/server"
	"sonde/engine/witness"
	"sonde/ring2"
)

// Options of an engine. Zero fields are not defaults: start from Defaults.
type Options struct {
	Load         func() (model.Model, model.Tokenizer, error)
	Version      string // of this program
	Listen       string // address of the HTTP interface
	Instance     string // name of this engine, shared by its ranks
	Rank, Ranks  int
	RingSocket   string // of the agent; "": nothing is captured
	RingBytes    int    // power of two
	RingDescs    int    // power of two
	RingMode     ring2.Mode
	StateDir     string        // of the ring's journal, "": none
	WaitAgent    time.Duration // how long to wait for an agent before serving
	WitnessDir   string        // "": no witness
	Hooks        []string      // patterns of hook names, none: all
	KVBlocks     int
	BlockTokens  int
	PrefillChunk int // most prompt and recomputed tokens in a step
	MaxBatch     int // most sequences in a step, and most samples of a request
	PrefixCache  bool
	Seed         uint64        // of requests without one, with their id
	StepDelay    time.Duration // pause after each step
	StepLog      string        // file of one line a step, "": none
	Logger       *slog.Logger
	Ready        func(address string) // nil: none; called once requests are served
}

// Defaults are options for a small model on one machine; Load is missing.
func Defaults() Options {
	return Options{Version: "dev", Listen: "127.0.0.1:8000", Instance: "engine", Ranks: 1, RingBytes: 64 << 20,
		RingDescs: 4096, KVBlocks: 1024, BlockTokens: 16, PrefillChunk: 256, MaxBatch: 32, PrefixCache: true,
		Logger: slog.Default()}
}

const (
	maxOpen      = 1024             // open sequences; beyond it, requests are refused with 429
	drainLimit   = 3 * time.Second  // for open requests to finish at the end; then they are aborted
	goodbyeLimit = 20 * time.Second // for the agent to release the ring at the end
	absenceLimit = 3 * time.Second  // of it, for an agent that is not there to come back
	httpLimit    = 5 * time.Second  // for answers to be taken at the end
)

// engine holds what Run has made so far.
type engine struct {
	o         *Options
	model     model.Model
	tokenizer model.Tokenizer
	selection *capture.Selection
	registry  *prometheus.Registry
	listener  net.Listener
	epoch     uint64
	ring      *ring2.Writer   // nil without a socket
	witness   *witness.Writer // nil without a folder
	stepLog   *stepLog        // nil without a file
	scheduler *scheduler.Scheduler
	// Stored by serve, loaded by abort on the ring's goroutine: before the
	// scheduler runs, nobody would answer an abort.
	running atomic.Pointer[scheduler.Scheduler]
}

// Run serves requests until ctx ends. Then it refuses new ones, lets open ones
// finish for a short time, aborts the others, says goodbye in the ring and waits
// until the agent has released it. It returns nil after such an end.
func Run(ctx context.Context, o Options) (err error) {
	e := &engine{o: &o, registry: prometheus.NewRegistry()}
	e.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	defer func() { err = errors.Join(err, e.close()) }()
	if err := e.prepare(); err != nil {
		return err
	}
	e.awaitAgent(ctx)
	return e.serve(ctx)
}

// prepare makes everything that needs no request.
func (e *engine) prepare() (err error) {
	if e.model, e.tokenizer, err = e.o.Load(); err != nil {
		return fmt.Errorf("load the model: %w", err)
	}
	if e.selection, err = capture.Select(e.model, e.o.Hooks); err != nil {
		return err
	}
	if err = e.fitSteps(); err != nil {
		return err
	}
	if e.listener, err = net.Listen("tcp", e.o.Listen); err != nil {
		return fmt.Errorf("listen for requests: %w; choose another address with --listen", err)
	}
	if err = e.openRing(); err != nil {
		return err
	}
	if e.o.WitnessDir != "" {
		if e.witness, err = witness.Create(e.o.WitnessDir, e.epoch, e.selection.Hooks()); err != nil {
			return err
		}
	}
	if e.o.StepLog != "" {
		if e.stepLog, err = openStepLog(e.o.StepLog); err != nil {
			return err
		}
	}
	recorder, err := capture.New(e.selection, e.ring, e.witness, e.o.Version)
	if err != nil {
		return err
	}
	e.scheduler, err = scheduler.New(scheduler.Options{Model: e.model, Tokenizer: e.tokenizer, Recorder: recorder,
		Epoch: e.epoch, Blocks: e.o.KVBlocks, BlockTokens: e.o.BlockTokens, PrefillChunk: e.o.PrefillChunk,
		MaxBatch: e.o.MaxBatch, MaxOpen: maxOpen, PrefixCache: e.o.PrefixCache, StepDelay: e.o.StepDelay,
		DrainLimit: drainLimit, OnStep: e.stepLog.onStep(), Registerer: e.registry, Logger: e.o.Logger})
	return err
}

// openRing makes the ring, or only an epoch when nothing is captured.
func (e *engine) openRing() (err error) {
	if e.o.RingSocket == "" {
		var b [8]byte
		_, _ = rand.Read(b[:]) // It never fails: crypto/rand ends the process instead.
		e.epoch = binary.LittleEndian.Uint64(b[:])
		return nil
	}
	e.ring, err = ring2.NewWriter(ring2.WriterOptions{Socket: e.o.RingSocket, EngineInstance: e.o.Instance, Rank: e.o.Rank,
		RankCount: e.o.Ranks, DescCount: e.o.RingDescs, DataBytes: e.o.RingBytes, Mode: e.o.RingMode,
		StateDir: e.o.StateDir, OnAbort: e.abort, Logger: e.o.Logger})
	if err != nil {
		return err
	}
	e.epoch = e.ring.Epoch()
	e.registry.MustRegister(capture.NewMetrics(e.ring.Stats))
	return nil
}

// abort answers an abort that came through the ring.
func (e *engine) abort(a ring2.Abort) (ring2.AbortOutcome, uint32) {
	s := e.running.Load()
	if s == nil {
		return ring2.AbortUnknown, 0
	}
	outcome, length := s.AbortSequence(a)
	return outcome, uint32(length)
}

// fitSteps makes steps so small that a quarter of the ring holds one: then the
// engine computes while the agent reads.
func (e *engine) fitSteps() error {
	if e.o.RingSocket == "" {
		return nil
	}
	o, context := e.o, min(e.model.Info().Context, e.o.KVBlocks*e.o.BlockTokens)
	limit, chunk, batch := o.RingBytes/4, o.PrefillChunk, o.MaxBatch
	for e.selection.StepBytes(chunk+batch, batch, context) > limit {
		switch {
		case chunk > batch:
			chunk = max(chunk/2, batch)
		case batch > 1:
			batch /= 2
			chunk = min(chunk, batch)
		default:
			return fmt.Errorf("fit steps into the ring: two tokens take %d bytes, a quarter of the ring is %d; "+
				"use a larger ring or fewer hooks", e.selection.StepBytes(2, 1, context), limit)
		}
	}
	if chunk != o.PrefillChunk || batch != o.MaxBatch {
		o.Logger.Warn("steps are smaller than asked for, so that the ring holds them", "prefill_chunk", chunk,
			"max_batch", batch, "ring_bytes", o.RingBytes)
	}
	o.PrefillChunk, o.MaxBatch = chunk, batch
	return nil
}

// awaitAgent waits a while until an agent is attached.
func (e *engine) awaitAgent(ctx context.Context) {
	if e.ring == nil || e.o.WaitAgent <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, e.o.WaitAgent)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !e.ring.Stats().Attached {
		select {
		case <-tick.C:
		case <-ctx.Done():
			e.o.Logger.Warn("no agent attached in time; what the ring cannot hold is dropped", "waited", e.o.WaitAgent)
			return
		}
	}
}

// serve answers requests until ctx ends or something fails.
func (e *engine) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	web := &http.Server{ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(e.o.Logger.Handler(), slog.LevelInfo),
		Handler: server.New(server.Options{Scheduler: e.scheduler, Info: e.model.Info(), Tokenizer: e.tokenizer,
			Seed: e.o.Seed, Gatherer: e.registry, Logger: e.o.Logger})}
	served := make(chan error, 1)
	go func() {
		err := web.Serve(e.listener)
		cancel() // Without an interface there is nothing to compute.
		served <- err
	}()
	e.running.Store(e.scheduler)
	e.o.Logger.Info("engine serves", "address", e.listener.Addr().String(), "model", e.model.Info().Name,
		"epoch", fmt.Sprintf("%016x", e.epoch), "context", e.scheduler.Context())
	if e.o.Ready != nil {
		e.o.Ready(e.listener.Addr().String())
	}
	err := e.scheduler.Run(ctx)
	stop, done := context.WithTimeout(context.Background(), httpLimit)
	defer done()
	if web.Shutdown(stop) != nil {
		_ = web.Close() // Clients that take no answers.
	}
	if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serve requests: %w", failed))
	}
	return err
}

// close says goodbye to the agent and closes the files.
func (e *engine) close() error {
	var errs []error
	if e.listener != nil {
		_ = e.listener.Close() // Serve has closed it already, if it came so far.
	}
	if e.ring != nil {
		errs = append(errs, e.sayGoodbye())
	}
	if e.witness != nil {
		errs = append(errs, e.witness.Close())
	}
	if e.stepLog != nil {
		errs = append(errs, e.stepLog.close())
	}
	return errors.Join(errs...)
}

// sayGoodbye closes the ring. What the agent does not take in time is named by
// the next engine on the same state folder.
func (e *engine) sayGoodbye() error {
	limit := goodbyeLimit
	if e.running.Load() == nil {
		limit = 0 // Nothing was computed that an agent could wait for.
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	go func() {
		const every = 100 * time.Millisecond
		for absent := time.Duration(0); absent < absenceLimit && ctx.Err() == nil; absent += every {
			if e.ring.Stats().Attached {
				absent = 0
			}
			time.Sleep(every)
		}
		cancel()
	}()
	err := e.ring.Close(ctx)
	if err != nil && errors.Is(err, ctx.Err()) {
		e.o.Logger.Warn("the agent did not take everything", "error", err)
		return nil
	}
	return err
}
