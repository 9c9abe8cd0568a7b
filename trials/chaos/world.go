package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"sonde/trials/chaos/faultdisk"
	"sonde/trials/faultproxy"
	"sonde/trials/fleet"
)

// world is a pipeline of real processes on one bus, with fault proxies and fault disks
// between its parts.
type world struct {
	on          busName
	binary, dir string
	seed        uint64
	lake        string
	sockets     string // folder of the agent's socket, whose path must be short

	broker    broker
	links     []*faultproxy.Proxy // to the broker: the agent's, then the consumers'
	disks     map[string]*faultdisk.Disk
	noDisks   error // why there are none, nil: there are
	agent     *fleet.Process
	agentHTTP string
	consumers []*fleet.Process // the last one is a guest: it runs during a fault alone
	engines   []*engine

	mending sync.WaitGroup
	mendMu  sync.Mutex
	mendErr error // mended reads it

	current atomic.Int64 // the fault that new requests are charged to
	healed  atomic.Int64 // wall clock, ns, at which the fault of the moment ended and its dead were started again
	probes  atomic.Int64
	watch   *watch
	load    sync.WaitGroup
	calm    context.CancelFunc // ends the load
}

// engine is one engine with a ring of its own.
type engine struct {
	*fleet.Process
	url     string
	witness string
}

// diskMiB are the disks. A Kafka broker keeps segments of 64 MiB a minute longer than
// they are wanted.
var diskMiB = map[string]int{"store": 1024, "lake": 256, "spool": 64}

const (
	partitions = 3
	members    = 2 // consumers that always run
)

// engineNames are spread over all partitions, which a test checks.
var engineNames = []string{"chaos-a", "chaos-b", "chaos-d"}

// newWorld starts everything and waits until it works. It returns a world to close also
// with an error.
func newWorld(ctx context.Context, on busName, o options, dir string) (*world, error) {
	w := &world{on: on, binary: o.binary, dir: dir, seed: o.seed, disks: map[string]*faultdisk.Disk{}}
	err := w.build(ctx)
	if err == nil {
		err = w.start(ctx)
	}
	return w, err
}

// build makes folders, disks, proxies and configurations, and describes the processes.
func (w *world) build(ctx context.Context) (err error) {
	if w.binary, err = filepath.Abs(w.binary); err != nil {
		return err
	}
	if w.sockets, err = os.MkdirTemp("", "chaos"); err != nil {
		return err
	}
	for name, mib := range diskMiB {
		d, err := faultdisk.New(w.dir, name, mib)
		if errors.Is(err, fleet.ErrNotHere) {
			w.noDisks = err
			err = os.MkdirAll(filepath.Join(w.dir, name), 0o755)
		} else if err == nil {
			w.disks[name] = d
		}
		if err != nil {
			return err
		}
	}
	w.lake = filepath.Join(w.dir, "lake", "lake")
	if w.broker, err = newBroker(ctx, w); err != nil {
		return err
	}
	if err := w.describe(); err != nil {
		return err
	}
	w.watch = newWatch(w.lake)
	return nil
}

// folder is one of those that may be a fault disk.
func (w *world) folder(name string) string { return filepath.Join(w.dir, name) }

const roleConfig = `bus:
  partitions: %[7]d
%[1]s
agent:
  socket: %[2]q
  linger_ms: 50
  inflight_bytes: 1MiB
  dead_letter: {dir: %[3]q}
  spool: {dir: %[8]q, max_bytes: 4MiB, after_ms: 500}
policy:
  rules:
    - {name: every row, hooks: ["*"]}
materializer:
  lake: %[4]q
  commit_interval_ms: 300
  dead_letter_dir: %[5]q
http: {listen: %[6]q}
`

// describe writes the configuration of each process.
func (w *world) describe() error {
	socket := filepath.Join(w.sockets, "s")
	role := func(name, role string, link int) (*fleet.Process, string, error) {
		http, err := fleet.FreeAddress()
		if err != nil {
			return nil, "", err
		}
		file := filepath.Join(w.dir, name+".yaml")
		text := fmt.Sprintf(roleConfig, w.broker.config(link), socket, filepath.Join(w.dir, "dead-letter", "agent"),
			w.lake, filepath.Join(w.dir, "dead-letter", name), http, partitions,
			filepath.Join(w.folder("spool"), "agent"))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return nil, "", err
		}
		return fleet.NewProcess(name, w.dir, w.binary, "run", "--config", file, "--role", role), http, nil
	}
	var err error
	if w.agent, w.agentHTTP, err = role("agent", "agent", agentLink); err != nil {
		return err
	}
	for i := range members + 1 {
		c, _, err := role(fmt.Sprintf("consumer%d", i), "materializer", consumerLink)
		if err != nil {
			return err
		}
		w.consumers = append(w.consumers, c)
	}
	for i, name := range engineNames {
		address, err := fleet.FreeAddress()
		if err != nil {
			return err
		}
		witness, state := filepath.Join(w.dir, "witness", name), filepath.Join(w.dir, "state", name)
		if err := errors.Join(os.MkdirAll(witness, 0o755), os.MkdirAll(state, 0o755)); err != nil {
			return err
		}
		w.engines = append(w.engines, &engine{url: "http://" + address, witness: witness,
			Process: fleet.NewProcess("engine-"+name, w.dir, w.binary, "engine", "--model", "arithmetic", "--instance", name,
				"--listen", address, "--ring-socket", socket, "--state-dir", state, "--witness", witness,
				"--hooks", "token_ids,resid_post,pattern", "--kv-blocks", "40", "--prefill-chunk", "32", "--max-batch", "4",
				"--ring-bytes", "1MiB", "--threads", "1", "--step-delay", "40ms", "--seed", fmt.Sprint(w.seed+uint64(i)))})
	}
	return nil
}

// all lists the processes of the product in the order of their start, without the guest.
func (w *world) all() []*fleet.Process {
	out := append([]*fleet.Process{w.agent}, w.consumers[:members]...)
	for _, e := range w.engines {
		out = append(out, e.Process)
	}
	return out
}

// every lists all processes of the product that were described.
func (w *world) every() []*fleet.Process {
	out := w.consumers
	if w.agent != nil {
		out = append(out, w.agent)
	}
	for _, e := range w.engines {
		out = append(out, e.Process)
	}
	return out
}

// start starts what build described, and the load.
func (w *world) start(ctx context.Context) error {
	for _, p := range w.all() {
		if err := p.Start(); err != nil {
			return err
		}
	}
	load, cancel := context.WithCancel(ctx)
	w.calm = cancel
	for i, e := range w.engines {
		l := &fleet.Load{Rand: rand.New(rand.NewPCG(w.seed, uint64(i))), Clients: 2, Prefixes: 3, PrefixMax: 24,
			SuffixMax: 8, MaxTokens: 16, SampleMax: 2, AbortOneIn: 12, Vocab: 512,
			Name: func() string { return fmt.Sprintf("f%04d-%s-", w.current.Load(), engineNames[i]) }}
		w.load.Go(func() { l.Run(load, func() string { return e.url }) })
	}
	w.load.Go(func() { w.watch.run(load) })
	if _, err := w.recovered(ctx, time.Now(), startLimit); err != nil {
		return fmt.Errorf("the pipeline did not come up: %w", err)
	}
	return nil
}

// startLimit is for a machine that others use as well.
const startLimit = 2 * time.Minute

// died names processes that ended by themselves.
func (w *world) died() error {
	var errs []error
	for _, p := range w.all() {
		if !p.Running() {
			errs = append(errs, fmt.Errorf("%s died by itself; its last words: %s", p.Name, w.lastWords(p)))
		}
	}
	return errors.Join(errs...)
}

// lastWords is the last line of a process, or the panic that it ended with.
func (w *world) lastWords(p *fleet.Process) string {
	text, err := os.ReadFile(filepath.Join(w.dir, p.Name+".log"))
	if err != nil {
		return err.Error()
	}
	for _, sign := range []string{"\npanic: ", "\nfatal error: "} {
		if at := strings.LastIndex(string(text), sign); at >= 0 {
			line, _, _ := strings.Cut(string(text[at+1:]), "\n")
			return line
		}
	}
	return p.Tail()
}

// autopsy has the processes of the pipeline write into their logs where each goroutine
// stands, by which they end.
func (w *world) autopsy() {
	for _, p := range w.all() {
		if p.Running() && p.Signal(syscall.SIGQUIT) == nil {
			_ = p.Wait(10 * time.Second) // One that does not end is killed.
		}
	}
}

// close ends whatever runs, unmounts, and leaves the folder.
func (w *world) close() error {
	if w.calm != nil {
		w.calm()
		w.load.Wait()
	}
	var errs []error
	w.mending.Wait()
	for _, l := range w.links {
		l.Close()
	}
	for _, p := range w.every() {
		if p.Running() {
			errs = append(errs, p.Kill())
		}
	}
	if w.broker != nil {
		w.broker.close()
	}
	return errors.Join(append(errs, os.RemoveAll(w.sockets))...)
}

// unmount ends the disks. With keep, what they hold is copied to where it can be looked
// at.
func (w *world) unmount(keep bool) error {
	var errs []error
	for name, d := range w.disks {
		kept := w.folder(name) + ".kept"
		if keep {
			errs = append(errs, d.Free(), os.CopyFS(kept, os.DirFS(d.Dir)))
		}
		errs = append(errs, d.Close())
		if keep {
			errs = append(errs, os.Rename(kept, d.Dir))
		}
	}
	return errors.Join(errs...)
}
