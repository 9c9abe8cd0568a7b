// Command torture kills the processes of a running pipeline at random moments,
// hundreds of times, and then asks for the account: every row that the engine
// computed must be in the dataset exactly once or be named by the ledger, and
// everything must have recovered by itself.
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
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "repeat a run by its seed")
	kills := flag.Int("kills", 300, "how many SIGKILLs to send")
	dir := flag.String("dir", "data/torture", "folder of the trial; it is emptied first")
	binary := flag.String("binary", "build/sonde", "the sonde binary")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fmt.Printf("torture: seed %d (repeat with: make torture SEED=%d)\n", *seed, *seed)
	if err := run(ctx, *seed, *kills, *dir, *binary); err != nil {
		fmt.Fprintf(os.Stderr, "torture failed with seed %d: %v\n", *seed, err)
		os.Exit(1)
	}
	fmt.Println("torture passed")
}

func run(ctx context.Context, seed uint64, kills int, dir, binary string) error {
	dir, err := fleet.EmptyFolder(dir)
	if err != nil {
		return err
	}
	// Hooks of every kind: scalars, vectors, rows of growing length, sampled rows.
	pipe, err := fleet.NewPipeline(fleet.Options{Binary: binary, Dir: dir, CommitMS: 200, EngineArgs: []string{
		"--kv-blocks", "40", "--prefill-chunk", "48", "--max-batch", "24", "--ring-bytes", "4MiB",
		"--hooks", "token_ids,resid_post,pattern,mlp_out,final_logits", "--seed", fmt.Sprint(seed), "--step-delay", "8ms"}})
	if err != nil {
		return err
	}
	defer pipe.KillAll()
	if err := pipe.Start(ctx); err != nil {
		return err
	}
	load := &fleet.Load{Rand: rand.New(rand.NewPCG(seed, 2)), Clients: 16, Prefixes: 4, PrefixMax: 96, SuffixMax: 24,
		MaxTokens: 48, SampleMax: 3, AbortOneIn: 12, Vocab: 512}
	loadCtx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	loadDone := make(chan struct{})
	go func() { load.Run(loadCtx, pipe.EngineURL); close(loadDone) }()

	began := time.Now()
	victims, err := killAtRandom(ctx, newSchedule(seed, kills), pipe)
	stopLoad()
	<-loadDone
	if err != nil {
		return err
	}
	fmt.Printf("%d SIGKILLs in %v: engine %d, agent %d, materializer %d, bus %d\n", kills,
		time.Since(began).Round(time.Second), victims["engine"], victims["agent"], victims["materializer"], victims["bus"])
	c := load.Counts()
	fmt.Printf("requests: %d sent, %d finished, %d cut off by a death, %d aborts\n", c.Sent, c.Finished, c.Abandoned,
		c.Aborts)
	return settle(ctx, pipe)
}

// killAtRandom follows the schedule: it kills, waits, and starts again.
func killAtRandom(ctx context.Context, s *schedule, pipe *fleet.Pipeline) (map[string]int, error) {
	children := map[string]*fleet.Process{}
	for _, child := range []*fleet.Process{pipe.Engine, pipe.Agent, pipe.Materializer, pipe.Bus} {
		children[child.Name] = child
	}
	victims, done := map[string]int{}, 0
	progress := fleet.NewProgress()
	defer progress.Done()
	for {
		a, ok := s.next()
		if !ok {
			return victims, nil
		}
		if err := pause(ctx, a.before); err != nil {
			return nil, err
		}
		for _, name := range a.victims {
			child := children[name]
			if !child.Running() {
				return nil, fmt.Errorf("%s died by itself after %d kills; its last words: %s", name, done, child.Tail())
			}
			if err := child.Kill(); err != nil {
				return nil, err
			}
			victims[name]++
			done++
		}
		if err := pause(ctx, a.down); err != nil {
			return nil, err
		}
		for _, name := range a.victims {
			if err := children[name].Start(); err != nil {
				return nil, err
			}
		}
		progress.Show("%d of %d kills", done, s.kills)
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// settle lets the last engine tell what died with those before it, lets the
// pipeline come to rest, and asks for the account.
func settle(ctx context.Context, pipe *fleet.Pipeline) error {
	if err := pipe.WaitEngine(ctx, 60*time.Second); err != nil {
		return err
	}
	if err := pipe.Died(); err != nil {
		return err
	}
	if err := oracle.AwaitObituaries(ctx, pipe.Lake, 2*time.Minute, pipe.Witness); err != nil {
		return err
	}
	if err := pipe.Engine.Stop(60 * time.Second); err != nil {
		return err
	}
	account, err := oracle.AwaitRest(ctx, pipe.Lake, pipe.Witness, 3*time.Minute)
	if err != nil {
		return err
	}
	pending, err := oracle.Pending(ctx, pipe.BusURL(), pipe.Lake)
	if err != nil {
		return err
	}
	if err := pipe.StopAll(); err != nil {
		return err
	}
	fmt.Print(account)
	fmt.Printf("%d messages of the stream are not in the lake\n", pending)
	if _, err := oracle.CompareWithWitness(ctx, os.Stdout, pipe.Lake, pipe.Witness); err != nil {
		return err
	}
	if err := account.Balance(); err != nil {
		return fmt.Errorf("the account does not balance: %w", err)
	}
	if pending > 0 {
		return fmt.Errorf("the lake is at rest without the last %d messages of the stream", pending)
	}
	return nil
}
