package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sonde/bus"
	"sonde/config"
	"sonde/internal/notrun"
	"sonde/lakehouse/commitlog"
)

var update = flag.Bool("update", false, "rewrite the golden output in testdata")

// The machine differs from run to run, so what it says is judged on made-up figures.
func TestEachFindingSaysWhatToDo(t *testing.T) {
	c := config.Default()
	broker := func(change func(*bus.Broker)) []Finding {
		b := bus.Broker{MaxPayload: 32 << 20, Stream: &bus.StreamInfo{Name: "SONDE", Messages: 7, Bytes: 3 << 20,
			MaxBytes: 8 << 30}}
		change(&b)
		return brokerLimits(&c, &b)
	}
	var out bytes.Buffer
	for _, list := range [][]Finding{
		{hugePages("always within_size advise [never] deny force\n", nil)},
		{hugePages("always [within_size] advise never deny force\n", nil)},
		{hugePages("", errors.New("no such file"))},
		{hugePages("\x1b[2J nonsense [", nil)},
		{filesFinding(100), filesFinding(256), filesFinding(400), filesFinding(1024), filesFinding(1 << 62)},
		{clockFinding(time.Hour, nil, 0, 0), clockFinding(-time.Second, nil, 0, 0),
			clockFinding(0, nil, 0, 200*time.Microsecond), clockFinding(0, nil, unsynchronised, 0),
			clockFinding(0, errors.New("operation not permitted"), 0, 0)},
		{spaceFinding([]string{"b", "a"}, 100<<30, 12<<30), spaceFinding([]string{"a"}, 5<<30, 12<<30),
			spaceFinding([]string{"a"}, 1<<20, 0)},
		{speedFinding("d", speed{300 * time.Microsecond, 500 << 20}, true),
			speedFinding("d", speed{time.Second, 500 << 20}, true), speedFinding("d", speed{time.Second, 500 << 20}, false),
			speedFinding("d", speed{time.Millisecond, 1 << 20}, true)},
		broker(func(*bus.Broker) {}),
		broker(func(b *bus.Broker) { b.MaxPayload, b.Stream = 1<<20, nil }),
		broker(func(b *bus.Broker) { b.MaxPayload = 256 << 10 }),
		broker(func(b *bus.Broker) { b.MaxMsgSize = 64 << 10 }),
		broker(func(b *bus.Broker) { b.Losses = []string{"discard is old, not new", "max_age is 1h, not 0"} }),
		broker(func(b *bus.Broker) { b.Stream.Bytes = b.Stream.MaxBytes - 1 }),
		broker(func(b *bus.Broker) { b.MaxMsgs = 7; b.Stream.MaxBytes = 0 }),
		broker(func(b *bus.Broker) { b.Stream.MaxBytes = 0 }),
	} {
		for _, f := range list {
			if f.Level != OK && f.Do == "" {
				t.Errorf("%s does not say what to do: %s", f.Check, f.Found)
			}
			if err := f.write(&out, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := filepath.Join("testdata", "findings.txt")
	if *update {
		if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || out.String() != string(want) {
		t.Errorf("%v: got\n%s\nwant\n%s", err, out.String(), want)
	}
}

// testConfig is one whose folders do not exist yet and whose addresses are free.
func testConfig(t *testing.T) config.Config {
	t.Helper()
	dir, c := t.TempDir(), config.Default()
	c.Bus.Embedded.StoreDir, c.Bus.Embedded.Listen = filepath.Join(dir, "data", "bus"), free(t)
	c.Bus.Embedded.MaxBytes = 16 << 20
	c.Agent.Socket, c.Agent.DeadLetter.Dir = filepath.Join(dir, "s"), filepath.Join(dir, "dead")
	c.Materializer.Lake, c.Materializer.DeadLetterDir = filepath.Join(dir, "lake"), filepath.Join(dir, "dead2")
	c.HTTP.Listen = free(t)
	return c
}

func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// examine returns the findings of each check.
func examine(t *testing.T, c config.Config) (map[string][]Finding, int) {
	t.Helper()
	var out bytes.Buffer
	failed, err := Examine(t.Context(), Options{Config: c, Name: "test.yaml", JSON: true, Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]Finding{}
	for line := range strings.Lines(out.String()) {
		var f Finding
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		found[f.Check] = append(found[f.Check], f)
	}
	return found, failed
}

// must fails when no finding of a check has the level and the words.
func must(t *testing.T, list []Finding, level, words string) {
	t.Helper()
	for _, f := range list {
		if f.Level == level && strings.Contains(f.Found, words) {
			return
		}
	}
	t.Errorf("no finding is %s with %q: %+v", level, words, list)
}

func TestNothingIsLeftBehind(t *testing.T) {
	c := testConfig(t)
	found, _ := examine(t, c)
	must(t, found["bus"], OK, "sonde run starts it")
	must(t, found["lake"], OK, "no lake yet")
	must(t, found["socket"], OK, "is free")
	must(t, found["http"], OK, "is free")
	entries, err := os.ReadDir(filepath.Dir(c.Agent.Socket))
	if err != nil || len(entries) > 0 {
		t.Errorf("the examination left %v, %v", entries, err)
	}
}

func TestEachFaultIsFound(t *testing.T) {
	c := testConfig(t)
	log := filepath.Join(c.Materializer.Lake, commitlog.Folder)
	if err := os.MkdirAll(log, 0o755); err != nil {
		t.Fatal(err)
	}
	torn := filepath.Join(log, fmt.Sprintf("%020d.json", 1))
	if err := os.WriteFile(torn, []byte("torn"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{c.Agent.Socket, c.Agent.DeadLetter.Dir} {
		if err := os.WriteFile(file, []byte("not what it should be"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c.Bus.Embedded.Listen = taken.Addr().String()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	c.HTTP.Listen = other.Listener.Addr().String()
	c.Detectors = []config.Detector{{Bundle: t.TempDir(), Mode: "alert"}}
	found, failed := examine(t, c)
	must(t, found["socket"], Fail, "no socket")
	must(t, found["disk"], Fail, "is no folder")
	must(t, found["http"], Fail, "in use")
	must(t, found["lake"], Fail, "0000001.json")
	must(t, found["bus"], Fail, "cannot be used")
	must(t, found["detectors"], Fail, "detector.yaml")
	if failed < 6 {
		t.Errorf("%d findings fail; want at least 6", failed)
	}
}

func TestALongSocketPathFails(t *testing.T) {
	must(t, socket("/tmp/"+strings.Repeat("x", 100)), Fail, "at most 103")
}

func TestAFolderOfOthersFails(t *testing.T) {
	if os.Geteuid() == 0 {
		notrun.Mark(t, "root may write everywhere")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	must(t, socket(filepath.Join(dir, "s")), Fail, "not writable")
}

func TestARunningServerIsNotAFault(t *testing.T) {
	c := testConfig(t)
	e, err := bus.StartEmbedded(bus.EmbeddedOptions{StoreDir: c.Bus.Embedded.StoreDir, Listen: c.Bus.Embedded.Listen,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	live := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/livez" {
			_, _ = io.WriteString(w, "live\n")
		}
	}))
	defer live.Close()
	c.HTTP.Listen = live.Listener.Addr().String()
	found, _ := examine(t, c)
	must(t, found["bus"], OK, fmt.Sprintf("process %d", os.Getpid()))
	must(t, found["bus size"], OK, "32MiB")
	must(t, found["stream"], OK, "does not exist yet")
	must(t, found["http"], OK, "sonde run answers")

	// The same store, and nobody at the address of this configuration.
	c.Bus.Embedded.Listen = free(t)
	found, _ = examine(t, c)
	must(t, found["bus"], Fail, "does not answer")

	// The same address, and another store.
	c.Bus.Embedded.Listen, c.Bus.Embedded.StoreDir = strings.TrimPrefix(e.URL(), "nats://"), t.TempDir()
	found, _ = examine(t, c)
	must(t, found["bus"], Fail, "taken by a broker")

	c.Bus.URL = e.URL()
	found, _ = examine(t, c)
	must(t, found["bus"], OK, "answers")
}

func TestAPasswordNeverStandsInAFinding(t *testing.T) {
	c := testConfig(t)
	t.Setenv(config.PasswordVariable, "hunter2")
	c.Bus.URL, c.Bus.User = "nats://"+free(t), "sonde"
	var out bytes.Buffer
	if _, err := Examine(t.Context(), Options{Config: c, Out: &out}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "hunter2") || !strings.Contains(out.String(), "cannot be used") {
		t.Errorf("got\n%s", out.String())
	}
}

func TestHostileLockTables(t *testing.T) {
	const line = "1: FLOCK  ADVISORY  WRITE 4711 fd:01:99 0 EOF\n"
	for text, want := range map[string]int{line: 4711, "": 0, "1:\n": 0, "2: POSIX" + line[8:]: 0,
		"1: FLOCK ADVISORY WRITE x fd:01:99 0 EOF": 0, "1: -> FLOCK ADVISORY WRITE 1 fd:01:99\n" + line: 4711} {
		if got := holderIn(text, 0xfd, 1, 99); got != want {
			t.Errorf("%q: process %d, want %d", text, got, want)
		}
	}
	if holderIn(line, 0xfd, 1, 98) != 0 {
		t.Error("the lock of another file counts")
	}
}

func TestAnEndedExaminationSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Examine(ctx, Options{Config: testConfig(t), Out: io.Discard})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
