package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Load sends completion requests to an engine for as long as its context
// lives: shared prefixes, long prompts, several samples, aborts. An engine that
// is dead is simply tried again; what happened to each request is the ledger's
// business, not the client's.
type Load struct {
	Rand        *rand.Rand
	Clients     int
	Prefixes    int // distinct shared prompt prefixes
	PrefixMax   int // tokens of a shared prefix
	SuffixMax   int // tokens of a private suffix
	MaxTokens   int
	SampleMax   int
	AbortOneIn  int // one request in so many is aborted by its client
	Vocab       int
	RequestsMax int64 // stop after so many requests; 0 means no limit
	// Name begins the id of a request that is sent now; nil is "req-".
	Name func() string

	mu        sync.Mutex
	sent      atomic.Int64
	finished  atomic.Int64
	abandoned atomic.Int64
	aborts    atomic.Int64
}

// Counts says how many requests were sent, finished, abandoned since the engine
// was away, and aborted on purpose.
type Counts struct{ Sent, Finished, Abandoned, Aborts int64 }

// Counts returns what was sent so far.
func (l *Load) Counts() Counts {
	return Counts{l.sent.Load(), l.finished.Load(), l.abandoned.Load(), l.aborts.Load()}
}

type completion struct {
	Prompt    []int32        `json:"prompt"`
	MaxTokens int            `json:"max_tokens"`
	N         int            `json:"n"`
	Sonde     map[string]any `json:"sonde"`
}

// Run sends requests to the engine whose address base() returns, which may
// change when the engine restarts, until ctx ends or RequestsMax were sent.
func (l *Load) Run(ctx context.Context, base func() string) {
	var wg sync.WaitGroup
	for range l.Clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				n := l.sent.Add(1)
				if l.RequestsMax > 0 && n > l.RequestsMax {
					l.sent.Add(-1)
					return
				}
				l.one(ctx, base(), n)
			}
		})
	}
	wg.Wait()
}

func (l *Load) one(ctx context.Context, base string, n int64) {
	body, id, abort := l.request(n)
	done := make(chan error, 1)
	go func() { done <- post(ctx, base+"/v1/completions", body) }()
	if abort > 0 {
		select {
		case <-time.After(abort):
			payload, _ := json.Marshal(map[string]string{"request_id": id})
			if post(ctx, base+"/v1/abort", payload) == nil {
				l.aborts.Add(1)
			}
		case err := <-done:
			l.settle(ctx, err)
			return
		}
	}
	l.settle(ctx, <-done)
}

func (l *Load) settle(ctx context.Context, err error) {
	if err == nil {
		l.finished.Add(1)
		return
	}
	l.abandoned.Add(1)
	select { // The engine is away or busy: do not spin.
	case <-ctx.Done():
	case <-time.After(50 * time.Millisecond):
	}
}

func (l *Load) request(n int64) (body []byte, id string, abort time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.Rand
	prefix := r.IntN(l.Prefixes)
	prompt := make([]int32, 0, l.PrefixMax+l.SuffixMax)
	for i := range l.PrefixMax * (prefix + 1) / l.Prefixes {
		prompt = append(prompt, int32((prefix*7919+i*31)%l.Vocab))
	}
	for range 1 + r.IntN(l.SuffixMax) {
		prompt = append(prompt, int32(r.IntN(l.Vocab)))
	}
	name := "req-"
	if l.Name != nil {
		name = l.Name()
	}
	id = fmt.Sprintf("%s%06d-%08x", name, n, r.Uint32())
	c := completion{Prompt: prompt, MaxTokens: 1 + r.IntN(l.MaxTokens), N: 1 + r.IntN(l.SampleMax),
		Sonde: map[string]any{"request_id": id, "labels": map[string]string{"load": "trial"}}}
	if l.AbortOneIn > 0 && r.IntN(l.AbortOneIn) == 0 {
		abort = time.Duration(5+r.IntN(60)) * time.Millisecond
	}
	body, err := json.Marshal(c)
	if err != nil {
		panic("BUG: a request does not encode: " + err.Error())
	}
	return body, id, abort
}

func post(ctx context.Context, url string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s: %.200s", url, resp.Status, text)
	}
	return nil
}
