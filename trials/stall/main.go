// Command stall measures the engine's step time while the agent runs and while it
// is stopped (SIGSTOP) for 30 s under best_effort, in turns, and then shows what
// the ledger names as dropped.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"sonde/lakehouse"
	"sonde/schema"
	"sonde/trials/fleet"
	"sonde/trials/oracle"
	"sonde/trials/steptime"
)

func main() {
	dir := flag.String("dir", "data/stall", "folder of the trial; it is emptied first")
	binary := flag.String("binary", "build/sonde", "the sonde binary")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *dir, *binary); err != nil {
		fmt.Fprintf(os.Stderr, "bench-stall failed: %v\n", err)
		os.Exit(1)
	}
}

// sequences is how many run in each step that counts; more clients than that
// keep the batch full.
const sequences = 16

func run(ctx context.Context, dir, binary string) error {
	dir, err := fleet.EmptyFolder(dir)
	if err != nil {
		return err
	}
	stepLog := filepath.Join(dir, "steps.log")
	// The delay stands for the time that a step spends on an accelerator: without it
	// engine and agent would compete for cores, and stopping the agent would help.
	pipe, err := fleet.NewPipeline(fleet.Options{Binary: binary, Dir: dir, CommitMS: 500, EngineArgs: []string{
		"--kv-blocks", "512", "--max-batch", fmt.Sprint(sequences), "--ring-bytes", "16MiB", "--ring-mode", "best_effort",
		"--step-delay", "8ms", "--step-log", stepLog}})
	if err != nil {
		return err
	}
	defer pipe.KillAll()
	if err := pipe.Start(ctx); err != nil {
		return err
	}
	load := &fleet.Load{Rand: rand.New(rand.NewPCG(1, 1)), Clients: sequences + 8, Prefixes: 1, SuffixMax: 8,
		MaxTokens: 256, SampleMax: 1, Vocab: 512}
	loadCtx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	loadDone := make(chan struct{})
	go func() { load.Run(loadCtx, pipe.EngineURL); close(loadDone) }()
	running, stopped, err := alternate(ctx, pipe)
	stopLoad()
	<-loadDone
	if err != nil {
		return err
	}
	steps, err := steptime.Read(stepLog)
	if err != nil {
		return err
	}
	if err := printSteps(steps, running, stopped); err != nil {
		return err
	}
	return showLedger(ctx, pipe)
}

// alternate measures in turns: running, stopped, running, stopped, running.
func alternate(ctx context.Context, pipe *fleet.Pipeline) (running, stopped []steptime.Window, err error) {
	const turn, settling = 30 * time.Second, 10 * time.Second
	progress := fleet.NewProgress()
	defer progress.Done()
	measure := func(what string) (steptime.Window, error) {
		w := steptime.Window{From: time.Now(), To: time.Now().Add(turn)}
		for time.Now().Before(w.To) {
			progress.Show("agent %s: %v to go", what, time.Until(w.To).Round(time.Second))
			if err := sleep(ctx, time.Second); err != nil {
				return w, err
			}
		}
		return w, nil
	}
	for turn := 0; ; turn++ {
		if err := sleep(ctx, settling); err != nil { // the first requests, or what waited in the ring
			return nil, nil, err
		}
		w, err := measure("running")
		if err != nil {
			return nil, nil, err
		}
		if err := pipe.Died(); err != nil {
			return nil, nil, err
		}
		if running = append(running, w); turn == 2 {
			return running, stopped, nil
		}
		if err := pipe.Agent.Signal(syscall.SIGSTOP); err != nil {
			return nil, nil, err
		}
		if w, err = measure("stopped"); err != nil {
			return nil, nil, err
		}
		stopped = append(stopped, w)
		if err := pipe.Agent.Signal(syscall.SIGCONT); err != nil {
			return nil, nil, err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// printSteps shows step times and their ratios: of stopped to running, and, as a
// measure of noise, of one running turn to the next. It is an error when the
// engine waits for the stopped agent.
func printSteps(steps []steptime.Step, running, stopped []steptime.Window) error {
	a := steptime.Alike("agent running", steps, sequences, running...)
	b := steptime.Alike("agent stopped (SIGSTOP, 30 s)", steps, sequences, stopped...)
	fmt.Printf("step time, steps with one token of each of %d sequences:\n  %v\n  %v\n", sequences, &a, &b)
	const least = 1000
	if len(a.Durations) < least || len(b.Durations) < least {
		return fmt.Errorf("too few steps to compare: at least %d in each way of running", least)
	}
	fmt.Printf("  %s\n", steptime.Compare("stopped / running:", &b, &a))
	for i := 1; i < len(running); i++ {
		x := steptime.Alike("", steps, sequences, running[i-1])
		y := steptime.Alike("", steps, sequences, running[i])
		fmt.Printf("  %s\n", steptime.Compare("noise, running / running:", &y, &x))
	}
	// An engine that waits for its agent would wait for tens of milliseconds a step:
	// far more than any noise of a busy machine.
	const most = 3
	if b.Quantile(0.5) > most*a.Quantile(0.5) || b.Quantile(0.99) > most*a.Quantile(0.99) {
		return fmt.Errorf("steps take more than %d times as long while the agent is stopped: the engine waits for it", most)
	}
	return nil
}

// showLedger lets everything settle and shows what the ledger says was dropped.
func showLedger(ctx context.Context, pipe *fleet.Pipeline) error {
	if err := pipe.Engine.Stop(60 * time.Second); err != nil {
		return err
	}
	account, err := oracle.AwaitRest(ctx, pipe.Lake, pipe.Witness, 3*time.Minute)
	if err != nil {
		return err
	}
	if err := pipe.StopAll(); err != nil {
		return err
	}
	fmt.Print(account)
	if err := account.Balance(); err != nil {
		return fmt.Errorf("the account does not balance: %w", err)
	}
	if account.DroppedRows() == 0 {
		return fmt.Errorf("nothing was dropped although the agent was stopped: the ring was too large for this trial")
	}
	lake, err := lakehouse.Open(pipe.Lake)
	if err != nil {
		return err
	}
	fmt.Println("the ledger names, among others:")
	shown := map[string]int{}
	err = lake.Ledger(ctx, lakehouse.Query{}, func(f *lakehouse.Fact) error {
		dropped := f.Fact == schema.FactMissing || f.Fact == schema.FactExpected && f.Outcome == schema.OutcomeDropped
		if kind := f.Fact + " " + f.Reason; dropped && f.Rows > 0 && shown[kind] < 3 {
			shown[kind]++
			fmt.Printf("  request %s sample %d positions %d to %d of pass %d: %d rows, %s\n", f.Request, f.Sample, f.Position,
				f.Position+(f.Count-1)*f.Stride, f.Pass, f.Rows, f.Reason)
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = oracle.CompareWithWitness(ctx, os.Stdout, pipe.Lake, pipe.Witness)
	return err
}
