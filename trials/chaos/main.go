// Command chaos does harm to running pipelines, as a seed says, and then asks for the
// account of every row: kills, stopped processes, bad disks, bad networks, wrong clocks,
// changing groups, on the embedded bus, on a cluster of three NATS servers and on a real
// Kafka broker. What the engine computed must be in the dataset exactly once or be named
// by the ledger, and after each fault new rows must arrive within a stated time.
//
// README.md has the faults, the judge, and what was measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"sonde/bus/natstest"
	"sonde/trials/fleet"
)

type options struct {
	seed        uint64
	faults      int // on each bus
	buses       []busName
	dir, binary string
	out         string
	atOnce      int
	list        bool
	only        *regexp.Regexp
	plant       string
}

func main() {
	natstest.Enter()
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(2)
	}
	if o.list {
		list(os.Stdout, o)
		return
	}
	if again, code := fleet.InNamespace(); !again {
		os.Exit(code)
	}
	os.Exit(chaos(o))
}

const usage = `Do harm to pipelines of real processes, as a seed says, and account for every row.

  chaos -seed 7                                    on all buses
  chaos -seed 7 -buses kafka -list                 only print the schedule
  chaos -seed 7 -buses nats -only 'kill -9 agent'  one kind of fault, to look into it

Exit codes: 0 all is well; 1 a row is not what it should be, or something did not recover in
its stated time; 2 wrong arguments; 130 interrupted. With -plant, 0 says that the bug was found.

`

func parse(args []string) (o options, err error) {
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	flags.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "repeat a run by its seed")
	flags.IntVar(&o.faults, "faults", 36, "how many faults on each bus")
	buses := flags.String("buses", "nats,cluster,kafka", "which buses")
	flags.StringVar(&o.dir, "dir", "data/chaos", "folder of the trial: emptied first, and kept when the trial fails")
	flags.IntVar(&o.atOnce, "at-once", 3, "how many buses at the same time")
	flags.StringVar(&o.binary, "binary", "build/sonde", "the sonde binary")
	flags.StringVar(&o.out, "out", "", "also write the table to this file")
	only := flags.String("only", "", "only faults whose name this regular expression fits, to look into one")
	flags.BoolVar(&o.list, "list", false, "print the schedule and do no harm")
	flags.StringVar(&o.plant, "plant", "", "prove that a bug is found, in a sonde that is built with it: "+plantNames())
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, fmt.Errorf("-only: %w", err)
	}
	for _, name := range strings.Split(*buses, ",") {
		if !slices.Contains(allBuses, busName(name)) {
			return o, fmt.Errorf("there is no bus %q; -buses takes some of %v, with commas between them", name, allBuses)
		}
		o.buses = append(o.buses, busName(name))
	}
	if o.faults < 1 || o.atOnce < 1 || flags.NArg() > 0 {
		return o, fmt.Errorf("-faults is %d and -at-once %d, and both take 1 or more; no other arguments are taken, and "+
			"there are %q", o.faults, o.atOnce, flags.Args())
	}
	return o, nil
}

func list(out io.Writer, o options) {
	for _, on := range o.buses {
		fmt.Fprintf(out, "%s, seed %d:\n", on, o.seed)
		for _, f := range newSchedule(o.seed, on, o.faults, o.only) {
			fmt.Fprintf(out, "%v\n", f)
		}
	}
}

// interrupted is the exit code after Ctrl-C.
const interrupted = 130

func chaos(o options) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := fleet.EmptyFolder(o.dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		return 2
	}
	fmt.Printf("chaos: seed %d (repeat with: make chaos SEED=%d)\n", o.seed, o.seed)
	if o.plant != "" {
		return provePlant(ctx, o, dir)
	}
	results := runAll(ctx, o, dir)
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "chaos: interrupted")
		_ = os.RemoveAll(dir) // What cannot be removed is in the folder that the next run empties.
		return interrupted
	}
	return conclude(o, dir, results)
}

// runAll runs on each bus, on some at the same time. A bus that this machine cannot run
// is named and left out.
func runAll(ctx context.Context, o options, dir string) []*result {
	all := make([]*result, len(o.buses))
	var running sync.WaitGroup
	places := make(chan struct{}, o.atOnce)
	for i, on := range o.buses {
		running.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			folder := filepath.Join(dir, string(on))
			r, err := run(ctx, on, o, folder)
			switch {
			case ctx.Err() != nil:
			case errors.Is(err, fleet.ErrNotHere) && len(r.outcomes) == 0:
				fmt.Printf("NOT RUN: chaos on %s: %v\n", on, err)
			case err != nil:
				all[i] = r
				failed(r, o, folder)
			default:
				all[i] = r
				fmt.Printf("%s: %d faults in %v, every row accounted for\n", on, r.injected(), r.took.Round(time.Second))
			}
		})
	}
	running.Wait()
	return slices.DeleteFunc(all, func(r *result) bool { return r == nil })
}

// failed says what went wrong, after which faults, and where the rest lies.
func failed(r *result, o options, folder string) {
	fmt.Fprintf(os.Stderr, "chaos failed on %s with seed %d: %v\nthe schedule so far:\n", r.on, o.seed, r.why)
	for _, out := range r.outcomes {
		fmt.Fprintf(os.Stderr, "%v; recovered in %.1f s\n", out.fault, out.recovery.Seconds())
	}
	fmt.Fprintf(os.Stderr, "logs, dataset and witness lie in %s\n", folder)
}

// conclude prints the table, and keeps the folder only after a failure.
func conclude(o options, dir string, results []*result) int {
	injected, bad := 0, 0
	for _, r := range results {
		injected += r.injected()
		if r.why != nil {
			bad++
		}
	}
	var page strings.Builder
	fmt.Fprintf(&page, "%d faults on %d buses, seed %d\n\n", injected, len(results), o.seed)
	writeTable(&page, results)
	fmt.Print(page.String())
	if o.out != "" {
		if err := os.WriteFile(o.out, []byte(page.String()), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "chaos: write the table:", err)
			return 1
		}
	}
	if bad > 0 {
		return 1
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "chaos: remove what is no longer needed:", err)
		return 1
	}
	fmt.Println("chaos passed")
	return 0
}
