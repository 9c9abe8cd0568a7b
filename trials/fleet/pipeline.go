package fleet

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Pipeline is one engine and the roles of `sonde run`, each a process of its own
// or all in one, on loopback addresses and folders below Dir.
type Pipeline struct {
	Dir, Lake, State, Witness, Config string
	Engine, Agent, Materializer, Bus  *Process // with Options.Whole, Agent is all roles and the last two are nil

	engineAddress, agentAddress, busAddress, agentConfig string
}

// Options of a pipeline.
type Options struct {
	Binary     string   // path of the sonde binary
	Dir        string   // everything the pipeline writes goes below it
	EngineArgs []string // further flags of `sonde engine`
	Rules      string   // YAML of policy.rules; empty keeps every hook of every token
	CommitMS   int
	LingerMS   int    // of the agent; 0 is 50
	Whole      bool   // one process runs all roles, the detector included
	Detector   string // bundle that the detector runs; "" is none
	Mode       string // policy.mode; "" is best_effort
	AgentKeys  string // further lines of YAML below agent
	StreamKeys string // of the embedded bus; "" is a stream of 64 MiB that keeps 16
}

const everyRow = `    - {name: every row, hooks: ["*"]}
`

const configTemplate = `bus:
  embedded: {store_dir: %[1]s/bus, listen: "%[2]s", %[8]s}
agent:
  socket: %[3]s
  linger_ms: %[11]d
  dead_letter: {dir: %[1]s/dead-letter/agent}
%[9]spolicy:
  mode: %[10]s
  rules:
%[4]smaterializer:
  lake: %[1]s/lake
  commit_interval_ms: %[5]d
  dead_letter_dir: %[1]s/dead-letter/materializer
http: {listen: "%[6]s"}
%[7]s`

// NewPipeline writes the configuration and describes the processes; it starts
// none.
func NewPipeline(o Options) (*Pipeline, error) {
	p := &Pipeline{Dir: o.Dir, Lake: filepath.Join(o.Dir, "lake"), State: filepath.Join(o.Dir, "engine-state"),
		Witness: filepath.Join(o.Dir, "witness"), Config: filepath.Join(o.Dir, "sonde.yaml")}
	for _, dir := range []string{p.Dir, p.State, p.Witness} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make the folder of the trial: %w", err)
		}
	}
	var addresses [3]string
	for i := range addresses {
		address, err := FreeAddress()
		if err != nil {
			return nil, err
		}
		addresses[i] = address
	}
	p.engineAddress, p.agentAddress, p.busAddress = addresses[0], addresses[1], addresses[2]
	rules := o.Rules
	if rules == "" {
		rules = everyRow
	}
	detectors := ""
	if o.Detector != "" {
		detectors = fmt.Sprintf("detectors:\n- {bundle: %q, mode: alert}\n", o.Detector)
	}
	// A unix socket's path is at most 107 bytes long, which a deep folder breaks.
	socket := filepath.Join(os.TempDir(), fmt.Sprintf("sonde-trial-%d.sock", os.Getpid()))
	// Only the agent serves metrics: the roles share one machine, and so its ports.
	p.agentConfig = filepath.Join(o.Dir, "agent.yaml")
	for file, http := range map[string]string{p.Config: "", p.agentConfig: p.agentAddress} {
		text := fmt.Sprintf(configTemplate, o.Dir, p.busAddress, socket, rules, max(o.CommitMS, 10), http, detectors,
			cmp.Or(o.StreamKeys, "max_bytes: 64MiB, retain_bytes: 16MiB"), o.AgentKeys, cmp.Or(o.Mode, "best_effort"),
			cmp.Or(o.LingerMS, 50))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("write the configuration of the trial: %w", err)
		}
	}
	role := func(name, config string) *Process {
		return NewProcess(name, o.Dir, o.Binary, "run", "--config", config, "--role", name)
	}
	if o.Whole {
		p.Agent = NewProcess("run", o.Dir, o.Binary, "run", "--config", p.agentConfig)
	} else {
		p.Bus, p.Agent = role("bus", p.Config), role("agent", p.agentConfig)
		p.Materializer = role("materializer", p.Config)
	}
	args := append([]string{"engine", "--model", "arithmetic", "--listen", p.engineAddress, "--ring-socket", socket,
		"--state-dir", p.State, "--witness", p.Witness}, o.EngineArgs...)
	p.Engine = NewProcess("engine", o.Dir, o.Binary, args...)
	return p, nil
}

// EngineURL is the base address of the engine's HTTP interface.
func (p *Pipeline) EngineURL() string { return "http://" + p.engineAddress }

// BusURL is where the broker of the pipeline listens.
func (p *Pipeline) BusURL() string { return "nats://" + p.busAddress }

// children are the processes in the order of their start.
func (p *Pipeline) children() []*Process {
	all := []*Process{p.Bus, p.Agent, p.Materializer, p.Engine}
	return slices.DeleteFunc(all, func(c *Process) bool { return c == nil })
}

// Start starts all processes and waits until the engine answers.
func (p *Pipeline) Start(ctx context.Context) error {
	for _, child := range p.children() {
		if err := child.Start(); err != nil {
			return err
		}
	}
	return p.WaitEngine(ctx, 30*time.Second)
}

// WaitEngine waits until the engine answers on its health address.
func (p *Pipeline) WaitEngine(ctx context.Context, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		resp, err := http.Get(p.EngineURL() + "/healthz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("the engine did not answer within %v; its last words: %s", limit, p.Engine.Tail())
}

// Died is an error when a process that should run does not.
func (p *Pipeline) Died() error {
	for _, child := range p.children() {
		if !child.Running() {
			return fmt.Errorf("%s died by itself; its last words: %s", child.Name, child.Tail())
		}
	}
	return nil
}

// StopAll stops whatever still runs, consumers last, so that what was captured
// still arrives.
func (p *Pipeline) StopAll() error {
	for _, child := range []*Process{p.Engine, p.Agent, p.Materializer, p.Bus} {
		if child == nil {
			continue
		}
		if err := child.Stop(60 * time.Second); err != nil {
			return err
		}
	}
	return nil
}

// KillAll kills whatever still runs; for a trial that is given up.
func (p *Pipeline) KillAll() {
	for _, child := range p.children() {
		if child.Running() {
			_ = child.Kill()
		}
	}
}

var metricLine = regexp.MustCompile(`^([a-z0-9_]+)(\{[^}]*\})? ([0-9.eE+-]+)$`)

// EngineMetrics reads the engine's metrics, as Metrics does.
func (p *Pipeline) EngineMetrics() (map[string]float64, error) {
	return Metrics(p.EngineURL() + "/metrics")
}

// AgentMetrics reads the agent's metrics, as Metrics does.
func (p *Pipeline) AgentMetrics() (map[string]float64, error) {
	return Metrics("http://" + p.agentAddress + "/metrics")
}

// Metrics reads each series by its name with its labels as written, like
// name{outcome="stopped"}, and the sum of all series of a name by the name alone.
func Metrics(url string) (map[string]float64, error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	defer resp.Body.Close()
	out := map[string]float64{}
	scan := bufio.NewScanner(resp.Body)
	for scan.Scan() {
		m := metricLine.FindStringSubmatch(strings.TrimSpace(scan.Text()))
		if m == nil {
			continue
		}
		if v, err := strconv.ParseFloat(m[3], 64); err == nil {
			out[m[1]] += v
			if m[2] != "" {
				out[m[1]+m[2]] = v
			}
		}
	}
	return out, scan.Err()
}

// FreeAddress is a loopback address on which nobody listens now.
func FreeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}
