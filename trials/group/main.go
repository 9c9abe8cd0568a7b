// Command group has several materializers, real processes, share the partitions of a
// stream on a broker in a process of its own, and kills, stops, wakes, ends and starts
// them at random while rows are published, many of them twice. Then it asks: every row
// that was acknowledged must be in the dataset exactly once, with the bytes that were
// published.
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
	"slices"
	"strings"
	"syscall"
	"time"

	"sonde/trials/fleet"
)

type options struct {
	seed       uint64
	duration   time.Duration
	members    int
	partitions int
	dir        string
	binary     string
}

func main() {
	var o options
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "repeat a run by its seed")
	flag.DurationVar(&o.duration, "duration", time.Minute, "how long rows are published and members are disturbed")
	flag.IntVar(&o.members, "members", 3, "materializers at work; one more comes and goes")
	flag.IntVar(&o.partitions, "partitions", 3, "partitions of the stream")
	flag.StringVar(&o.dir, "dir", "data/group", "folder of the trial; it is emptied first")
	flag.StringVar(&o.binary, "binary", "build/sonde", "the sonde binary")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fmt.Printf("group: seed %d (repeat with: make group SEED=%d)\n", o.seed, o.seed)
	if err := run(ctx, &o); err != nil {
		fmt.Fprintf(os.Stderr, "group failed with seed %d: %v\n", o.seed, err)
		os.Exit(1)
	}
	fmt.Println("group passed")
}

const configText = `bus:
  partitions: %d
  embedded: {store_dir: %q, listen: %q, max_bytes: 1GiB, retain_bytes: 1MiB}
agent:
  socket: %q
  dead_letter: {dir: %q}
materializer: {lake: %q, commit_interval_ms: 200, dead_letter_dir: %[5]q}
http: {listen: ""}
`

func run(ctx context.Context, o *options) error {
	dir, err := fleet.EmptyFolder(o.dir)
	if err != nil {
		return err
	}
	address, err := fleet.FreeAddress()
	if err != nil {
		return err
	}
	lake := filepath.Join(dir, "lake")
	text := fmt.Sprintf(configText, o.partitions, filepath.Join(dir, "bus"), address, filepath.Join(dir, "sonde.sock"),
		filepath.Join(dir, "dead-letter"), lake)
	config := filepath.Join(dir, "sonde.yaml")
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	process := func(name, role string) *fleet.Process {
		return fleet.NewProcess(name, dir, o.binary, "run", "--config", config, "--role", role)
	}
	broker := process("bus", "bus")
	if err := broker.Start(); err != nil {
		return err
	}
	defer broker.Stop(10 * time.Second)
	f := &faults{r: rand.New(rand.NewPCG(o.seed, 1)), stopped: map[*fleet.Process]time.Time{}}
	for i := range o.members + 1 {
		f.members = append(f.members, process(fmt.Sprintf("materializer-%d", i), "materializer"))
	}
	defer f.end()
	p, err := newPublisher(ctx, "nats://"+address, o)
	if err != nil {
		return err
	}
	defer p.bus.Close()
	if err := trial(ctx, o, f, p, lake); err != nil {
		return err
	}
	f.end()
	fenced, err := countFenced(f.members)
	if err != nil {
		return err
	}
	return p.judge(lake, fmt.Sprintf("%v; %d partitions fenced", f.done, fenced))
}

// trial disturbs the members while rows are published, and lets them come to rest.
func trial(ctx context.Context, o *options, f *faults, p *publisher, lake string) error {
	for _, m := range f.members[:o.members] {
		if err := m.Start(); err != nil {
			return err
		}
	}
	published := make(chan error, 1)
	working, stop := context.WithTimeout(ctx, o.duration)
	defer stop()
	go func() { published <- p.run(working) }()
	for working.Err() == nil {
		if err := f.next(); err != nil {
			return err
		}
		pause(working, time.Duration(300+f.r.IntN(1500))*time.Millisecond)
	}
	if err := errors.Join(ctx.Err(), <-published); err != nil {
		return err
	}
	began := time.Now()
	if err := f.calm(); err != nil {
		return err
	}
	if err := p.stored(ctx, lake); err != nil {
		return err
	}
	fmt.Printf("everything was stored %.1f s after the last fault\n", time.Since(began).Seconds())
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// faults are what happens to the members.
type faults struct {
	r       *rand.Rand
	members []*fleet.Process
	stopped map[*fleet.Process]time.Time // until when they stand still
	done    counts
}

type counts struct{ kills, stops, leaves, joins int }

func (c counts) String() string {
	return fmt.Sprintf("%d kills, %d stops of 6 to 10 s, %d leaves, %d joins", c.kills, c.stops, c.leaves, c.joins)
}

// next does one thing to one member. Those that stood still long enough go on.
func (f *faults) next() error {
	for m, until := range f.stopped {
		if time.Now().After(until) {
			delete(f.stopped, m)
			if err := m.Signal(syscall.SIGCONT); err != nil {
				return err
			}
		}
	}
	m := f.members[f.r.IntN(len(f.members))]
	if _, still := f.stopped[m]; still {
		return nil
	}
	if !m.Running() {
		f.done.joins++
		return m.Start()
	}
	switch k := f.r.IntN(10); {
	case k < 4:
		f.done.kills++
		return m.Kill()
	case k < 7 && len(f.stopped) < len(f.members)-1:
		f.done.stops++
		f.stopped[m] = time.Now().Add(time.Duration(6000+f.r.IntN(4000)) * time.Millisecond)
		return m.Signal(syscall.SIGSTOP)
	default:
		f.done.leaves++
		return m.Stop(30 * time.Second)
	}
}

// calm ends all faults: every member runs.
func (f *faults) calm() error {
	for _, m := range f.members {
		if _, still := f.stopped[m]; still {
			if err := m.Signal(syscall.SIGCONT); err != nil {
				return err
			}
		}
		if !m.Running() {
			if err := m.Start(); err != nil {
				return err
			}
		}
	}
	clear(f.stopped)
	return nil
}

// end stops all members.
func (f *faults) end() {
	for _, m := range f.members {
		if m.Running() {
			_ = m.Signal(syscall.SIGCONT) // it may have ended this moment
			_ = m.Stop(30 * time.Second)  // kills what does not end
		}
	}
}

// countFenced is how often a member was told that another one has its partition.
func countFenced(members []*fleet.Process) (n int, err error) {
	for _, m := range slices.Clone(members) {
		text, err := os.ReadFile(m.Log())
		if err != nil {
			return 0, fmt.Errorf("read the log of %s: %w", m.Name, err)
		}
		n += strings.Count(string(text), "another member took a partition over")
	}
	return n, nil
}
