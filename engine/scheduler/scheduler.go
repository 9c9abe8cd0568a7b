package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/engine/model"
	"sonde/ring2"
)

// Recorder computes steps and is told what they mean.
type Recorder interface {
	Open(ring2.RequestOpen) error
	// Step computes ranges with the model, which fills their Logits; phases has
	// one element per range. It returns the step's number.
	Step(ranges []model.Range, phases []ring2.Phase) (step uint64, err error)
	Amend(ring2.Amend) error
	End(ring2.RequestEnd) error
}

// Options of a scheduler.
type Options struct {
	Model        model.Model // Allocate is called by New
	Tokenizer    model.Tokenizer
	Recorder     Recorder
	Epoch        uint64 // makes engine ids unique for ever
	Blocks       int    // of KV storage
	BlockTokens  int
	PrefillChunk int // most prompt and recomputed tokens in a step
	MaxBatch     int // most sequences in a step, and most samples of a request
	MaxOpen      int // most open sequences, queued ones included
	PrefixCache  bool
	StepDelay    time.Duration  // pause after each step
	DrainLimit   time.Duration  // how long open requests may finish once Run's context has ended
	OnStep       func(StepInfo) // nil: none; called on the scheduler's goroutine
	Registerer   prometheus.Registerer
	Logger       *slog.Logger
}

// StepInfo describes a step that was computed.
type StepInfo struct {
	Start             time.Time
	Duration          time.Duration // without the delay
	Tokens, Sequences int
}

// Scheduler runs requests. Submit and the aborts may come from any goroutine;
// one goroutine is in Run.
type Scheduler struct {
	o        Options
	context  int // longest sequence in tokens
	pool     *pool
	running  []*sequence // in order of priority, like waiting
	waiting  []*sequence
	byID     map[string]*request
	byNumber map[uint64]*sequence
	past     past
	sampler  sampler
	plan     plan
	metrics  metrics

	mu       sync.Mutex // guards what follows; a leaf
	inbox    inbox
	ids      map[string]bool // open requests, those in the inbox included
	open     int             // their sequences that have not ended
	arrivals uint64
	numbers  uint64
	stopping bool
	stopped  bool
	wake     chan struct{}
}

// New makes a scheduler and the model's KV storage.
func New(o Options) (*Scheduler, error) {
	switch {
	case o.Blocks < 1 || o.BlockTokens < 1:
		return nil, fmt.Errorf("make scheduler: %d KV blocks of %d tokens; want at least 1 of 1", o.Blocks, o.BlockTokens)
	case o.PrefillChunk < 1 || o.MaxBatch < 1 || o.MaxBatch > ring2.MaxStepRanges:
		return nil, fmt.Errorf("make scheduler: prefill chunk %d, batch %d; want at least 1, and at most %d sequences",
			o.PrefillChunk, o.MaxBatch, ring2.MaxStepRanges)
	case o.MaxOpen < 1:
		return nil, fmt.Errorf("make scheduler: %d open sequences; want at least 1", o.MaxOpen)
	}
	if err := o.Model.Allocate(o.Blocks, o.BlockTokens); err != nil {
		return nil, fmt.Errorf("make scheduler: %w", err)
	}
	return &Scheduler{o: o, context: min(o.Model.Info().Context, o.Blocks*o.BlockTokens), pool: newPool(o.Blocks),
		byID: map[string]*request{}, byNumber: map[uint64]*sequence{}, past: newPast(), metrics: newMetrics(o.Registerer),
		ids: map[string]bool{}, wake: make(chan struct{}, 1)}, nil
}

// Context is the longest sequence in tokens: the model's limit, or what the KV
// blocks hold.
func (s *Scheduler) Context() int { return s.context }

// Stopping says whether new requests are refused since the engine is about to
// end.
func (s *Scheduler) Stopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// Run computes until ctx ends and, after that, until the open requests have
// finished or DrainLimit has passed; those that are left end as aborted. It
// returns an error only when the recorder fails.
func (s *Scheduler) Run(ctx context.Context) error {
	stopping := ctx.Done()
	var limit <-chan struct{}
	for {
		s.receive()
		if err := s.step(); err != nil {
			s.stop(ring2.FinishError)
			return err
		}
		select {
		case <-stopping:
			drain, cancel := context.WithTimeout(context.Background(), s.o.DrainLimit)
			defer cancel()
			stopping, limit = nil, drain.Done()
			s.refuse()
		case <-limit:
			s.stop(ring2.FinishAbort)
			return nil
		default:
		}
		switch {
		case len(s.running)+len(s.waiting) > 0:
			pause(s.o.StepDelay, stopping, limit)
		case stopping == nil:
			s.stop(ring2.FinishAbort)
			return nil
		default:
			select {
			case <-s.wake:
			case <-stopping:
			}
		}
	}
}

// pause waits for a while, or until either channel is closed.
func pause(d time.Duration, a, b <-chan struct{}) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-a:
	case <-b:
	}
}

func (s *Scheduler) refuse() {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
}

// stop ends every open request and answers every command that will ever come.
func (s *Scheduler) stop(reason ring2.Finish) {
	s.refuse()
	s.receive()
	for _, r := range s.byID {
		s.endRequest(r, reason)
	}
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.receive()
}

// endRequest ends all samples of a request.
func (s *Scheduler) endRequest(r *request, reason ring2.Finish) {
	for _, q := range r.samples {
		if q.state != ended {
			s.end(q, reason, q.generated(), Event{Token: -1, Text: q.text.rest()})
		}
	}
}

// end ends a sequence of which the first kept generated tokens count. e is its
// last event, to be completed.
func (s *Scheduler) end(q *sequence, reason ring2.Finish, kept int, e Event) {
	s.leave(q)
	r := q.request
	if kept < q.generated() {
		s.disown(q, len(r.Prompt)+kept)
	}
	q.length = len(r.Prompt) + kept
	if q.opened {
		s.note(s.o.Recorder.End(ring2.RequestEnd{Number: q.number, PromptTokens: uint32(len(r.Prompt)),
			GeneratedTokens: uint32(kept), CachedTokens: uint32(q.cached()), Passes: uint32(q.passCount()),
			Reason: reason, EndWallNS: uint64(time.Now().UnixNano())}))
	}
	q.state = ended
	s.metrics.requests.WithLabelValues(reason.String()).Inc()
	s.past.addSequence(q.number, endedSequence{r.ticket.EngineID, uint32(q.sample), q.length})
	delete(s.byNumber, q.number)
	r.open--
	r.longest = max(r.longest, q.length)
	if r.open == 0 {
		delete(s.byID, r.ID)
		s.past.addRequest(r.ID, r.longest)
	}
	s.mu.Lock()
	s.open--
	if r.open == 0 {
		delete(s.ids, r.ID)
	}
	s.mu.Unlock()
	e.Sample, e.Done, e.Reason, e.Generated = q.sample, true, reason, kept
	r.ticket.push(e)
}

// leave takes a sequence out of wherever it stands and gives its blocks back.
func (s *Scheduler) leave(q *sequence) {
	is := func(o *sequence) bool { return o == q }
	r := q.request
	leads := q.leads()
	s.running = slices.DeleteFunc(s.running, is)
	s.waiting = slices.DeleteFunc(s.waiting, is)
	r.unforked = slices.DeleteFunc(r.unforked, is)
	s.releaseBlocks(q)
	if leads { // Another sample has to compute the prompt.
		next := r.unforked[0]
		r.unforked = r.unforked[1:]
		s.wait(next)
	}
}

// releaseBlocks gives the blocks back, the last first: of a prefix, the end is
// worth less than the start.
func (s *Scheduler) releaseBlocks(q *sequence) {
	for _, b := range slices.Backward(q.blocks) {
		s.pool.release(b)
	}
	q.blocks, q.computed = nil, 0
}

func (s *Scheduler) wait(q *sequence) {
	q.state = waiting
	s.waiting = insert(s.waiting, q)
}

func insert(list []*sequence, q *sequence) []*sequence {
	at, _ := slices.BinarySearchFunc(list, q, (*sequence).before)
	return slices.Insert(list, at, q)
}

// disown tells the recorder that positions from end on were computed after the
// end of the sequence.
func (s *Scheduler) disown(q *sequence, end int) {
	for _, h := range q.history {
		first := max(h.position, end)
		if first >= h.position+h.count {
			continue
		}
		s.note(s.o.Recorder.Amend(ring2.Amend{Step: h.step, Ranges: []ring2.AmendRange{{Number: q.number,
			Position: uint32(first), Count: uint32(h.position + h.count - first), Pass: uint32(h.pass),
			Verdict: ring2.VerdictPhantom}}}))
	}
}

// note logs that the recorder could not take a record; it counts those itself.
func (s *Scheduler) note(err error) {
	if err != nil {
		s.o.Logger.Warn("the ring did not take a record", "error", err)
	}
}
