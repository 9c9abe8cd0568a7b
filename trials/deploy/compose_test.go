package deploy

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sonde/bus/kafkatest"
	"sonde/internal/notrun"
)

// composeTool reads a compose file as docker compose does: the library of the Compose
// Specification, pinned in tools/go.mod.
const composeTool = "github.com/compose-spec/compose-go/v2/cmd"

// composeFile is what of compose.yaml is looked at here.
type composeFile struct {
	Services map[string]service         `json:"services"`
	Volumes  map[string]json.RawMessage `json:"volumes"`
}

type service struct {
	Image       string            `json:"image"`
	Command     []string          `json:"command"`
	Environment map[string]string `json:"environment"`
	Profiles    []string          `json:"profiles"`
	HealthCheck struct {
		Test []string `json:"test"`
	} `json:"healthcheck"`
	Build struct {
		Context    string `json:"context"`
		Dockerfile string `json:"dockerfile"`
	} `json:"build"`
	Volumes []mount `json:"volumes"`
}

type mount struct {
	Type   string `json:"type"` // bind, volume
	Source string `json:"source"`
	Target string `json:"target"`
}

func compose(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return exec.Command("go", append([]string{"tool", "-modfile=" + mustAbs(t, root+"/tools/go.mod"), composeTool},
		args...)...)
}

func loadCompose(t *testing.T, dir string) (f composeFile) {
	t.Helper()
	cmd := compose(t, "--format", "json", "compose.yaml")
	cmd.Dir = dir
	out, err := cmd.Output()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		t.Fatalf("compose.yaml: %s", ended.Stderr)
	}
	if err == nil {
		err = json.Unmarshal(out, &f)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

var plainImage = regexp.MustCompile(`^[a-z0-9-]+(/[a-z0-9-]+)?(:[A-Za-z0-9._-]+)?$`)

// The fear: a compose file that docker compose refuses, or that names what is not there.
func TestComposeFileIsRight(t *testing.T) {
	f := loadCompose(t, root+"/deploy/compose")
	for name, s := range f.Services {
		if !plainImage.MatchString(s.Image) {
			t.Errorf("%s: the image %q is no plain name", name, s.Image)
		}
		for _, m := range s.Volumes {
			if _, err := os.Stat(m.Source); m.Type == "bind" && err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if len(s.HealthCheck.Test) == 0 {
			t.Errorf("%s has no health check", name)
		}
		if name == "kafka" {
			continue
		}
		if _, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// Of a process that does not run, the health check says so.
		check := s.HealthCheck.Test
		if check[0] != "CMD" || check[1] != "/usr/local/bin/sonde" {
			t.Fatalf("%s: the image has no program for %q", name, check)
		}
		if out, code := run(t, t.TempDir(), nil, append(check[2:], "--url", "http://127.0.0.1:1")...); code != 1 {
			t.Errorf("%s: %q: exit code %d, %s", name, check, code, out)
		}
	}
	bad := t.TempDir()
	wrong := strings.Replace(read(t, "deploy/compose/compose.yaml"), "restart:", "restarts:", 1)
	write(t, filepath.Join(bad, "compose.yaml"), wrong)
	out, err := compose(t, filepath.Join(bad, "compose.yaml")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "restarts") {
		t.Errorf("a wrong key is passed over: %v, %s", err, out)
	}
}

// properties are the settings of a broker that the image of Kafka makes of variables, but
// for addresses and folders, which are this machine's.
func properties(environment map[string]string) []string {
	var out []string
	here := []string{"listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs",
		"controller.listener.names", "listener.security.protocol.map"}
	for name, value := range environment {
		key := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(name, "KAFKA_"), "_", "."))
		if !slices.Contains(here, key) {
			out = append(out, key+"="+value)
		}
	}
	return out
}

// container is a service that runs as a process of this machine.
type container struct {
	site  *site
	dir   string // where it starts; the file system of an image is read-only
	paths []string
}

// contain maps the mounts of a service to folders of this machine.
func (s *site) contain(name string, c service) *container {
	s.t.Helper()
	out := &container{site: s, dir: filepath.Join(s.dir, name)}
	for _, m := range c.Volumes {
		from := m.Source
		if m.Type == "volume" {
			from = filepath.Join(s.dir, "volumes", m.Source)
			if err := os.MkdirAll(from, 0o755); err != nil {
				s.t.Fatal(err)
			}
		}
		out.paths = append(out.paths, m.Target, from)
	}
	if err := os.MkdirAll(out.dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	return out
}

// here is a text of the image with the paths of this machine.
func (c *container) here(text string) string { return strings.NewReplacer(c.paths...).Replace(text) }

// start runs the command of a service, with its configuration.
func (c *container) start(name string, s service, broker, listen string) {
	t := c.site.t
	t.Helper()
	config := filepath.Join(c.site.dir, name+".yaml")
	var args []string
	for _, arg := range s.Command {
		switch arg {
		case "/etc/sonde/sonde.yaml":
			write(t, config, c.here(replaced(t, read(t, "deploy/compose/sonde.yaml"), "kafka:9092", broker, "0.0.0.0:9464",
				listen)))
			arg = config
		case "0.0.0.0:8000":
			arg = listen
		}
		args = append(args, c.here(arg))
	}
	p := spawn(t, name, c.dir, sonde(t), args...)
	c.site.roles = append(c.site.roles, p)
	page := "/readyz"
	if name == "engine" {
		page = "/healthz"
	}
	ready(t, "http://"+listen+page, p)
}

// The fear: containers that start and pass nothing on to each other.
func TestComposeFileRunsAgainstARealBroker(t *testing.T) {
	if why := kafkatest.Missing(); why != "" {
		notrun.Mark(t, why)
	}
	f := loadCompose(t, root+"/deploy/compose")
	kafka := f.Services["kafka"]
	broker := kafkatest.Need(t, kafkatest.Options{Lines: properties(kafka.Environment)})
	s := newSite(t, t.TempDir())
	listens := map[string]string{}
	for _, name := range []string{"agent", "materializer", "detector", "engine"} {
		listens[name] = freeAddress(t)
		service := f.Services[name]
		s.contain(name, service).start(name, service, broker.Address, listens[name])
	}
	for _, prompt := range []string{"The package", "Das Paket ist", "Le paquet"} {
		answer, err := http.Post("http://"+listens["engine"]+"/v1/completions", "application/json",
			strings.NewReader(`{"prompt": "`+prompt+`", "max_tokens": 8}`))
		if err != nil {
			t.Fatal(err)
		}
		if answer.Body.Close(); answer.StatusCode != http.StatusOK {
			t.Fatalf("the engine answers %s", answer.Status)
		}
	}
	last := len(s.roles) - 1
	stop(t, s.roles[last]) // the engine first: its epoch is closed then
	s.lake = filepath.Join(s.dir, "volumes", "materializer", "lake")
	s.await()
	for _, p := range s.roles[:last] {
		stop(t, p)
	}
	for _, name := range []string{"agent", "materializer", "detector", "engine"} {
		if left, err := filepath.Glob(filepath.Join(s.dir, name, "*")); err != nil || slices.ContainsFunc(left, notLog) {
			t.Errorf("%s wrote to the file system of its image: %q, %v", name, left, err)
		}
	}
}

func notLog(name string) bool { return filepath.Ext(name) != ".log" }
