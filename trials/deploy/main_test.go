package deploy

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"sonde/bus/kafkatest"
	"sonde/bus/natstest"
	"sonde/trials/fleet"
)

const root = "../.."

// sondeBinary is built once, by the line of the Dockerfile.
var sondeBinary = sync.OnceValues(buildSonde)

var scratch string // folder of the binary and of the one Kafka broker

func TestMain(m *testing.M) {
	natstest.Enter()
	var err error
	if scratch, err = os.MkdirTemp("", "sonde-deploy-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if broker, _ := kafkaBroker(); kafkaStarted && broker != nil {
		broker.Kill()
	}
	_ = os.RemoveAll(scratch) // What is left of it is in the folder for temporary files.
	os.Exit(code)
}

var buildLine = regexp.MustCompile(`(?m)^RUN (CGO_ENABLED=0 go build .*) -o /out/sonde (\S+)$`)

func buildSonde() (string, error) {
	text, err := os.ReadFile(root + "/deploy/Dockerfile")
	if err != nil {
		return "", err
	}
	m := buildLine.FindSubmatch(text)
	if m == nil {
		return "", errors.New("the Dockerfile has no line that builds /out/sonde")
	}
	out := filepath.Join(scratch, "sonde")
	cmd := exec.Command("sh", "-c", fmt.Sprintf("%s -o %s %s", m[1], out, m[2]))
	cmd.Dir = root
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build sonde: %w: %s", err, text)
	}
	return out, nil
}

func sonde(t *testing.T) string {
	t.Helper()
	bin, err := sondeBinary()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// run runs sonde until it ends.
func run(t *testing.T, dir string, env []string, args ...string) (out string, code int) {
	t.Helper()
	cmd := exec.Command(sonde(t), args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	text, err := cmd.CombinedOutput()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// spawn starts a program in a folder, and kills it with the test.
func spawn(t *testing.T, name, dir, program string, args ...string) *fleet.Process {
	t.Helper()
	p := fleet.NewProcess(name, dir, "/bin/sh", append([]string{"-c", `cd "$1" && shift && exec "$@"`, "sh", dir, program},
		args...)...)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.Running() {
			_ = p.Kill() // It may have ended in between.
		}
	})
	return p
}

// kafkaStarted says that kafkaBroker was called.
var kafkaStarted bool

// kafkaBroker is a broker with TLS, passwords and access rules. A start takes seconds.
var kafkaBroker = sync.OnceValues(func() (*kafkatest.Broker, error) {
	kafkaStarted = true
	o, err := kafkatest.Secured(kafkaDir())
	if err != nil {
		return nil, err
	}
	return kafkatest.Start(o)
})

func kafkaDir() string {
	dir := filepath.Join(scratch, "kafka")
	_ = os.MkdirAll(dir, 0o755) // What is wrong with it shows when something is written there.
	return dir
}

// replaced is a text with some parts replaced, each of which must be there.
func replaced(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("%q is not in\n%s", pairs[i], text)
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// read reads a file of the repository.
func read(t *testing.T, name string) string {
	t.Helper()
	return readFile(t, filepath.Join(root, filepath.FromSlash(name)))
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	if err == nil {
		err = os.WriteFile(name, []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// copyFile copies a file of a broker to where a configuration names it.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	write(t, to, readFile(t, from))
}

// ready waits until a page answers 200.
func ready(t *testing.T, url string, logs ...*fleet.Process) {
	t.Helper()
	last := ""
	for until := time.Now().Add(time.Minute); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		answer, err := http.Get(url)
		if err != nil {
			last = err.Error()
			continue
		}
		text, _ := io.ReadAll(answer.Body) // A part of it tells as much.
		answer.Body.Close()
		if last = string(text); answer.StatusCode == http.StatusOK {
			return
		}
	}
	for _, p := range logs {
		last += "\n" + p.Tail()
	}
	t.Fatalf("%s is not ready: %s", url, last)
}
