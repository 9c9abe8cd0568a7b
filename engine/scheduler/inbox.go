package scheduler

import (
	"fmt"
	"math"
	"slices"
	"time"

	"sonde/ring2"
)

// inbox is what other goroutines ask of the scheduler. It is taken in between
// two steps.
type inbox struct {
	requests  []*request
	aborts    []abort
	withdrawn []*Ticket
}

// abort is a command to end a request or one of its samples.
type abort struct {
	id     string // external id, when ring is nil
	sample int    // -1: all
	ring   *ring2.Abort
	answer chan<- aborted
}

type aborted struct {
	outcome ring2.AbortOutcome
	length  int
}

// Submit queues a request. Its errors wrap ErrInvalid, ErrDuplicate, ErrBusy or
// ErrStopping.
func (s *Scheduler) Submit(r Request) (*Ticket, error) {
	if err := s.check(&r); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping:
		return nil, ErrStopping
	case s.ids[r.ID]:
		return nil, fmt.Errorf("%w: %q; wait for its end or choose another request_id", ErrDuplicate, r.ID)
	case s.open+r.Samples > s.o.MaxOpen:
		return nil, fmt.Errorf("%w: %d sequences are open, at most %d; try again later", ErrBusy, s.open, s.o.MaxOpen)
	}
	s.arrivals++
	q := &request{Request: r, arrival: s.arrivals, open: r.Samples}
	q.ticket = newTicket(fmt.Sprintf("%016x%016x", s.o.Epoch, s.arrivals), time.Now(), q)
	for sample := range r.Samples {
		s.numbers++
		q.samples = append(q.samples, newSequence(q, sample, s.numbers, s.o.Tokenizer))
	}
	s.ids[r.ID] = true
	s.open += r.Samples
	s.inbox.requests = append(s.inbox.requests, q)
	s.signal()
	return q.ticket, nil
}

func (s *Scheduler) check(r *Request) error {
	vocab := int32(s.o.Model.Info().Vocab)
	bad := slices.IndexFunc(r.Prompt, func(id int32) bool { return id < 0 || id >= vocab })
	switch {
	case len(r.Prompt) == 0:
		return fmt.Errorf("%w: the prompt has no tokens", ErrInvalid)
	case len(r.Prompt) >= s.context:
		return fmt.Errorf("%w: the prompt has %d tokens; at most %d fit", ErrInvalid, len(r.Prompt), s.context-1)
	case bad >= 0:
		return fmt.Errorf("%w: token %d of the prompt is %d; the vocabulary has %d", ErrInvalid, bad, r.Prompt[bad], vocab)
	case r.Samples < 1 || r.Samples > s.o.MaxBatch:
		return fmt.Errorf("%w: n is %d; want 1 to %d", ErrInvalid, r.Samples, s.o.MaxBatch)
	case r.MaxTokens < 1:
		return fmt.Errorf("%w: max_tokens is %d; want at least 1", ErrInvalid, r.MaxTokens)
	case !(r.Sampling.Temperature >= 0 && r.Sampling.Temperature <= math.MaxFloat32):
		return fmt.Errorf("%w: temperature is %v; want 0 or more", ErrInvalid, r.Sampling.Temperature)
	case !(r.Sampling.TopP > 0 && r.Sampling.TopP <= 1):
		return fmt.Errorf("%w: top_p is %v; want more than 0, at most 1", ErrInvalid, r.Sampling.TopP)
	case slices.Contains(r.Stop, ""):
		return fmt.Errorf("%w: a stop string is empty", ErrInvalid)
	}
	return nil
}

func (s *Scheduler) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Abort ends a request, or one sample of it (sample -1: all), between two steps.
// It returns what became of it and its final length in tokens, of several
// samples the longest.
func (s *Scheduler) Abort(id string, sample int) (ring2.AbortOutcome, int) {
	return s.ask(abort{id: id, sample: sample})
}

// Withdraw ends the request of a ticket, if it has not ended: its client is gone.
func (s *Scheduler) Withdraw(t *Ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.inbox.withdrawn = append(s.inbox.withdrawn, t)
		s.signal()
	}
}

// AbortSequence ends the sequence that an abort from the ring names. It ends
// nothing when the epoch, the number, the engine id and the sample do not all
// belong together, when the position was not computed yet, or after its expiry.
// So an abort that is delivered twice or late cannot stop another request.
func (s *Scheduler) AbortSequence(a ring2.Abort) (ring2.AbortOutcome, int) {
	return s.ask(abort{ring: &a})
}

func (s *Scheduler) ask(a abort) (ring2.AbortOutcome, int) {
	answer := make(chan aborted, 1)
	a.answer = answer
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return ring2.AbortUnknown, 0
	}
	s.inbox.aborts = append(s.inbox.aborts, a)
	s.signal()
	s.mu.Unlock()
	got := <-answer
	return got.outcome, got.length
}

// receive takes in what came since the last step.
func (s *Scheduler) receive() {
	s.mu.Lock()
	in := s.inbox
	s.inbox = inbox{}
	s.mu.Unlock()
	for _, r := range in.requests {
		s.admit(r)
	}
	for _, a := range in.aborts {
		out := s.abort(&a)
		s.metrics.aborts.WithLabelValues(out.outcome.String()).Inc()
		a.answer <- out
	}
	for _, t := range in.withdrawn {
		s.endRequest(t.request, ring2.FinishDisconnect)
	}
}

// admit opens the sequences of a request and queues the one that computes the
// prompt.
func (s *Scheduler) admit(r *request) {
	s.byID[r.ID] = r
	r.unforked = slices.Clone(r.samples[1:])
	s.wait(r.samples[0])
	if r.Samples > 1 {
		s.metrics.samples.Add(float64(r.Samples))
	}
	for _, q := range r.samples {
		s.byNumber[q.number] = q
		err := s.o.Recorder.Open(ring2.RequestOpen{Number: q.number, ExternalID: r.ID, EngineID: r.ticket.EngineID,
			Sample: uint32(q.sample), Tenant: r.Tenant, Adapter: r.Adapter, TraceParent: r.TraceParent, OptIn: r.OptIn,
			PromptTokens: uint32(len(r.Prompt)), MaxTokens: uint32(r.MaxTokens),
			OpenWallNS: uint64(r.ticket.Created.UnixNano()), Labels: r.Labels})
		if err != nil { // What the ring was never told about must not be computed.
			s.note(err)
			s.endRequest(r, ring2.FinishError)
			return
		}
		q.opened = true
	}
}

func (s *Scheduler) abort(a *abort) aborted {
	if a.ring != nil {
		return s.abortNumber(a.ring)
	}
	r := s.byID[a.id]
	switch {
	case r == nil:
		return s.past.request(a.id)
	case a.sample < 0:
		s.endRequest(r, ring2.FinishAbort)
		return aborted{ring2.AbortStopped, r.longest}
	case a.sample >= len(r.samples):
		return aborted{}
	}
	return s.abortSample(r.samples[a.sample], ring2.FinishAbort)
}

func (s *Scheduler) abortNumber(a *ring2.Abort) aborted {
	if a.Epoch != s.o.Epoch || uint64(time.Now().UnixNano()) >= a.ExpiresWallNS {
		return aborted{}
	}
	q := s.byNumber[a.Number]
	if q == nil {
		return s.past.sequence(a)
	}
	if q.request.ticket.EngineID != a.EngineID || q.sample != int(a.Sample) || int(a.Position) >= len(q.tokens) {
		return aborted{}
	}
	return s.abortSample(q, ring2.FinishDetector)
}

func (s *Scheduler) abortSample(q *sequence, reason ring2.Finish) aborted {
	if q.state == ended {
		return aborted{ring2.AbortFinished, q.length}
	}
	s.end(q, reason, q.generated(), Event{Token: -1, Text: q.text.rest()})
	return aborted{ring2.AbortStopped, q.length}
}
