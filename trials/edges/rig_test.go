package edges

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sonde/lakehouse"
	"sonde/lakehouse/account"
	"sonde/trials/fleet"
	"sonde/trials/oracle"
)

// rig is a pipeline in one process, and perhaps an engine in another.
type rig struct {
	*testing.T
	dir, store, lake, witness string
	socket, bus, http, config string
	run, engine, recorder     *fleet.Process
	engineURL                 string
	peak                      int  // MiB; peakMemory sets it
	compared                  int  // rows of ranks in this process; rest sets it
	replayed                  bool // the lake has rows of a recording
}

// setup is what a test wants otherwise than the others.
type setup struct {
	store, lake string // folders, "": on the disk of all tests
	rules       string // of the policy, "": every row
	more        string // further YAML
}

const configText = `bus:
  embedded: {store_dir: %[2]q, listen: %[8]q, max_bytes: 1GiB, retain_bytes: 64MiB}
agent:
  socket: %[4]q
  linger_ms: 20
  dead_letter: {dir: %[1]q}
  spool: {max_bytes: 0} # so that the ring feels a bus that takes nothing; trials/chaos has the spool
policy:
  rules:
%[6]s
materializer: {lake: %[3]q, commit_interval_ms: 250, dead_letter_dir: %[1]q}
http: {listen: %[5]q}
%[7]s`

func newRig(t *testing.T, s setup) *rig {
	t.Helper()
	bin, err := sondeBinary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	or := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	r := &rig{T: t, dir: dir, store: or(s.store, filepath.Join(dir, "bus")), lake: or(s.lake, filepath.Join(dir, "lake")),
		witness: filepath.Join(dir, "witness"), bus: freeAddress(t), http: freeAddress(t),
		config: filepath.Join(dir, "sonde.yaml")}
	// A unix socket's path is at most about 100 bytes long, which a long test name breaks.
	sockets, err := os.MkdirTemp("", "edge")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	r.socket = filepath.Join(sockets, "s")
	text := fmt.Sprintf(configText, filepath.Join(dir, "dead"), r.store, r.lake, r.socket, r.http,
		or(s.rules, `    - {name: every row, hooks: ["*"]}`), s.more, r.bus)
	if err := os.WriteFile(r.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	r.run = fleet.NewProcess("run", dir, bin, "run", "--config", r.config)
	t.Cleanup(func() {
		for _, p := range []*fleet.Process{r.engine, r.run} {
			if p != nil && p.Running() {
				_ = p.Kill() // The test gave up.
			}
		}
		if t.Failed() {
			t.Logf("log of the pipeline:\n%s", tail(r.log("run"), 6000))
		}
	})
	return r
}

func tail(text string, n int) string { return text[max(0, len(text)-n):] }

var addresses atomic.Uint32

// freeAddress is a loopback address that no other test of this process has: tests
// that run at the same time must not take each other's ports.
func freeAddress(t *testing.T) string {
	t.Helper()
	n := addresses.Add(1)
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.%d.%d:0", 1+n/200, 1+n%200))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start starts the pipeline and waits until it is ready.
func (r *rig) start() {
	r.Helper()
	if err := r.run.Start(); err != nil {
		r.Fatal(err)
	}
	r.await("ready pipeline", func() bool { return r.ready() == "ready\n" })
}

// startEngine starts an engine of few hooks and waits until it answers.
func (r *rig) startEngine(args ...string) {
	r.Helper()
	bin, err := sondeBinary()
	if err != nil {
		r.Fatal(err)
	}
	address := freeAddress(r.T)
	r.engineURL = "http://" + address
	all := []string{"engine", "--model", "arithmetic", "--listen", address, "--ring-socket", r.socket, "--state-dir",
		filepath.Join(r.dir, "state"), "--witness", r.witness, "--step-delay", "8ms", "--hooks",
		"token_ids,resid_post,z"}
	r.engine = fleet.NewProcess("engine", r.dir, bin, append(all, args...)...)
	if err := r.engine.Start(); err != nil {
		r.Fatal(err)
	}
	r.await("engine that answers", func() bool { return get(r.engineURL+"/healthz") != "" })
}

// load sends requests until stop is called, which waits for them.
func (r *rig) load() (stop func()) {
	seed := rand.Uint64()
	r.Logf("seed of the requests %d", seed)
	l := &fleet.Load{Rand: rand.New(rand.NewPCG(seed, 1)), Clients: 2, Prefixes: 2, PrefixMax: 12, SuffixMax: 6,
		MaxTokens: 24, SampleMax: 2, AbortOneIn: 9, Vocab: 512}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.Run(ctx, func() string { return r.engineURL }); close(done) }()
	return func() { cancel(); <-done }
}

const patience = 40 * time.Second

// await waits for something to happen; how long it takes is nobody's business.
func (r *rig) await(what string, happened func() bool) {
	r.Helper()
	for deadline := time.Now().Add(patience); !happened(); time.Sleep(20 * time.Millisecond) {
		for _, p := range []*fleet.Process{r.run, r.engine} {
			if p != nil && p.Starts() > 0 && !p.Running() {
				r.Fatalf("wait for %s: %s ended by itself: %s", what, p.Name, tail(r.log(p.Name), 2000))
			}
		}
		if time.Now().After(deadline) {
			r.Fatalf("wait for %s: not within %v; /readyz says %q", what, patience, r.ready())
		}
	}
}

// get is the body of an answer, whatever its status, "" when there is none.
func get(url string) string {
	resp, err := http.Get(url)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body) // What was cut off is not what a test waits for.
	return string(text)
}

func (r *rig) ready() string { return get("http://" + r.http + "/readyz") }

// metrics reads each series as it is written, and the sum of a name's series.
func metrics(url string) map[string]float64 {
	out := map[string]float64{}
	for scan := bufio.NewScanner(strings.NewReader(get(url))); scan.Scan(); {
		series, text, ok := strings.Cut(scan.Text(), " ")
		v, err := strconv.ParseFloat(text, 64)
		if !ok || err != nil || strings.HasPrefix(series, "#") {
			continue
		}
		out[series] += v
		if name, _, labels := strings.Cut(series, "{"); labels {
			out[name] += v
		}
	}
	return out
}

func (r *rig) agent() map[string]float64 { return metrics("http://" + r.http + "/metrics") }

// acknowledged is how many rows the bus has taken.
func (r *rig) acknowledged() float64 {
	n := 0.0
	for series, v := range r.agent() {
		if strings.HasPrefix(series, "sonde_producer_rows_total{") && strings.Contains(series, `class="acknowledged"`) {
			n += v
		}
	}
	return n
}

// stored is how many rows of tokens and vectors the lake has.
func (r *rig) stored() float64 {
	const series = `sonde_materializer_rows_stored_total{table="%s"}`
	m := r.agent()
	return m[fmt.Sprintf(series, "vectors")] + m[fmt.Sprintf(series, "tokens")]
}

func (r *rig) dropped() float64 {
	return metrics(r.engineURL + "/metrics")["sonde_engine_ring_dropped_rows_total"]
}

// log is what a process has written so far.
func (r *rig) log(name string) string {
	text, err := os.ReadFile(filepath.Join(r.dir, name+".log"))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// lines counts the lines of the pipeline's log that hold a text.
func (r *rig) lines(text string) int { return strings.Count(r.log("run"), text) }

// judge ends engine and pipeline, and accounts for every row: exactly once in the
// lake with the bytes that the engine computed, or named.
func (r *rig) judge() *account.Account {
	r.Helper()
	if err := r.engine.Stop(patience); err != nil {
		r.Fatal(err)
	}
	a, err := oracle.AwaitRest(r.Context(), r.lake, r.witness, patience)
	if err != nil {
		r.Fatal(err)
	}
	laws := oracle.LawsOf(r.agent(), a, 0)
	if r.run.Starts() > 1 || r.replayed {
		laws.Stored = laws.Acknowledged // The agent counts its own rows; the lake has those before it, too.
	}
	if err := laws.Err(); err != nil {
		r.Error(err)
	}
	r.end()
	var page bytes.Buffer
	if _, err := oracle.CompareWithWitness(r.Context(), &page, r.lake, r.witness); err != nil {
		r.Errorf("%v\n%s", err, &page)
	}
	r.verify()
	return a
}

// end stops the pipeline in order.
func (r *rig) end() {
	r.Helper()
	if err := r.run.Stop(patience); err != nil {
		r.Fatal(err)
	}
}

// verify has sonde judge its own lake, and returns the account.
func (r *rig) verify() *account.Account {
	r.Helper()
	if out, code := sonde(r.T, "lake", "verify", "--lake", r.lake); code != 0 {
		r.Errorf("sonde lake verify ended with %d:\n%s", code, out)
	}
	l, err := lakehouse.Open(r.lake)
	if err != nil {
		r.Fatal(err)
	}
	a, err := l.Account(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	return a
}

// sonde runs one command to its end.
func sonde(t *testing.T, args ...string) (output string, code int) {
	t.Helper()
	bin, err := sondeBinary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}
