package fleet

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sonde/config"
)

// sleeper is a child that says it is ready and then waits; with deaf it ignores
// SIGTERM.
func sleeper(t *testing.T, deaf bool) *Process {
	t.Helper()
	dir := t.TempDir()
	trap := ""
	if deaf {
		trap = "trap '' TERM; "
	}
	p := NewProcess("sleeper", dir, "/bin/sh", "-c", trap+"echo ready; while :; do sleep 0.05; done")
	t.Cleanup(func() {
		if p.Running() {
			_ = p.Kill()
		}
	})
	start(t, p)
	return p
}

func start(t *testing.T, p *Process) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); p.Tail() != "ready"; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the child never got ready: %q", p.Tail())
		}
	}
}

func TestAKilledChildIsGoneAndStartsAgain(t *testing.T) {
	p := sleeper(t, false)
	if err := p.Start(); err == nil {
		t.Error("a running child was started a second time")
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if p.Running() {
		t.Error("a killed child still runs")
	}
	start(t, p)
	if !p.Running() || p.Starts() != 2 {
		t.Errorf("running %v after %d starts", p.Running(), p.Starts())
	}
}

func TestAStoppedChildCanBeKilled(t *testing.T) {
	p := sleeper(t, false)
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil || p.Running() {
		t.Errorf("kill of a stopped child: %v, running %v", err, p.Running())
	}
}

func TestAChildThatIgnoresSIGTERMIsKilledAndReported(t *testing.T) {
	p := sleeper(t, true)
	err := p.Stop(50 * time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "ignored SIGTERM") || p.Running() {
		t.Errorf("stop: %v, running %v", err, p.Running())
	}
	p = sleeper(t, false)
	if err := p.Stop(10 * time.Second); err != nil || p.Running() {
		t.Errorf("stop: %v, running %v", err, p.Running())
	}
	if err := p.Stop(time.Second); err != nil {
		t.Errorf("stop of a child that is gone: %v", err)
	}
}

func TestAChildThatNeverStartedIsNoPanic(t *testing.T) {
	p := NewProcess("none", t.TempDir(), "/nonexistent/binary")
	if err := p.Start(); err == nil || p.Running() {
		t.Errorf("start: %v, running %v", err, p.Running())
	}
	if p.Signal(syscall.SIGTERM) == nil || p.Kill() == nil || p.Stop(time.Second) != nil || p.Wait(time.Second) != nil {
		t.Error("a child that never started was signalled, or its stop failed")
	}
}

func TestThePipelinesConfigurationIsValid(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "trial")
	p, err := NewPipeline(Options{Binary: "sonde", Dir: dir, CommitMS: 200})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{p.Config, p.agentConfig} {
		conf, err := config.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		if conf.Materializer.Lake != p.Lake || conf.Policy.Rules[0].Hooks[0] != "*" {
			t.Errorf("%s: lake %s, hooks %v", file, conf.Materializer.Lake, conf.Policy.Rules[0].Hooks)
		}
	}
	if info, err := os.Stat(p.State); err != nil || !info.IsDir() {
		t.Errorf("state folder: %v", err)
	}
}

// A pipeline of two processes is started, watched and stopped like one of four.
func TestAWholePipelineIsTwoProcesses(t *testing.T) {
	p, err := NewPipeline(Options{Binary: "sonde", Dir: filepath.Join(t.TempDir(), "trial"), Whole: true,
		Detector: "detectors/german"})
	if err != nil {
		t.Fatal(err)
	}
	conf, err := config.Load(p.agentConfig)
	if err != nil {
		t.Fatal(err)
	}
	if len(conf.Detectors) != 1 || conf.Detectors[0].Bundle != "detectors/german" {
		t.Errorf("detectors %+v", conf.Detectors)
	}
	p.Agent, p.Engine = sleeper(t, false), sleeper(t, false)
	if err := p.Died(); err != nil {
		t.Error(err)
	}
	if err := p.StopAll(); err != nil || p.Agent.Running() || p.Engine.Running() {
		t.Errorf("stop: %v", err)
	}
	p.KillAll()
}

func TestADeadChildOfThePipelineIsNamed(t *testing.T) {
	p := &Pipeline{Bus: sleeper(t, false), Agent: sleeper(t, false), Materializer: sleeper(t, false),
		Engine: sleeper(t, false)}
	if err := p.Died(); err != nil {
		t.Error(err)
	}
	if err := p.Agent.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Died(); err == nil || !strings.Contains(err.Error(), "died by itself; its last words: ready") {
		t.Errorf("of a dead agent: %v", err)
	}
}

func TestMetricsAreReadByNameAndBySeries(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("# HELP x\na_total{r=\"x\"} 2\na_total{r=\"y\"} 3e2\nring2_rows 7\nh{le=\"+Inf\"} NaN\n"))
	}))
	defer server.Close()
	m, err := Metrics(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]float64{"a_total": 302, `a_total{r="x"}`: 2, "ring2_rows": 7} {
		if m[name] != want {
			t.Errorf("%s is %v, want %v", name, m[name], want)
		}
	}
}

// A load whose requests all look alike would provoke nothing.
func TestTheLoadProvokesEverything(t *testing.T) {
	l := &Load{Rand: rand.New(rand.NewPCG(1, 1)), Prefixes: 3, PrefixMax: 30, SuffixMax: 10, MaxTokens: 20, SampleMax: 3,
		AbortOneIn: 5, Vocab: 512}
	prefixes, ids, samples, aborts := map[int32]bool{}, map[string]bool{}, map[int]bool{}, 0
	for n := range int64(300) {
		body, id, abort := l.request(n)
		var c completion
		if err := json.Unmarshal(body, &c); err != nil {
			t.Fatal(err)
		}
		if c.Sonde["request_id"] != id || len(c.Prompt) == 0 || c.MaxTokens < 1 || c.MaxTokens > 20 {
			t.Errorf("request %s: %s", id, body)
		}
		ids[id], samples[c.N] = true, true
		if len(c.Prompt) > 10 {
			prefixes[c.Prompt[0]] = true
		}
		if abort > 0 {
			aborts++
		}
	}
	if len(ids) != 300 || len(samples) != 3 || len(prefixes) < 3 || aborts < 20 {
		t.Errorf("%d ids, %d sample counts, %d prefixes, %d aborts", len(ids), len(samples), len(prefixes), aborts)
	}
}
