package demo

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sonde/cmd/sonde/pipeline"
	"sonde/config"
	"sonde/consumers/detector"
	"sonde/lakehouse"
)

// Options of a demo.
type Options struct {
	Out      string        // folder of everything that the demo writes
	Model    string        // folder of the model
	Detector string        // folder of the bundle, "": no detector
	Requests int           // at least 2
	Target   time.Duration // how long requests are generated
	Keep     bool          // keep what only the run needed: the bus, the witness
	Kafka    []string      // brokers that carry the run on a topic of its own, host:port; none: the embedded bus
}

// pace is the pause after each step. The demo's model takes a few milliseconds a
// step on any machine; the models that it stands for take ten times as long.
const pace = 40 * time.Millisecond

// maxBatch is how many sequences the engine computes in one step.
const maxBatch = 24

// stopLimit bounds each part of the orderly end: the engine's, and the rest of
// the stream's way into the dataset.
const stopLimit = 60 * time.Second

// demo is one run.
type demo struct {
	o        Options
	folder   folder
	progress *progress
	pipe     *pipeline.Pipeline
	engine   *child
	client   *client
	trace    trace
}

// trace keeps what the detector says while it runs.
type trace struct {
	mu     sync.Mutex
	scores map[string][]detector.Score // by request, in the order of the verdicts
}

// all is a copy of what was said so far.
func (t *trace) all() map[string][]detector.Score {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[string][]detector.Score, len(t.scores))
	for request, scores := range t.scores {
		out[request] = slices.Clone(scores)
	}
	return out
}

func (t *trace) add(s detector.Score) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.scores[s.Request] = append(t.scores[s.Request], s)
}

// Run runs the demo, and writes report.json and report.html below o.Out. An
// error means that there is no report; broken promises are in Report.Failures.
func Run(ctx context.Context, o Options, stdout, stderr io.Writer) (*Report, error) {
	for _, dir := range []string{o.Model, o.Detector} {
		if _, err := os.Stat(dir); dir != "" && err != nil {
			return nil, fmt.Errorf("find the demo's model and detector: %w; run it in the repository, or name them with "+
				"--model and --detector", err)
		}
	}
	f, err := openFolder(o.Out)
	if err != nil {
		return nil, err
	}
	d := &demo{o: o, folder: f, progress: newProgress(stderr), trace: trace{scores: map[string][]detector.Score{}}}
	report, commands, err := d.run(ctx)
	d.progress.finish()
	d.end()
	if err == nil {
		report.summary(stdout, o.Out, commands)
	}
	if closeErr := f.close(o.Keep || err != nil); err == nil {
		err = closeErr
	}
	return report, err
}

// end stops what still runs; after a good run that is nothing.
func (d *demo) end() {
	if d.engine != nil {
		d.engine.kill()
	}
	if d.pipe != nil {
		d.pipe.Stop()
		d.pipe = nil
	}
}

func (d *demo) run(ctx context.Context) (*Report, []string, error) {
	d.progress.phase("starting bus, agent, materializer and detector, and the engine in a process of its own")
	if err := d.start(ctx); err != nil {
		return nil, nil, err
	}
	requests := plan(d.o.Requests)
	d.progress.phase("sending %d prompts in English, French and German; every hidden state is captured", len(requests))
	l := &load{client: d.client, limit: tokensMax}
	// A role that fails ends the demo at once, with its reason.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case err := <-d.pipe.Failed():
			cancel(err)
		case <-ctx.Done():
		}
	}()
	sampler := startSampler(ctx, func() float64 { return float64(l.tokens.Load()) },
		func() float64 { return float64(d.pipe.Ledger().Total.Acknowledged) })
	began := time.Now()
	d.progress.start(len(requests))
	answers, err := l.run(ctx, requests, d.o.Target, func() {
		d.progress.update(int(l.answered.Load()), fmt.Sprintf("%d tokens, %d rows on the bus, %d requests stopped",
			l.tokens.Load(), d.pipe.Ledger().Total.Acknowledged, l.stopped.Load()))
	})
	rates := sampler.rates()
	if err != nil {
		return nil, nil, err
	}
	seconds := time.Since(began).Seconds()
	d.progress.finish()
	most, err := d.client.metric(ctx, "sonde_engine_step_sequences_max")
	if err != nil {
		return nil, nil, err
	}
	d.progress.phase("stopping the engine, and waiting until every row is in the dataset")
	lake, err := d.settle(ctx)
	if err != nil {
		return nil, nil, err
	}
	d.progress.phase("comparing the dataset with what the engine wrote down by itself")
	r, s, err := d.judge(ctx, lake, answers)
	if err != nil {
		return nil, nil, err
	}
	r.Seconds, r.RequestsInOneStep, s.Throughput = seconds, int(most), rates
	r.TokensPerS = float64(r.Tokens) / seconds
	commands := d.commands(r, answers)
	if err := d.write(r, s, commands); err != nil {
		return nil, nil, err
	}
	return r, commands, nil
}

// write judges the report and puts both files in place.
func (d *demo) write(r *Report, s *series, commands []string) error {
	r.judge()
	html, err := page(r, s, commands)
	if err != nil {
		return err
	}
	if err := writeFile(d.folder.path("report.html"), html); err != nil {
		return err
	}
	return r.write(d.folder.dir)
}

// tokensMax keeps answers within the model's context, with room for a prompt.
const tokensMax = 900

// config is everything in one process, every hook, and the detector in charge.
func (d *demo) config(socket string) config.Config {
	c := config.Default()
	c.Bus.Embedded.StoreDir, c.Bus.Embedded.Listen = d.folder.path("bus"), ""
	c.Bus.Embedded.RetainBytes = 256 << 20
	if len(d.o.Kafka) > 0 {
		c.Bus.Kafka.Brokers, c.Bus.Kafka.RetainBytes = d.o.Kafka, 256<<20
		c.Bus.Stream = fmt.Sprintf("SONDE-DEMO-%d", time.Now().UnixMilli())
	}
	c.Agent.Socket, c.Agent.Wait = socket, "event"
	c.Agent.DeadLetter.Dir = d.folder.path("dead-letter/agent")
	c.Policy.Rules = []config.Rule{{Name: "every hook", Hooks: []string{"*"}, Layers: config.AllLayers(),
		Window: config.Window{Prompt: "all", Decode: "all"}, As: "tensor", Stride: 1}}
	c.Materializer.Lake = d.folder.path("lake")
	c.Materializer.DeadLetterDir = d.folder.path("dead-letter/materializer")
	c.HTTP.Listen = ""
	if d.o.Detector != "" {
		c.Detectors = []config.Detector{{Bundle: d.o.Detector, Mode: "enforce"}}
	}
	return c
}

func (d *demo) start(ctx context.Context) error {
	logFile, err := os.Create(d.folder.path("sonde.log"))
	if err != nil {
		return fmt.Errorf("write the demo's log: %w", err)
	}
	// A unix socket's path is at most about 100 bytes long, which a deep folder breaks.
	socket := filepath.Join(os.TempDir(), fmt.Sprintf("sonde-demo-%d.sock", os.Getpid()))
	d.pipe, err = pipeline.Start(ctx, pipeline.Options{Config: d.config(socket), OnScore: d.trace.add,
		Log: slog.New(slog.NewTextHandler(logFile, nil))})
	if err != nil {
		return err
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	d.engine, err = startChild(ctx, d.folder.path("engine.log"), "engine", "--model", d.o.Model, "--listen", address,
		"--ring-socket", socket, "--state-dir", d.folder.path("engine-state"), "--witness", d.folder.path("witness"),
		"--instance", "demo", "--max-batch", strconv.Itoa(maxBatch), "--wait-agent", "30s", "--step-delay", pace.String())
	if err != nil {
		return err
	}
	d.client = &client{base: "http://" + address, model: filepath.Base(d.o.Model)}
	if err := d.client.await(ctx, d.engine.exited); err != nil {
		return fmt.Errorf("%w; its last words: %s", err, d.engine.lastWords())
	}
	return nil
}

// settle stops the engine, waits until its epoch is closed and every row is
// stored or named, and stops the pipeline.
func (d *demo) settle(ctx context.Context) (*lakehouse.Lake, error) {
	if err := d.engine.stop(stopLimit); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	var lake *lakehouse.Lake
	for {
		if err := d.pipe.Drain(ctx); err != nil {
			return nil, err
		}
		var err error
		if lake == nil {
			if lake, err = lakehouse.Open(d.folder.path("lake")); err != nil {
				return nil, err
			}
		} else if err = lake.Refresh(); err != nil {
			return nil, err
		}
		account, err := lake.Account(ctx)
		if err != nil {
			return nil, fmt.Errorf("wait until the dataset is complete: %w", err)
		}
		if account.AtRest() && d.pipe.Ledger().Total.InFlight == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the dataset was not complete within %v:\n%s", stopLimit, account)
		case <-time.After(100 * time.Millisecond):
		}
	}
	return lake, nil
}

// commands are three ways to look into the dataset, of which the first request
// that was stopped is the most interesting.
func (d *demo) commands(r *Report, answers []answer) []string {
	request := answers[0].ID
	if len(r.Stopped) > 0 {
		request = r.Stopped[0].Request
	}
	self := os.Args[0]
	lake := d.folder.path("lake")
	return []string{
		fmt.Sprintf("%s lake show %s --lake %s", self, request, lake),
		fmt.Sprintf("%s lake tensor %s resid_post 2 --format npy --out resid_post.npy --lake %s", self, request, lake),
		fmt.Sprintf("%s lake verify --lake %s", self, lake),
	}
}

// summary is what the terminal shows at the end.
func (r *Report) summary(out io.Writer, dir string, commands []string) {
	fmt.Fprintf(out, "\n%s requests, %s tokens in %.0f s (%.0f/s, with a pause of %v after each step), up to %d requests "+
		"in one step\n", group(r.Requests), group(r.Tokens), r.Seconds, r.TokensPerS, pace, r.RequestsInOneStep)
	fmt.Fprintf(out, "ledger, in rows: %s\n", r.Ledger.law())
	fmt.Fprintf(out, "                 acknowledged %s = stored %s + pending %s\n", group(r.Ledger.Acknowledged),
		group(r.Stored), group(r.Pending))
	fmt.Fprintf(out, "bit for bit:     %s rows of %d hooks compared with the engine's own witness, %s differ\n",
		group(r.BitExact.Checked), len(r.Hooks), group(r.BitExact.Mismatched))
	if r.Detector != nil {
		fmt.Fprintf(out, "detector %s:  %d alerts, %d requests stopped; tensor to verdict p50 %.1f ms, p99 %.1f ms\n",
			r.Detector.Name, len(r.Alerts), len(r.Stopped), r.TensorToVerdictMS.P50, r.TensorToVerdictMS.P99)
	}
	for _, f := range r.Failures {
		fmt.Fprintf(out, "FAILED: %s\n", f)
	}
	fmt.Fprintf(out, "\nreport:  %s\nlook into the dataset:\n  %s\n", filepath.Join(dir, "report.html"),
		strings.Join(commands, "\n  "))
}
