package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"sonde/trials/fleet"
)

const verdictConfig = `bus:
  embedded: {store_dir: %[1]s/bus, listen: "", sync: always, max_bytes: 4GiB, retain_bytes: 16MiB}
agent:
  socket: %[2]s
  wait: event
  dead_letter: {dir: %[1]s/dead-letter/agent}
policy:
  rules:
    - {name: residual stream, hooks: [resid_post, token_ids]}
materializer:
  lake: %[1]s/lake
  dead_letter_dir: %[1]s/dead-letter/materializer
detectors:
  - {bundle: detectors/german, mode: shadow}
http: {listen: "%[3]s"}
`

// tensorToVerdict is section d.
func (b *bench) tensorToVerdict(ctx context.Context) (*section, error) {
	s := &section{Title: "tensor to verdict: from the copied capture to the score of the detector, for each token",
		header: []string{"engine", "tokens", "tokens/s", "p50 ms", "p99 ms"}}
	s.notef("The real model, the detector of German; bus (sync always), agent, materializer and detector are one process.")
	dir, err := b.folder("verdict")
	if err != nil {
		return nil, err
	}
	v := &verdicts{b: b, dir: dir, socket: socketPath()}
	if err := v.start(ctx); err != nil {
		return nil, err
	}
	defer func() { _ = v.pipeline.Kill() }() // nothing that it holds is wanted
	loads := []engineLoad{{"idle", "one request at a time, a step every 20 ms", 1, "20ms"},
		{"load", "24 requests at a time, without a pause", 24, "0s"}}
	seen := map[string][]*latencies{}
	for round := range 2 {
		for _, i := range b.rand.Perm(len(loads)) {
			b.progress.Show("d: %s, round %d of 2", loads[i].id, round+1)
			l, err := v.measure(ctx, loads[i])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", loads[i].what, err)
			}
			seen[loads[i].id] = append(seen[loads[i].id], l)
		}
	}
	for _, l := range loads {
		p50, p99 := quantiles(seen[l.id], 0.5), quantiles(seen[l.id], 0.99)
		s.keep(figure{ID: "d." + l.id + ".p50", spread: p50, Unit: "ms"},
			figure{ID: "d." + l.id + ".p99", spread: p99, Unit: "ms"})
		tokens, seconds := 0.0, 0.0
		for _, x := range seen[l.id] {
			tokens, seconds = tokens+x.count(), seconds+x.seconds
		}
		s.row(l.what, fmt.Sprintf("%.0f", tokens), fmt.Sprintf("%.0f", tokens/seconds), ratio(p50), ratio(p99))
	}
	s.afterf("Quantiles are read from a histogram whose bounds are 25 %% apart.")
	return s, nil
}

// engineLoad is a way to use the engine.
type engineLoad struct {
	id, what string
	clients  int
	delay    string
}

// verdicts is a running pipeline with a detector.
type verdicts struct {
	b        *bench
	dir      string
	socket   string
	metrics  string // address
	pipeline *fleet.Process
}

func (v *verdicts) start(ctx context.Context) error {
	address, err := fleet.FreeAddress()
	if err != nil {
		return err
	}
	v.metrics = "http://" + address + "/metrics"
	file := filepath.Join(v.dir, "sonde.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, verdictConfig, v.dir, v.socket, address), 0o644); err != nil {
		return err
	}
	v.pipeline = fleet.NewProcess("pipeline", v.dir, v.b.binary, "run", "--config", file)
	if err := v.pipeline.Start(); err != nil {
		return err
	}
	return await(ctx, v.metrics, v.pipeline)
}

// await waits until a process answers at an address.
func await(ctx context.Context, url string, p *fleet.Process) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		resp, err := http.Get(url)
		if err == nil {
			err = resp.Body.Close()
		}
		if err == nil && resp.StatusCode == http.StatusOK {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w; its last words: %s", p.Name, ctx.Err(), p.Tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// measure runs an engine under a load for a while.
func (v *verdicts) measure(ctx context.Context, l engineLoad) (*latencies, error) {
	address, err := fleet.FreeAddress()
	if err != nil {
		return nil, err
	}
	engine := fleet.NewProcess("engine", v.dir, v.b.binary, "engine", "--model", v.b.model, "--ring-socket", v.socket,
		"--listen", address, "--hooks", "resid_post,token_ids", "--step-delay", l.delay, "--wait-agent", "10s",
		"--threads", "1")
	if err := engine.Start(); err != nil {
		return nil, err
	}
	defer func() {
		if engine.Running() {
			_ = engine.Kill()
		}
	}()
	base := "http://" + address
	if err := await(ctx, base+"/healthz", engine); err != nil {
		return nil, err
	}
	before, err := v.read()
	if err != nil {
		return nil, err
	}
	loadCtx, cancel := context.WithTimeout(ctx, v.b.sizes.verdictFor)
	defer cancel()
	began := time.Now()
	if err := requests(loadCtx, base, l.clients); err != nil {
		return nil, err
	}
	after, err := v.read()
	if err != nil {
		return nil, err
	}
	after.minus(before)
	after.seconds = time.Since(began).Seconds()
	if after.count() == 0 {
		return nil, fmt.Errorf("the detector judged no token; the pipeline said: %s", v.pipeline.Tail())
	}
	return after, engine.Stop(20 * time.Second)
}

// requests keeps so many requests open until ctx ends.
func requests(ctx context.Context, base string, clients int) error {
	var wait sync.WaitGroup
	var next atomic.Int64
	failed := make([]error, clients)
	for i := range clients {
		wait.Go(func() {
			for ctx.Err() == nil && failed[i] == nil {
				n := int(next.Add(1))
				failed[i] = request(ctx, base, prompts[n%len(prompts)], n)
			}
		})
	}
	wait.Wait()
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}

func request(ctx context.Context, base, prompt string, seed int) error {
	body, err := json.Marshal(map[string]any{"prompt": prompt, "max_tokens": 48, "temperature": 0.8, "seed": seed,
		"sonde": map[string]any{"tenant": "bench"}})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if ctx.Err() != nil {
		return nil // the time is up
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err = io.Copy(io.Discard, resp.Body); ctx.Err() != nil {
		return nil
	}
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the engine answered %s", resp.Status)
	}
	return err
}

// latencies is a histogram: how many tokens took at most each bound.
type latencies struct {
	bounds  []float64 // seconds, ascending; the last is infinite
	upTo    []float64 // cumulative
	seconds float64   // of the measurement
}

// read asks the pipeline for its histogram of all tokens.
func (v *verdicts) read() (*latencies, error) {
	resp, err := http.Get(v.metrics)
	if err != nil {
		return nil, fmt.Errorf("read the metrics: %w", err)
	}
	defer resp.Body.Close()
	return parseLatencies(resp.Body)
}

func parseLatencies(in io.Reader) (*latencies, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(in)
	if err != nil {
		return nil, fmt.Errorf("read the metrics: %w", err)
	}
	l := &latencies{}
	detectors := families["sonde_detector_tensor_to_verdict_seconds"].GetMetric()
	if len(detectors) == 0 {
		return l, nil // it judged nothing yet
	}
	for _, b := range detectors[0].GetHistogram().GetBucket() {
		l.bounds = append(l.bounds, b.GetUpperBound())
		l.upTo = append(l.upTo, float64(b.GetCumulativeCount()))
	}
	return l, nil
}

func (l *latencies) count() float64 {
	if len(l.upTo) == 0 {
		return 0
	}
	return l.upTo[len(l.upTo)-1]
}

// minus takes away what was counted before. Nothing was, when there was no series.
func (l *latencies) minus(before *latencies) {
	for i := range before.upTo {
		l.upTo[i] -= before.upTo[i]
	}
}

// quantile is in milliseconds, interpolated within a bucket.
func (l *latencies) quantile(q float64) float64 {
	want := q * l.count()
	low, below := 0.0, 0.0
	for i, n := range l.upTo {
		if n >= want && n > below {
			if math.IsInf(l.bounds[i], 1) {
				return 1000 * low
			}
			return 1000 * (low + (l.bounds[i]-low)*(want-below)/(n-below))
		}
		low, below = l.bounds[i], n
	}
	return math.NaN()
}

func quantiles(all []*latencies, q float64) spread {
	var out []float64
	for _, l := range all {
		out = append(out, l.quantile(q))
	}
	return spreadOf(out)
}
