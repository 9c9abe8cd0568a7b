// Command bench measures each part of the way from the ring to a dataset against
// something bare that does the same work in the same run, and prints one page.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"sonde/trials/fleet"
)

const help = `Measure each part of Sonde against something bare that does the same work, and print one page.

  make bench                       all of it, in about twelve minutes on two cores
  go run ./trials/bench -only c    one section; -only ab two of them
  go run ./trials/bench -runs 15   more rounds: narrower ranges

Sections:
  a  ring to Arrow bytes         against memcpy, and against arrow-go's writer alone
  b  ring to JetStream ack       against the bare nats.go client
  c  bus to Parquet              against bare Parquet writers, and against pyarrow
  d  tensor to verdict           p50 and p99, idle and under load
  e  CPU and memory of the agent during b
  f  cost of a row               for 1, 4, 16 ranks and 8, 64, 256 hooks
  g  ring to Kafka, to Arrow     against bare kafka-go and franz-go clients; needs java and make kafka

In each section the compared arms take turns in random order, once a round. A ratio is the median
of the rounds with their range behind it; "noise" is how far two arms that do the same are apart.
Every run appends one line of JSON, with the machine and the commit, to bench/results.jsonl.
A missed aim is said on the page and is no error: the exit code is 1 only when something could not
be measured, and 2 for wrong flags.

Flags:
`

// bench is one run.
type bench struct {
	runs   int
	binary string // sonde
	python string // with pyarrow; "": none
	model  string // folder of the model whose hidden states are written
	dir    string // for everything that is written
	rand   *rand.Rand
	sizes  sizes

	progress *fleet.Progress
	notRun   []string
	hidden   *corpus // of the model, made once
	agent    *agentCost
}

// sizes say how much each section moves; tests make them tiny.
type sizes struct {
	wireBytes    int           // payload of one run of b
	growBytes    int           // payload of one run of f
	kafkaBytes   int           // payload of one run of g
	paced        int           // messages of its latency, at most pacedMessages
	lakeBytes    int           // payload of one run of c
	verdictFor   time.Duration // one run of d
	fillSteps    int           // steps of one run of a
	messageBytes []int         // of b and c
}

func fullSizes() sizes {
	return sizes{wireBytes: 192 << 20, growBytes: 64 << 20, kafkaBytes: 64 << 20,
		paced: pacedMessages, lakeBytes: 24 << 20, verdictFor: 8 * time.Second,
		fillSteps: 64, messageBytes: []int{64 << 10, 1 << 20}}
}

// parts are the sections by their letter; e is shown by what b measures.
var parts = []struct {
	letter string
	run    func(*bench, context.Context) (*section, error)
}{
	{"a", (*bench).ringToArrow},
	{"b", (*bench).ringToAck},
	{"c", (*bench).busToParquet},
	{"d", (*bench).tensorToVerdict},
	{"e", (*bench).agentCost},
	{"f", (*bench).growth},
	{"g", (*bench).ringToKafka},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, out, errors io.Writer) int {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(errors)
	flags.Usage = func() { fmt.Fprint(errors, help); flags.PrintDefaults() }
	only := flags.String("only", "", "letters of the sections to measure; none: all")
	runs := flags.Int("runs", 5, "rounds of each comparison")
	results := flags.String("results", "bench/results.jsonl", "file that gets a line for this run")
	switch err := flags.Parse(args); {
	case err == flag.ErrHelp:
		return 0
	case err != nil:
		return 2
	}
	if err := checkFlags(flags, *only, *runs); err != nil {
		fmt.Fprintf(errors, "bench: %v\n", err)
		return 2
	}
	dir, err := os.MkdirTemp("", "sonde-bench-")
	if err != nil {
		fmt.Fprintf(errors, "bench: make a folder: %v\n", err)
		return 1
	}
	defer os.RemoveAll(dir)
	defer os.Remove(socketPath())
	defer os.Remove(socketPath() + ".lock") // the agent was killed and could not tidy up
	b := &bench{runs: *runs, binary: "build/sonde", python: findPython(), model: "models/trilingual", dir: dir,
		rand: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1)), sizes: fullSizes(),
		progress: fleet.NewProgressOn(os.Stderr)}
	if err := b.page(ctx, out, *only, *results); err != nil {
		b.progress.Done()
		fmt.Fprintf(errors, "bench could not measure everything: %v\n", err)
		return 1
	}
	return 0
}

func checkFlags(flags *flag.FlagSet, only string, runs int) error {
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q; the sections are chosen with -only", flags.Arg(0))
	}
	if runs < 1 || runs > 1000 {
		return fmt.Errorf("-runs %d: want 1 to 1000", runs)
	}
	for _, letter := range only {
		if !strings.ContainsRune("abcdefg", letter) {
			return fmt.Errorf("-only %s: there is no section %q; they are a to g", only, letter)
		}
	}
	return nil
}

// findPython is the interpreter that `make test-python` installs pyarrow for.
func findPython() string {
	const path = ".venv/bin/python"
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// page measures and prints. Sections that fail do not keep the others from being
// measured.
func (b *bench) page(ctx context.Context, out io.Writer, only, results string) error {
	began := time.Now()
	m, at := thisMachine(), commit()
	fmt.Fprintf(out, "Sonde, measured %s at %s\n%s, %d cores, Linux %s, %s; %d rounds, arms in random order\n",
		began.UTC().Format(time.RFC3339), at, m.CPU, m.Cores, m.Kernel, m.Go, b.runs)
	fmt.Fprintln(out, "Ratios are speeds: 2 is twice as fast as the baseline. [lowest..highest round]. Noise: equal arms.")
	var sections []*section
	var failed []error
	for _, p := range parts {
		if only != "" && !strings.Contains(only, p.letter) {
			continue
		}
		s, err := p.run(b, ctx)
		b.progress.Done()
		if err := ctx.Err(); err != nil {
			return errors.New("interrupted")
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("section %s: %w", p.letter, err))
			fmt.Fprintf(out, "\n%s. NOT MEASURED: %v\n", p.letter, err)
			continue
		}
		s.Letter = p.letter
		s.print(out)
		sections = append(sections, s)
	}
	for _, n := range b.notRun {
		fmt.Fprintf(out, "\nNOT RUN: %s\n", n)
	}
	took := time.Since(began)
	fmt.Fprintf(out, "\n%s. Took %s.\n", summary(sections), took.Round(time.Second))
	r := result{Time: began.UTC().Format(time.RFC3339), Commit: at, Machine: m, Runs: b.runs, Only: only,
		Seconds: took.Seconds(), NotRun: b.notRun}
	for _, s := range sections {
		r.Figures = append(r.Figures, s.figures...)
	}
	if err := appendResult(results, r); err != nil {
		failed = append(failed, err)
	} else {
		fmt.Fprintf(out, "Kept in %s.\n", results)
	}
	return errors.Join(failed...)
}

// folder makes an empty folder for one measurement.
func (b *bench) folder(name string) (string, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("empty %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make %s: %w", dir, err)
	}
	return dir, nil
}

// compare is interleave with a line of progress.
func (b *bench) compare(ctx context.Context, what string, arms ...arm) (rounds, error) {
	return interleave(ctx, b.rand, b.runs, func(round int) {
		b.progress.Show("%s: round %d of %d", what, round, b.runs)
	}, arms...)
}

// miss notes once that something could not run here.
func (b *bench) miss(what string) {
	if !slices.Contains(b.notRun, what) {
		b.notRun = append(b.notRun, what)
	}
}
