// Command fidelity runs the arithmetic engine through a pipeline of real
// processes while everything that can confuse an attribution happens at once:
// preemption, prefix hits, chunked prefill, several samples of one prompt, and
// aborts. Then at least a million stored rows must each prove their identity.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"syscall"
	"time"

	"sonde/trials/fleet"
	"sonde/trials/oracle"
)

func main() {
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the requests and of what is sampled")
	rows := flag.Int("rows", 1_000_000, "how many rows must prove their identity")
	dir := flag.String("dir", "data/fidelity", "folder of the trial; it is emptied first")
	binary := flag.String("binary", "build/sonde", "the sonde binary")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fmt.Printf("fidelity: seed %d\n", *seed)
	if err := run(ctx, *seed, *rows, *dir, *binary); err != nil {
		fmt.Fprintf(os.Stderr, "fidelity failed: %v\n", err)
		os.Exit(1)
	}
	fmt.Println("fidelity passed")
}

func run(ctx context.Context, seed uint64, rows int, dir, binary string) error {
	dir, err := fleet.EmptyFolder(dir)
	if err != nil {
		return err
	}
	// 40 blocks of 16 tokens hold a quarter of what 24 sequences want. The delay keeps
	// the engine at a pace that the rest of the pipeline holds on two cores.
	pipe, err := fleet.NewPipeline(fleet.Options{Binary: binary, Dir: dir, CommitMS: 500, EngineArgs: []string{
		"--kv-blocks", "40", "--prefill-chunk", "24", "--max-batch", "24", "--ring-bytes", "32MiB", "--ring-mode",
		"complete", "--step-delay", "10ms", "--seed", fmt.Sprint(seed)}})
	if err != nil {
		return err
	}
	defer pipe.KillAll()
	if err := pipe.Start(ctx); err != nil {
		return err
	}
	load := &fleet.Load{Rand: rand.New(rand.NewPCG(seed, 1)), Clients: 16, Prefixes: 4, PrefixMax: 96, SuffixMax: 24,
		MaxTokens: 64, SampleMax: 3, AbortOneIn: 8, Vocab: 512}
	loadCtx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	loadDone := make(chan struct{})
	go func() { load.Run(loadCtx, pipe.EngineURL); close(loadDone) }()
	err = provoke(ctx, pipe, rows)
	stopLoad()
	<-loadDone
	if err != nil {
		return err
	}
	metrics, err := pipe.EngineMetrics()
	if err != nil {
		return err
	}
	c := load.Counts()
	fmt.Printf("requests: %d sent, %d finished\n", c.Sent, c.Finished)
	missing := printProvocations(metrics)
	if err := judge(ctx, pipe, rows); err != nil {
		return err
	}
	if missing > 0 {
		return fmt.Errorf("%d of the provocations did not happen: the trial proves nothing about them", missing)
	}
	return nil
}

// provocations are what must have happened, by metric of the engine.
var provocations = []struct{ what, metric string }{
	{"sequences preempted and computed again", "sonde_engine_preemptions_total"},
	{"prompt tokens served from the prefix cache", "sonde_engine_prefix_hit_tokens_total"},
	{"chunks of prompts split over several steps", "sonde_engine_prefill_chunks_total"},
	{"samples of requests with n > 1", "sonde_engine_samples_total"},
	{"requests aborted while they ran", `sonde_engine_aborts_total{outcome="stopped"}`},
}

// provoke waits until enough rows were captured and everything happened often
// enough to matter.
func provoke(ctx context.Context, pipe *fleet.Pipeline, rows int) error {
	const often, limit = 25, 8 * time.Minute
	progress := fleet.NewProgress()
	defer progress.Done()
	for began := time.Now(); time.Since(began) < limit; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
		if err := pipe.Died(); err != nil {
			return err
		}
		m, err := pipe.EngineMetrics()
		if err != nil {
			return err
		}
		captured := m["sonde_engine_ring_captured_rows_total"] - m["sonde_engine_ring_dropped_rows_total"]
		progress.Show("%.0f of %d rows", captured, rows)
		enough := captured >= 1.1*float64(rows)
		for _, p := range provocations {
			enough = enough && m[p.metric] >= often
		}
		if enough {
			return nil
		}
	}
	return nil // What is still missing is printed and judged by the caller.
}

func printProvocations(m map[string]float64) (missing int) {
	fmt.Println("provoked:")
	for _, p := range provocations {
		fmt.Printf("  %8.0f %s\n", m[p.metric], p.what)
		if m[p.metric] == 0 {
			missing++
		}
	}
	fmt.Printf("  %8.0f sequences in one step, at most\n", m["sonde_engine_step_sequences_max"])
	return missing
}

// judge lets the pipeline come to rest, and compares every row.
func judge(ctx context.Context, pipe *fleet.Pipeline, rows int) error {
	account, laws, err := oracle.Settle(ctx, pipe)
	if err != nil {
		return err
	}
	fmt.Print(account)
	fmt.Println("live:", laws)
	if err := laws.Err(); err != nil {
		return err
	}
	report, err := oracle.CompareWithWitness(ctx, os.Stdout, pipe.Lake, pipe.Witness)
	if err != nil {
		return err
	}
	if err := account.Balance(); err != nil {
		return fmt.Errorf("the account does not balance: %w", err)
	}
	if report.Recomputed < rows {
		return fmt.Errorf("%d rows proved their identity; at least %d must", report.Recomputed, rows)
	}
	return nil
}
