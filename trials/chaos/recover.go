package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// probeEvery is how often an engine gets a new probe until one of them is in the
// dataset: one may be lost with the fault that it came too early after.
const probeEvery = 1500 * time.Millisecond

// recovered waits until a request that was sent to each engine after the call has ended
// in the dataset, which takes every part of the pipeline and every partition. It returns
// how long that took since the fault ended.
func (w *world) recovered(ctx context.Context, ended time.Time, limit time.Duration) (time.Duration, error) {
	waiting := map[int][]string{} // probes by engine
	sent := map[int]time.Time{}
	for i := range w.engines {
		waiting[i] = nil
	}
	for {
		for i, probes := range waiting {
			for _, id := range probes {
				if w.watch.has(id) {
					delete(waiting, i)
				}
			}
		}
		if err := w.died(); err != nil {
			return 0, err
		}
		switch {
		case len(waiting) == 0:
			return time.Since(ended), nil
		case time.Since(ended) > limit:
			return 0, w.stuck(limit, waiting)
		}
		for i := range waiting {
			if time.Since(sent[i]) >= probeEvery {
				sent[i] = time.Now()
				id := fmt.Sprintf("f%04d-probe-%d", w.current.Load(), w.probes.Add(1))
				waiting[i] = append(waiting[i], id)
				w.load.Go(func() { probe(ctx, w.engines[i].url, id) })
			}
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return 0, err
		}
	}
}

// probe sends a short request. What becomes of it is seen in the dataset.
func probe(ctx context.Context, url, id string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	body := fmt.Sprintf(`{"prompt": [1, 2, 3], "max_tokens": 2, "sonde": {"request_id": %q}}`, id)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions", bytes.NewReader([]byte(body)))
	if err != nil {
		return
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // The dataset has the answer.
	resp.Body.Close()
}

// stuck says of which engines no new row arrived, and what the parts last said.
func (w *world) stuck(limit time.Duration, waiting map[int][]string) error {
	var errs []error
	for i, probes := range waiting {
		errs = append(errs, fmt.Errorf("after %v no row of %s that was computed since is in the dataset (%d requests sent)",
			limit, w.engines[i].Name, len(probes)))
	}
	for _, p := range w.all() {
		errs = append(errs, fmt.Errorf("%s last said: %s", p.Name, p.Tail()))
	}
	if err := w.watch.trouble(); err != nil {
		errs = append(errs, fmt.Errorf("the dataset cannot be read: %w", err))
	}
	return errors.Join(errs...)
}
