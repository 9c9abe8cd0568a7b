// Command outage takes the bus away for as many bytes as twenty minutes of a stream
// have, and shows what the spool makes of it: what fits arrives in order, what does
// not is named, and what it costs the engine's step time, under best_effort and under
// complete.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"sonde/config"
	"sonde/trials/fleet"
	"sonde/trials/oracle"
	"sonde/trials/steptime"
)

// outage is the ends of the trial.
type outage struct {
	binary string
	dir    string
	volume int64 // bytes that the engine offers while the bus is away
	spool  config.Size
}

const (
	sequences   = 16 // in each step that counts; more clients than that keep the batch full
	turn        = 15 * time.Second
	settling    = 5 * time.Second
	longest     = 10 * time.Minute // of one outage
	stallBudget = 50 * time.Millisecond
)

func main() {
	o := outage{}
	rate := flag.String("rate", "160KiB", "bytes a second of the stream whose outage is played: "+
		"one layer of 2560 bf16 numbers at 32 tokens a second")
	length := flag.Duration("outage", 20*time.Minute, "how long that stream would be without a bus")
	spool := flag.String("spool", "128MiB", "bound of the spool")
	flag.StringVar(&o.dir, "dir", "data/outage", "folder of the trial; it is emptied first")
	flag.StringVar(&o.binary, "binary", "build/sonde", "the sonde binary")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	perSecond, err := config.ParseSize(*rate)
	if err == nil {
		o.spool, err = config.ParseSize(*spool)
	}
	o.volume = int64(float64(perSecond) * length.Seconds())
	if err == nil {
		fmt.Printf("an outage of %v at %s/s: %s, with a spool of %s\n", *length, perSecond, config.Size(o.volume), o.spool)
		err = o.run(ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "outage failed: %v\n", err)
		os.Exit(1)
	}
	fmt.Println("outage passed")
}

func (o *outage) run(ctx context.Context) error {
	dir, err := fleet.EmptyFolder(o.dir)
	if err != nil {
		return err
	}
	for _, mode := range []string{"best_effort", "complete"} {
		if err := o.arm(ctx, mode, filepath.Join(dir, mode)); err != nil {
			return fmt.Errorf("%s: %w", mode, err)
		}
	}
	return nil
}

// rules give each kind of hook a priority. Logits have most of the bytes; rows of the
// others are smaller than the facts that would name them, so that the spool keeps them.
const rules = `    - {name: tokens, hooks: [token_ids], priority: 2}
    - {name: residual stream, hooks: [resid_post], priority: 1}
    - {name: the rest, hooks: ["*"]}
`

// arm plays the outage under one mode.
func (o *outage) arm(ctx context.Context, mode, dir string) error {
	stepLog := filepath.Join(dir, "steps.log")
	// The delay stands for the time that a step spends on an accelerator: without it
	// engine and agent would compete for cores.
	pipe, err := fleet.NewPipeline(fleet.Options{Binary: o.binary, Dir: dir, CommitMS: 500, LingerMS: 250, Rules: rules,
		Mode:       mode,
		StreamKeys: "max_bytes: 2GiB, retain_bytes: 1GiB",
		AgentKeys:  fmt.Sprintf("  inflight_bytes: 8MiB\n  spool: {max_bytes: %s}\n", o.spool),
		EngineArgs: []string{"--max-batch", fmt.Sprint(sequences), "--kv-blocks", "512", "--hooks",
			"token_ids,resid_post,final_logits", "--ring-bytes", "16MiB",
			"--ring-mode", mode, "--step-delay", "8ms", "--step-log", stepLog}})
	if err != nil {
		return err
	}
	defer pipe.KillAll()
	if err := pipe.Start(ctx); err != nil {
		return err
	}
	order, err := watchOrder(ctx, pipe.BusURL())
	if err != nil {
		return err
	}
	load := &fleet.Load{Rand: rand.New(rand.NewPCG(1, 1)), Clients: sequences + 8, Prefixes: 1, SuffixMax: 8,
		MaxTokens: 256, SampleMax: 1, Vocab: 512}
	loadCtx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	loadDone := make(chan struct{})
	go func() { load.Run(loadCtx, pipe.EngineURL); close(loadDone) }()
	p, err := o.phases(ctx, pipe)
	stopLoad()
	<-loadDone
	if err != nil {
		return err
	}
	fmt.Printf("\n%s: %s offered in %v without a bus; %v until the spool was empty again\n", mode,
		config.Size(p.offered&^1023), p.away.To.Sub(p.away.From).Round(time.Second), p.drained.Round(time.Second))
	if err := printSteps(mode, stepLog, p); err != nil {
		return err
	}
	account, laws, err := oracle.Settle(ctx, pipe)
	if err != nil {
		return err
	}
	return judge(ctx, mode, pipe, account, laws, order)
}

// phases are what happened when.
type phases struct {
	before, away, after steptime.Window
	offered             int64
	drained             time.Duration
}

// phases runs with the bus, without it, and with it again.
func (o *outage) phases(ctx context.Context, pipe *fleet.Pipeline) (p phases, err error) {
	progress := fleet.NewProgress()
	defer progress.Done()
	m := &meter{pipe: pipe}
	if p.before, err = window(ctx, settling); err != nil {
		return p, err
	}
	if err := m.calibrate(); err != nil {
		return p, err
	}
	if err := pipe.Bus.Kill(); err != nil {
		return p, err
	}
	began := time.Now()
	for p.offered < o.volume {
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return p, err
		}
		if p.offered, err = m.offered(); err != nil {
			return p, err
		}
		if time.Since(began) > longest {
			return p, fmt.Errorf("the engine offered %s in %v: play a slower stream, or a shorter outage",
				config.Size(p.offered), longest)
		}
		progress.Show("no bus: %s of %s offered", config.Size(p.offered&^1023), config.Size(o.volume))
	}
	// In its first second the agent does not know yet that the bus is away.
	p.away = steptime.Window{From: began.Add(2 * time.Second), To: time.Now()}
	if err := pipe.Bus.Start(); err != nil {
		return p, err
	}
	back := time.Now()
	for left := 1.0; left > 0; {
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return p, err
		}
		metrics, err := pipe.AgentMetrics()
		if err != nil {
			return p, err
		}
		if left = metrics["sonde_spool_messages"]; time.Since(back) > longest {
			return p, fmt.Errorf("the spool did not empty in %v", longest)
		}
		progress.Show("the bus is back: %.0f messages in the spool", left)
	}
	p.drained = time.Since(back)
	p.after, err = window(ctx, settling)
	return p, errors.Join(err, pipe.Died())
}

// window is a turn after some time to settle.
func window(ctx context.Context, settling time.Duration) (steptime.Window, error) {
	if err := sleep(ctx, settling); err != nil {
		return steptime.Window{}, err
	}
	w := steptime.Window{From: time.Now(), To: time.Now().Add(turn)}
	return w, sleep(ctx, turn)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// meter says how many bytes the engine offers, captured or not: its rows, times the
// bytes that the rows had so far in their messages.
type meter struct {
	pipe     *fleet.Pipeline
	rowBytes float64
	from     float64 // rows
}

func (m *meter) rows() (float64, error) {
	metrics, err := m.pipe.EngineMetrics()
	return metrics["sonde_engine_ring_captured_rows_total"], err
}

func (m *meter) calibrate() error {
	agent, err := m.pipe.AgentMetrics()
	if err != nil {
		return err
	}
	if m.from, err = m.rows(); err != nil {
		return err
	}
	m.rowBytes = agent["sonde_producer_message_bytes_total"] / max(1, agent["sonde_producer_captured_rows"])
	if m.rowBytes == 0 {
		return errors.New("the agent published nothing before the outage")
	}
	return nil
}

func (m *meter) offered() (int64, error) {
	rows, err := m.rows()
	return int64((rows - m.from) * m.rowBytes), err
}
