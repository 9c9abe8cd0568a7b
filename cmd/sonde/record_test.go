package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sonde/recording"
	"sonde/ring2"
)

// Whoever stops a recorder with Ctrl-C wants to replay what it has.
func TestInterruptLeavesACompleteRecording(t *testing.T) {
	dir := t.TempDir()
	socket, out := filepath.Join(dir, "s"), filepath.Join(dir, "recording")
	var stdout, stderr bytes.Buffer
	code := make(chan int, 1)
	go func() { code <- run([]string{"record", "--socket", socket, "--out", out}, &stdout, &stderr) }()
	w, err := ring2.NewWriter(ring2.WriterOptions{Socket: socket, EngineInstance: "e",
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = w.Close(ended) // nobody reads its goodbye
	}()
	if err := w.OpenRequest(ring2.RequestOpen{Number: 1, ExternalID: "r"}); err != nil {
		t.Fatal(err)
	}
	for s := w.Stats(); s.Release != 1 && t.Context().Err() == nil; s = w.Stats() {
		time.Sleep(time.Millisecond)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil { // the recorder listens, so it handles the signal
		t.Fatal(err)
	}
	if got := <-code; got != exitOK || !strings.Contains(stdout.String(), "recorded 1 records of 1 sessions") {
		t.Errorf("exit code %d\n%s%s", got, stdout.String(), stderr.String())
	}
	r, err := recording.Open(out)
	if err != nil || r.Sessions[0].End.Reason != recording.ReasonStopped || r.Sessions[0].Total() != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	stdout.Reset()
	if got := run([]string{"replay", out, "--info"}, &stdout, &stderr); got != exitOK ||
		!strings.Contains(stdout.String(), "1 request_open") {
		t.Errorf("exit code %d\n%s%s", got, stdout.String(), stderr.String())
	}
}

// A command line that makes no sense must say so before anything is touched.
func TestRecordReplayAndTapRefuseWrongFlags(t *testing.T) {
	for line, want := range map[string]string{
		"record":                                `required flag(s) "out"`,
		"record --out x --max-bytes 5":          "at least 1MiB",
		"record --out x --max-bytes much":       "max-bytes",
		"replay":                                "write sonde replay DIR",
		"replay x --speed slow":                 "use max or real",
		"tap ring --layer x":                    "--layer",
		"tap ring --hook [":                     "is no pattern",
		"tap ring --rate 0":                     "--rate 0",
		"tap ring --interval 1ms":               "--interval 1ms",
		"tap ring --request a b":                "write sonde tap ring;",
		"replay " + t.TempDir() + " --config x": "x",
	} {
		var stdout, stderr bytes.Buffer
		code := run(strings.Fields(line), &stdout, &stderr)
		if code != exitUsage || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: exit code %d, %s", line, code, stderr.String())
		}
	}
	var stdout, stderr bytes.Buffer
	if code := run([]string{"tap", "ring", "--pid", fmt.Sprint(os.Getppid())}, &stdout, &stderr); code != exitFailed ||
		!strings.Contains(stderr.String(), "find a ring") {
		t.Errorf("a process without a ring: exit code %d, %s", code, stderr.String())
	}
}
