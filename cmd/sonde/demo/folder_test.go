package demo

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFolderOfSomebodyElseIsRefused(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(dir, "thesis.txt")
	if err := os.WriteFile(precious, []byte("years of work"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := openFolder(dir); err == nil || !strings.Contains(err.Error(), "--out") {
		t.Errorf("a folder with other files: error %v", err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Errorf("the refused folder changed: %v", err)
	}
}

func TestFolderOfADemoStartsFreshAndOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	f, err := openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"report.json", "bus", "witness"} {
		if err := os.WriteFile(f.path(name), []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := openFolder(dir); err == nil || !strings.Contains(err.Error(), "another demo") {
		t.Errorf("a folder in use: error %v", err)
	}
	if err := f.close(false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f.path("bus")); err == nil {
		t.Error("close left the bus behind")
	}
	if _, err := os.Stat(f.path("report.json")); err != nil {
		t.Errorf("close removed the report: %v", err)
	}
	f, err = openFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close(true)
	if _, err := os.Stat(f.path("report.json")); err == nil {
		t.Error("a new run still shows the last run's report")
	}
}

// TestMain lets this test binary play the engine: a child that starts it with
// SONDE_TEST_SLEEPER set only speaks and sleeps.
func TestMain(m *testing.M) {
	if os.Getenv("SONDE_TEST_SLEEPER") != "" {
		os.Stderr.WriteString("first\nlast words\n")
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

// Whatever ends the demo ends the engine.
func TestChildDiesWithItsContext(t *testing.T) {
	t.Setenv("SONDE_TEST_SLEEPER", "1")
	ctx, cancel := context.WithCancel(context.Background())
	c, err := startChild(ctx, filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(c.lastWords(), "last words") {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-c.exited // The test's own time limit is the bound.
}

func TestLengthFillsTheTime(t *testing.T) {
	if n := lengthFor(20, 30*time.Second, 10000, 32); n < 400 || n > 600 {
		t.Errorf("20 steps/s for 30 s: %d tokens each", n)
	}
	if n := lengthFor(20, 30*time.Second, 200, 32); n != 200 {
		t.Errorf("the context length bounds it: %d", n)
	}
	if n := lengthFor(1, time.Second, 200, 32); n != minTokens {
		t.Errorf("a slow machine still shows something: %d", n)
	}
}
