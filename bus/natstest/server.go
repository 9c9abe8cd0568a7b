// Package natstest runs real NATS servers for tests and trials: one server, or a
// cluster of three with JetStream, each in a process of its own that can be killed and
// started again. The process is the calling program, which must begin with Enter.
package natstest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"sonde/bus/wiretest"
)

// configVariable tells a process that it is a server, and which file configures it.
const configVariable = "SONDE_NATSTEST_CONFIG"

// readyTimeout covers a slow machine; a start takes about 0.1 s, a cluster's 3 to 9 s.
const readyTimeout = time.Minute

// Enter must be the first call of main or TestMain. In a process that Start started it
// never returns: it becomes the server.
func Enter() {
	file := os.Getenv(configVariable)
	if file == "" {
		return
	}
	o, err := server.ProcessConfigFile(file)
	if err == nil {
		o.NoSigs = true
		var s *server.Server
		if s, err = server.NewServer(o); err == nil {
			s.ConfigureLogger()
			go s.Start()
			_, err = io.Copy(io.Discard, os.Stdin) // until the parent ends, however it does
			s.Shutdown()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "nats-server:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Options configures a server.
type Options struct {
	Dir   string   // for its store, configuration and log
	Lines []string // of its configuration, after ours: users, accounts, TLS
}

// Server is a server process. Its address stays the same over restarts.
type Server struct {
	Address string // of clients, host:port
	URL     string // nats://Address
	monitor string // host:port of its HTTP
	dir     string

	wiretest.Process
}

// Need starts a server for a test, and kills it when the test ends.
func Need(t testing.TB, o Options) *Server {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	return s
}

// Start starts a server with JetStream on o.Dir, and returns once it answers. It syncs
// before each acknowledgement, and takes messages of 32 MB.
func Start(o Options) (*Server, error) {
	ports, err := wiretest.FreePorts(2)
	if err != nil {
		return nil, err
	}
	s, err := newServer(o, ports[0], ports[1])
	if err != nil {
		return nil, err
	}
	return s, s.Up()
}

// newServer writes the configuration of a server that does not run yet.
func newServer(o Options, address, monitor string) (*Server, error) {
	s := &Server{Address: address, URL: "nats://" + address, monitor: monitor, dir: o.Dir}
	lines := append([]string{"listen: " + address, "http: " + monitor, "max_payload: 32MB",
		fmt.Sprintf("log_file: %q", s.path("nats.log")),
		fmt.Sprintf("jetstream { store_dir: %q, sync_interval: always }", s.path("store"))}, o.Lines...)
	err := errors.Join(os.MkdirAll(o.Dir, 0o755),
		os.WriteFile(s.path("nats.conf"), []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	return s, err
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

// Up starts the server and returns once it answers.
func (s *Server) Up() error {
	if err := s.start(); err != nil {
		return err
	}
	return s.ready()
}

// start starts the process and does not wait for it: the first server of a cluster is
// ready only when there is a second one.
func (s *Server) start() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), configVariable+"="+s.path("nats.conf"))
	if _, err := cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := os.OpenFile(s.path("nats.out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	// The server ends when its standard input does, which the command holds.
	_, err = s.Launch(cmd, nil)
	return err
}

// ready waits until the server says of itself that it is healthy: its streams are there,
// and those of a cluster have a leader.
func (s *Server) ready() error {
	exited := s.Exited()
	for until := time.Now().Add(readyTimeout); ; {
		select {
		case <-exited:
			return fmt.Errorf("the server ended at its start: %s", s.lastWords())
		case <-time.After(20 * time.Millisecond):
		}
		if s.Healthy() {
			return nil
		}
		if time.Now().After(until) {
			s.Kill()
			return fmt.Errorf("the server is not ready after %s: %s", readyTimeout, s.lastWords())
		}
	}
}

// Healthy asks the server once.
func (s *Server) Healthy() bool {
	client := http.Client{Timeout: time.Second}
	answer, err := client.Get("http://" + s.monitor + "/healthz")
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// lastWords is the end of what the server wrote.
func (s *Server) lastWords() string {
	const most = 1000
	var text []byte
	for _, name := range []string{"nats.log", "nats.out"} {
		part, err := os.ReadFile(s.path(name))
		if err == nil {
			text = append(text, part[max(0, len(part)-most):]...)
		}
	}
	return string(text)
}
