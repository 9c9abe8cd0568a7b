package scheduler

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"sonde/ring2"
)

// Request is one prompt to complete, n times.
type Request struct {
	ID          string // external id, unique among open requests
	Tenant      string
	Adapter     string // recorded, and a prefix cache of its own; the models here have no adapters
	TraceParent string
	Labels      []ring2.Label
	OptIn       bool
	Prompt      []int32
	Samples     int
	MaxTokens   int // generated ones of a sample; less when the context ends before
	Stop        []string
	Sampling    Sampling
}

// Errors of Submit, wrapped.
var (
	ErrInvalid   = errors.New("invalid request")
	ErrDuplicate = errors.New("a request of this id is open")
	ErrBusy      = errors.New("too many open requests")
	ErrStopping  = errors.New("the engine is stopping")
)

// Event is what happened to one sample: a token, its end, or both.
type Event struct {
	Sample    int
	Token     int32  // -1: the end came without a token
	Text      string // that became final, perhaps ""
	Done      bool   // the last event of the sample
	Reason    ring2.Finish
	Generated int // tokens generated so far, at the end those that were kept
}

// Ticket is the caller's end of a submitted request.
type Ticket struct {
	EngineID string // of the request, unique for ever, 32 hex digits
	Created  time.Time
	request  *request // the scheduler's business

	mu     sync.Mutex
	events []Event // at most the request's tokens and ends
	open   int     // samples whose end was not queued yet
	notify chan struct{}
}

func newTicket(engineID string, created time.Time, r *request) *Ticket {
	return &Ticket{EngineID: engineID, Created: created, request: r, open: r.Samples, notify: make(chan struct{}, 1)}
}

func (t *Ticket) push(e Event) {
	t.mu.Lock()
	t.events = append(t.events, e)
	if e.Done {
		t.open--
	}
	t.mu.Unlock()
	select {
	case t.notify <- struct{}{}:
	default:
	}
}

// Next waits for events and returns all there are. After the end of the last
// sample it returns io.EOF.
func (t *Ticket) Next(ctx context.Context) ([]Event, error) {
	for {
		t.mu.Lock()
		events, open := t.events, t.open
		t.events = nil
		t.mu.Unlock()
		if len(events) > 0 {
			return events, nil
		}
		if open == 0 {
			return nil, io.EOF
		}
		select {
		case <-t.notify:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
