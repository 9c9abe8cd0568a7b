package pipeline

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sonde/config"
)

// quietConfig keeps everything below a folder, without a port for the bus.
func quietConfig(t *testing.T) config.Config {
	dir := t.TempDir()
	c := config.Default()
	c.Bus.Embedded.StoreDir, c.Bus.Embedded.Listen = filepath.Join(dir, "bus"), ""
	c.Agent.Socket = filepath.Join(dir, "sonde.sock")
	c.Agent.DeadLetter.Dir = filepath.Join(dir, "dead-letter/agent")
	c.Materializer.Lake, c.Materializer.DeadLetterDir = filepath.Join(dir, "lake"), filepath.Join(dir, "dead-letter/lake")
	c.HTTP.Listen = ""
	return c
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// Ctrl-C before anything was captured must not wait for rows that never come.
func TestAnIdlePipelineDrainsAtOnce(t *testing.T) {
	p, err := Start(t.Context(), Options{Config: quietConfig(t), Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), drainLimit/2)
	defer cancel()
	if err := p.Drain(ctx); err != nil {
		t.Error(err)
	}
}

func TestReadinessFollowsTheRoles(t *testing.T) {
	c := quietConfig(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.HTTP.Listen = l.Addr().String()
	l.Close()
	p, err := Start(t.Context(), Options{Config: c, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	for path, want := range map[string]string{"/livez": "live", "/readyz": "ready", "/metrics": "sonde_bus_connected 1"} {
		resp, err := http.Get("http://" + c.HTTP.Listen + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(text), want) {
			t.Errorf("%s: %s, %v, without %q", path, resp.Status, err, want)
		}
	}
}

func TestWhatCannotStartSaysWhatToDo(t *testing.T) {
	for name, c := range map[string]struct {
		roles  []string
		change func(*config.Config)
		want   string
	}{
		"a role that does not exist": {[]string{"agnet"}, func(*config.Config) {}, "use bus, agent"},
		"a bus that nobody can reach": {[]string{RoleAgent}, func(*config.Config) {},
			"bus.embedded.listen is empty; set it to an address"},
		"a bus beside another one": {[]string{RoleBus}, func(c *config.Config) { c.Bus.URL = "nats://broker:4222" },
			"nothing to run here"},
		"a login without a password": {[]string{RoleAgent}, func(c *config.Config) {
			c.Bus.URL, c.Bus.User = "nats://127.0.0.1:1", "sonde"
		}, config.PasswordVariable},
		"a detector without a bundle": {[]string{RoleBus, RoleDetector}, func(*config.Config) {}, "names no bundle"},
	} {
		t.Run(name, func(t *testing.T) {
			conf := quietConfig(t)
			c.change(&conf)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			p, err := Start(ctx, Options{Config: conf, Roles: c.roles, Log: quiet})
			if err == nil {
				p.Stop()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q; want %q in it", err, c.want)
			}
		})
	}
}
