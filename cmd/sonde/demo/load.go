package demo

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Of the requests, a few short ones go first: they measure how fast the engine
// steps, from which the length of all others follows.
const (
	scouts      = 8
	scoutTokens = 24
	// minTokens keeps the demo worth looking at on a very slow machine.
	minTokens = 24
)

// load sends requests and counts what comes back.
type load struct {
	client   *client
	tokens   atomic.Int64 // pieces of text so far
	answered atomic.Int64 // requests
	stopped  atomic.Int64 // requests that ended before their length, by the detector
	limit    int          // the context length of the model, less room for a prompt
}

// run sends every request: the scouts, then all others at once, for about the
// given time. show is called now and then.
func (l *load) run(ctx context.Context, requests []request, target time.Duration, show func()) ([]answer, error) {
	ahead := min(scouts, len(requests)/2)
	for i := range requests[:ahead] {
		requests[i].MaxTokens = scoutTokens
	}
	began := time.Now()
	answers, err := l.send(ctx, requests[:ahead])
	if err != nil {
		return nil, err
	}
	took := time.Since(began)
	rest := requests[ahead:]
	each := lengthFor(float64(scoutTokens)/took.Seconds(), target-took, l.limit, len(rest))
	for i := range rest {
		rest[i].MaxTokens = each
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				show()
			}
		}
	})
	more, err := l.send(ctx, rest)
	close(done)
	wg.Wait()
	return append(answers, more...), err
}

// lengthFor is the number of tokens per request that fills the time: a sequence
// gets one token a step, whatever else is in the step, and maxBatch sequences run
// at once. A third of the requests is stopped early.
func lengthFor(stepsPerS float64, target time.Duration, limit, requests int) int {
	const fullerSteps = 0.85 // as fast as those of the few scouts
	waves := max(1, float64(requests)*2/3/maxBatch)
	return min(max(int(stepsPerS*fullerSteps*target.Seconds()/waves), minTokens), limit)
}

// send sends requests all at once and waits for every answer. The first error
// cancels the others.
func (l *load) send(ctx context.Context, requests []request) ([]answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answers := make([]answer, len(requests))
	var wg sync.WaitGroup
	for i, r := range requests {
		wg.Go(func() {
			got, err := l.client.complete(ctx, r, func() { l.tokens.Add(1) })
			if err != nil {
				cancel(err)
				return
			}
			l.answered.Add(1)
			if got.Reason != "length" && got.Reason != "stop" {
				l.stopped.Add(1)
			}
			answers[i] = got
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("send the demo's requests: %w", err)
	}
	return answers, nil
}

// sampler measures rates once a second until it is stopped.
type sampler struct {
	stop context.CancelFunc
	done chan struct{}
	out  []rate
}

func startSampler(ctx context.Context, tokens, rows func() float64) *sampler {
	ctx, cancel := context.WithCancel(ctx)
	s := &sampler{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		began, last := time.Now(), time.Now()
		oldTokens, oldRows := tokens(), rows()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				t, r, dt := tokens(), rows(), now.Sub(last).Seconds()
				s.out = append(s.out, rate{now.Sub(began).Seconds(), (t - oldTokens) / dt, (r - oldRows) / dt})
				oldTokens, oldRows, last = t, r, now
			}
		}
	}()
	return s
}

// rates stops the sampler and returns what it measured.
func (s *sampler) rates() []rate {
	s.stop()
	<-s.done
	return s.out
}
