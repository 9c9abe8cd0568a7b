package scheduler

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"sonde/engine/model"
	"sonde/ring2"
)

func simple(id string) Request {
	return Request{ID: id, Prompt: []int32{1, 2, 3}, Samples: 1, MaxTokens: 5, Sampling: Sampling{Temperature: 1, TopP: 1}}
}

// A request that can never be served would wait for ever, or break the model.
func TestRequestsThatCannotBeServedAreRefused(t *testing.T) {
	g := newRig(t, newTiny(), func(o *Options) { o.Blocks, o.MaxOpen, o.MaxBatch = 10, 4, 3 })
	for name, change := range map[string]func(*Request){
		"no prompt":            func(r *Request) { r.Prompt = nil },
		"prompt fills the KV":  func(r *Request) { r.Prompt = make([]int32, 40) },
		"token below":          func(r *Request) { r.Prompt[1] = -1 },
		"token above":          func(r *Request) { r.Prompt[1] = 11 },
		"no sample":            func(r *Request) { r.Samples = 0 },
		"samples over a batch": func(r *Request) { r.Samples = 4 },
		"no tokens":            func(r *Request) { r.MaxTokens = 0 },
		"cold":                 func(r *Request) { r.Sampling.Temperature = -1 },
		"NaN":                  func(r *Request) { r.Sampling.Temperature = math.NaN() },
		"infinitely hot":       func(r *Request) { r.Sampling.Temperature = math.Inf(1) },
		"top_p 0":              func(r *Request) { r.Sampling.TopP = 0 },
		"top_p 2":              func(r *Request) { r.Sampling.TopP = 2 },
		"empty stop":           func(r *Request) { r.Stop = []string{"x", ""} },
	} {
		r := simple("r")
		change(&r)
		if _, err := g.Submit(r); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	submit(t, g.Scheduler, simple("a"))
	if _, err := g.Submit(simple("a")); !errors.Is(err, ErrDuplicate) {
		t.Errorf("open id: %v", err)
	}
	r := simple("b")
	r.Samples = 3
	ticket := submit(t, g.Scheduler, r)
	if _, err := g.Submit(simple("c")); !errors.Is(err, ErrBusy) {
		t.Errorf("full queue: %v", err)
	}
	g.start()
	collect(t, ticket, 3)
	again := submit(t, g.Scheduler, simple("b")) // Its first use has ended.
	collect(t, again, 1)
	g.finish(t)
	if _, err := g.Submit(simple("d")); !errors.Is(err, ErrStopping) {
		t.Errorf("after the end: %v", err)
	}
	if again.EngineID == ticket.EngineID || len(again.EngineID) != 32 {
		t.Errorf("engine ids %q and %q", ticket.EngineID, again.EngineID)
	}
}

// The longest sequence that fits must be computed to its end, alone in the blocks.
func TestSequenceMayFillAllBlocks(t *testing.T) {
	g := newRig(t, newArithmetic(), func(o *Options) { o.Blocks, o.PrefillChunk = 10, 3 }).start()
	r := simple("r")
	r.MaxTokens, r.Samples = 1000, 3
	for _, x := range collect(t, submit(t, g.Scheduler, r), 3) {
		if x.reason != ring2.FinishStop && (x.reason != ring2.FinishLength || x.generated != 37) {
			t.Errorf("ended by %v after %d tokens", x.reason, x.generated)
		}
	}
	g.finish(t)
	if g.counted("sonde_engine_preemptions_total") == 0 {
		t.Error("three sequences that fill all blocks did not preempt each other")
	}
}

// A late, repeated or forged abort must not hit another sequence.
func TestAbortFromTheRingMustMatchInEverything(t *testing.T) {
	g := newRig(t, newArithmetic(), func(o *Options) { o.StepDelay = 2 * time.Millisecond }).start()
	r := simple("r")
	r.Samples, r.MaxTokens = 2, 80
	ticket := submit(t, g.Scheduler, r)
	if _, err := ticket.Next(context.Background()); err != nil {
		t.Fatal(err)
	}
	good := ring2.Abort{Epoch: 0xabc, Number: 2, Sample: 1, EngineID: ticket.EngineID, Position: 3,
		ExpiresWallNS: uint64(time.Now().Add(time.Minute).UnixNano())}
	for name, change := range map[string]func(*ring2.Abort){
		"epoch":     func(a *ring2.Abort) { a.Epoch++ },
		"number":    func(a *ring2.Abort) { a.Number = 99 },
		"sibling":   func(a *ring2.Abort) { a.Number = 1 },
		"sample":    func(a *ring2.Abort) { a.Sample = 0 },
		"engine id": func(a *ring2.Abort) { a.EngineID = strings.Repeat("0", 32) },
		"prefix":    func(a *ring2.Abort) { a.EngineID = a.EngineID[:31] },
		"future":    func(a *ring2.Abort) { a.Position = 2000 },
		"expired":   func(a *ring2.Abort) { a.ExpiresWallNS = uint64(time.Now().UnixNano()) },
	} {
		bad := good
		change(&bad)
		if outcome, _ := g.AbortSequence(bad); outcome != ring2.AbortUnknown {
			t.Errorf("wrong %s: %v", name, outcome)
		}
	}
	outcome, length := g.AbortSequence(good)
	if outcome != ring2.AbortStopped || length < 4 {
		t.Fatalf("%v at %d", outcome, length)
	}
	if again, same := g.AbortSequence(good); again != ring2.AbortFinished || same != length {
		t.Errorf("delivered twice: %v at %d, not %d", again, same, length)
	}
	forged := good
	forged.EngineID = strings.Repeat("0", 32)
	if outcome, _ := g.AbortSequence(forged); outcome != ring2.AbortUnknown {
		t.Errorf("forged after the end: %v", outcome)
	}
	got := collect(t, ticket, 2)
	if got[1].reason != ring2.FinishDetector || got[0].reason == ring2.FinishDetector {
		t.Errorf("ended by %v and %v", got[0].reason, got[1].reason)
	}
	next := submit(t, g.Scheduler, r) // The same external id, another sequence.
	if again, _ := g.AbortSequence(good); again != ring2.AbortFinished {
		t.Errorf("delivered to a later request: %v", again)
	}
	for _, x := range collect(t, next, 2) {
		if x.reason == ring2.FinishDetector {
			t.Error("a later request was stopped by an old abort")
		}
	}
	g.finish(t)
	if outcome, _ := g.AbortSequence(good); outcome != ring2.AbortUnknown {
		t.Errorf("after the end of the engine: %v", outcome)
	}
}

func TestAbortByIDSaysWhatBecameOfIt(t *testing.T) {
	g := newRig(t, newArithmetic(), nil).start()
	if outcome, _ := g.Abort("r", -1); outcome != ring2.AbortUnknown {
		t.Errorf("before: %v", outcome)
	}
	r := simple("r")
	got := collect(t, submit(t, g.Scheduler, r), 1)
	if outcome, length := g.Abort("r", -1); outcome != ring2.AbortFinished || length != 3+got[0].generated {
		t.Errorf("after its end: %v at %d", outcome, length)
	}
	if outcome, _ := g.Abort("r", 7); outcome != ring2.AbortFinished {
		t.Errorf("after its end, one sample: %v", outcome)
	}
	g.finish(t)
}

// A client that is gone must not keep the engine busy, nor end the request that
// took over its id.
func TestWithdrawnTicketEndsItsOwnRequestOnly(t *testing.T) {
	g := newRig(t, newArithmetic(), func(o *Options) { o.StepDelay = time.Millisecond }).start()
	r := simple("r")
	r.MaxTokens, r.Samples = 90, 3
	first := submit(t, g.Scheduler, r)
	g.Withdraw(first)
	for _, x := range collect(t, first, 3) {
		if x.reason != ring2.FinishDisconnect {
			t.Errorf("ended by %v", x.reason)
		}
	}
	second := submit(t, g.Scheduler, r)
	g.Withdraw(first)
	for _, x := range collect(t, second, 3) {
		if x.reason == ring2.FinishDisconnect {
			t.Error("another request was ended")
		}
	}
	g.finish(t)
}

// An engine that stops must end what is open, in the ring too.
func TestStopEndsWhatIsOpen(t *testing.T) {
	for _, drain := range []time.Duration{0, time.Minute} {
		g := newRig(t, newArithmetic(), func(o *Options) {
			o.StepDelay, o.DrainLimit, o.MaxBatch = time.Millisecond, drain, 2
		})
		var tickets []*Ticket
		for i := range 6 {
			r := simple(fmt.Sprint(i))
			r.MaxTokens, r.Samples = 30, 2
			tickets = append(tickets, submit(t, g.Scheduler, r))
		}
		g.start()
		if _, err := tickets[0].Next(context.Background()); err != nil {
			t.Fatal(err)
		}
		g.finish(t)
		aborted := 0
		for _, ticket := range tickets {
			for _, x := range collect(t, ticket, 2) {
				if x.reason == ring2.FinishAbort {
					aborted++
				}
			}
		}
		if drain == 0 && aborted == 0 || drain > 0 && aborted > 0 {
			t.Errorf("drain %v: %d samples were aborted", drain, aborted)
		}
		g.Withdraw(tickets[0])
	}
}

// What the ring was not told about must not be computed, or nobody could say
// whose rows those are.
func TestSequenceThatTheRingRefusesEndsWithAnError(t *testing.T) {
	g := newRig(t, newArithmetic(), nil)
	g.rec.openErr = func(o ring2.RequestOpen) error {
		if o.ExternalID == "bad" && o.Sample == 1 {
			return errors.New("full")
		}
		return nil
	}
	g.start()
	bad := simple("bad")
	bad.Samples = 3
	for _, x := range collect(t, submit(t, g.Scheduler, bad), 3) {
		if x.reason != ring2.FinishError || x.generated != 0 {
			t.Errorf("ended by %v after %d tokens", x.reason, x.generated)
		}
	}
	if x := collect(t, submit(t, g.Scheduler, simple("good")), 1); x[0].reason == ring2.FinishError {
		t.Error("another request ended with an error")
	}
	g.finish(t)
}

func TestStepThatFailsEndsEverything(t *testing.T) {
	g := newRig(t, newArithmetic(), nil)
	g.rec.stepErr = errors.New("out of order")
	ticket := submit(t, g.Scheduler, simple("r"))
	g.start()
	if err := <-g.done; err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("Run returned %v", err)
	}
	if x := collect(t, ticket, 1); x[0].reason != ring2.FinishError {
		t.Errorf("ended by %v", x[0].reason)
	}
	if len(g.rec.ends) != 1 {
		t.Errorf("the ring heard of %d ends", len(g.rec.ends))
	}
}

// blind gives logits that cannot be sampled.
type blind struct{ model.Model }

func (b blind) Forward(ranges []model.Range, _ model.Tap) error {
	for i := range ranges {
		for j := range ranges[i].Logits {
			ranges[i].Logits[j] = nan
		}
	}
	return nil
}

func TestLogitsWithoutANumberEndTheSequence(t *testing.T) {
	g := newRig(t, blind{newTiny()}, nil).start()
	if x := collect(t, submit(t, g.Scheduler, simple("r")), 1); x[0].reason != ring2.FinishError {
		t.Errorf("ended by %v", x[0].reason)
	}
	g.finish(t)
}
