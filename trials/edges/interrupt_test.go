package edges

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sonde/consumers/detector"
	"sonde/lakehouse"
)

// interrupts sends Ctrl-C to commands at moments that its seed chooses.
type interrupts struct {
	*testing.T
	bin  string
	r    *rand.Rand
	seed uint64
	cut  int // commands that did not come to their own end
}

func newInterrupts(t *testing.T) *interrupts {
	t.Helper()
	bin, err := sondeBinary()
	if err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	if text := os.Getenv("SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	return &interrupts{T: t, bin: bin, r: rand.New(rand.NewPCG(seed, 0)), seed: seed}
}

// run starts a command and interrupts it within a time, with twice a second time
// before it may have ended. It must then end, and with a code that says so.
func (i *interrupts) run(within time.Duration, twice bool, args ...string) {
	i.Helper()
	after, again := time.Duration(i.r.Int64N(int64(within))), time.Duration(i.r.Int64N(int64(20*time.Millisecond)))
	cmd := exec.Command(i.bin, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		i.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var err error
	ended := false
	wait := func(d time.Duration) {
		if !ended {
			select {
			case err = <-done:
				ended = true
			case <-time.After(d):
			}
		}
	}
	for _, pause := range []time.Duration{after, again}[:1+b2i(twice)] {
		if wait(pause); !ended {
			_ = cmd.Process.Signal(os.Interrupt) // It may have ended in between.
		}
	}
	if wait(patience); !ended {
		_ = cmd.Process.Signal(syscall.SIGQUIT) // Go says then where it hangs.
		err = <-done
		i.Fatalf("seed %d: %v, interrupted after %v, did not end: %v\n%s", i.seed, args, after, err, tail(out.String(), 4000))
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		i.cut++
	}
	// Before the program listens for it, and the second time, the signal itself ends it.
	killed := status.Signaled() && status.Signal() == syscall.SIGINT
	if code := status.ExitStatus(); !killed && code != 0 && code != 130 {
		i.Errorf("seed %d: %v, interrupted after %v, ended with %d:\n%s", i.seed, args, after, code, &out)
	}
	if text := out.String(); strings.Contains(text, "goroutine ") || strings.Contains(text, "panic") {
		i.Errorf("seed %d: %v, interrupted after %v, showed a stack:\n%s", i.seed, args, after, text)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Whoever reads the ring may be stopped at any moment, and the next one goes on:
// what the recordings and the pipelines together have kept is everything.
func TestCtrlCOfRunRecordAndReplayAtAnyMomentLosesNoRow(t *testing.T) {
	t.Parallel()
	i := newInterrupts(t)
	r := newRig(t, setup{})
	dir := filepath.Join(r.dir, "recording")
	r.startEngine("--step-delay", "15ms")
	stop := r.load()
	for n := range 6 {
		i.run(500*time.Millisecond, n%3 == 2, "record", "--socket", r.socket, "--out", dir)
		i.run(700*time.Millisecond, n%3 == 1, "run", "--config", r.config)
		if _, err := lakehouse.Open(r.lake); err == nil && n%2 == 1 {
			r.verify()
		}
	}
	stop()
	for n := range 5 {
		i.run(400*time.Millisecond, n%3 == 1, "replay", dir, "--config", r.config)
	}
	r.verify()
	r.goOnAfter(dir)
	r.judge()
	if i.cut == 0 {
		t.Error("no command was cut short: nothing was tried")
	}
}

// A file or a folder that somebody asked for is there as a whole, or not at all.
func TestCtrlCOfTensorAndTrainingLeavesNothingHalfWritten(t *testing.T) {
	t.Parallel()
	i := newInterrupts(t)
	r := newRig(t, setup{})
	r.start()
	r.startEngine("--step-delay", "0s")
	for n := range 30 {
		r.complete(fmt.Sprintf(`{"prompt": [%d, 7, 9], "max_tokens": 40, "sonde": {"request_id": "q%d",
			"labels": {"odd": "%d"}}}`, 1+n, n, n%2))
	}
	r.judge()
	whole := filepath.Join(r.dir, "whole.npy")
	began := time.Now()
	if out, code := sonde(t, "lake", "tensor", "q3", "resid_post", "1", "--lake", r.lake, "--out", whole); code != 0 {
		t.Fatalf("lake tensor ended with %d: %s", code, out)
	}
	took := time.Since(began)
	want, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 8 {
		out := filepath.Join(r.dir, "tensors", fmt.Sprint(n), "out.npy")
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			t.Fatal(err)
		}
		i.run(took, n%4 == 3, "lake", "tensor", "q3", "resid_post", "1", "--lake", r.lake, "--out", out)
		if got, err := os.ReadFile(out); err == nil && !bytes.Equal(got, want) {
			t.Errorf("a tensor of %d bytes is there; the whole one has %d", len(got), len(want))
		}
		if left, _ := os.ReadDir(filepath.Dir(out)); n%4 != 3 && len(left) > 1 {
			t.Errorf("one Ctrl-C left %v", left)
		}
	}
	train := []string{"detect", "train", "--lake", r.lake, "--layer", "1", "--positive", "odd=1", "--name", "odd", "--out"}
	began = time.Now()
	if out, code := sonde(t, append(train, filepath.Join(r.dir, "bundle"))...); code != 0 {
		t.Fatalf("detect train ended with %d: %s", code, out)
	}
	took = time.Since(began)
	for n := range 8 {
		out := filepath.Join(r.dir, fmt.Sprintf("bundle%d", n))
		i.run(took, n%4 == 3, append(train, out)...)
		if _, err := os.Stat(out); err == nil {
			if _, err := detector.Load(out); err != nil {
				t.Errorf("half a bundle is there: %v", err)
			}
		}
	}
	if i.cut == 0 {
		t.Error("no command was cut short: nothing was tried")
	}
}

// complete has the engine answer one request.
func (r *rig) complete(body string) {
	r.Helper()
	resp, err := http.Post(r.engineURL+"/v1/completions", "application/json", strings.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		r.Fatalf("the engine answered %s: %s", resp.Status, text)
	}
}

// The demo has an engine, a pipeline and reports; whatever moment it is, nothing may
// look finished that is not.
func TestCtrlCOfTheDemoLeavesALakeThatVerifiesAndNoHalfReport(t *testing.T) {
	t.Parallel()
	i := newInterrupts(t)
	model, bundle := "../../models/trilingual", "../../detectors/german"
	for n, within := range []time.Duration{300 * time.Millisecond, 1500 * time.Millisecond, 3 * time.Second} {
		out := filepath.Join(t.TempDir(), "demo")
		i.run(within, n == 2, "demo", "--out", out, "--model", model, "--detector", bundle, "--requests", "12", "--target",
			"3s")
		lake := filepath.Join(out, "lake")
		if _, err := lakehouse.Open(lake); err == nil {
			if text, code := sonde(t, "lake", "verify", "--lake", lake); code != 0 {
				t.Errorf("the lake of an interrupted demo: exit code %d\n%s", code, text)
			}
		}
		for _, name := range []string{"report.json", "report.html"} {
			if _, err := os.Stat(filepath.Join(out, name)); err == nil {
				t.Errorf("a demo of 3 s that was cut off after less than %v has %s", within, name)
			}
		}
	}
}
