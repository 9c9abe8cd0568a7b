package deploy

import (
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sonde/bus/kafkatest"
	"sonde/bus/natstest"
	"sonde/bus/wiretest"
	"sonde/internal/notrun"
	"sonde/trials/fleet"
)

// The fear: the first thing that an operator copies is refused.
func TestExamplesAreValid(t *testing.T) {
	for name, says := range map[string]string{"examples/sonde.yaml": "embedded bus in data/bus",
		"examples/nats-cluster.yaml": "bus at tls://nats1:4222", "examples/kafka.yaml": "Kafka at kafka1:9093",
		"deploy/compose/sonde.yaml": "Kafka at kafka:9092"} {
		text := read(t, name)
		if strings.HasPrefix(name, "deploy") { // its bundle is where compose.yaml mounts it
			text = replaced(t, text, "/etc/sonde/detectors", mustAbs(t, root+"/detectors"))
		}
		file := filepath.Join(t.TempDir(), "sonde.yaml")
		write(t, file, text)
		out, code := run(t, root, nil, "validate", file)
		if code != 0 || !strings.Contains(out, "is valid") || !strings.Contains(out, says) {
			t.Errorf("%s: exit code %d, %s; want %q", name, code, out, says)
		}
	}
}

func mustAbs(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// site is a machine that runs the processes of a configuration.
type site struct {
	t        *testing.T
	dir      string
	socket   string
	lake     string
	captured *regexp.Regexp // what lake verify must say in the end, nil: that all is stored
	roles    []*fleet.Process
}

// newSite runs each configuration with the arguments of its name. They listen for HTTP
// where the files say.
func newSite(t *testing.T, dir string) *site {
	return &site{t: t, dir: dir, socket: filepath.Join(dir, "data", "sonde.sock"),
		lake: filepath.Join(dir, "data", "lake")}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	address, err := fleet.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// start runs sonde, and waits until all of its roles are ready.
func (s *site) start(name, http string, args ...string) {
	s.t.Helper()
	s.startProgram(name, sonde(s.t), http, args...)
}

func (s *site) startProgram(name, program, http string, args ...string) {
	s.t.Helper()
	p := spawn(s.t, name, s.dir, program, args...)
	s.roles = append(s.roles, p)
	ready(s.t, "http://"+http+"/readyz", p)
}

// capture lets an engine compute a few requests, stops everything in order, and checks
// that each row is in the dataset.
func (s *site) capture() {
	s.t.Helper()
	address := freeAddress(s.t)
	engine := spawn(s.t, "engine", s.dir, sonde(s.t), "engine", "--model", "arithmetic", "--listen", address,
		"--ring-socket", s.socket, "--wait-agent", "20s")
	ready(s.t, "http://"+address+"/healthz", engine)
	for range 3 {
		answer, err := http.Post("http://"+address+"/v1/completions", "application/json",
			strings.NewReader(`{"prompt": [1, 2, 3, 4], "max_tokens": 5}`))
		if err != nil {
			s.t.Fatal(err)
		}
		if answer.Body.Close(); answer.StatusCode != http.StatusOK {
			s.t.Fatalf("the engine answers %s: %s", answer.Status, engine.Tail())
		}
	}
	stop(s.t, engine)
	s.await()
	for _, p := range s.roles {
		stop(s.t, p)
	}
}

// await waits until each row of the engines that have ended is in the dataset.
func (s *site) await() {
	s.t.Helper()
	out := ""
	for until := time.Now().Add(time.Minute); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
		out, _ = run(s.t, s.dir, nil, "lake", "verify", "--lake", s.lake)
		if s.captured == nil && allStored(out) || s.captured != nil && s.captured.MatchString(out) {
			return
		}
	}
	s.t.Errorf("the dataset says %s", out)
}

// allStored reads what lake verify says: all rows of closed epochs are stored, and there
// are some.
func allStored(verdict string) bool {
	m := regexp.MustCompile(`captured +([1-9][0-9,]*) (?s:.*)= stored +([0-9,]+) (?s:.*), 0 of them open`).FindStringSubmatch(verdict)
	return m != nil && m[1] == m[2] && strings.Contains(verdict, "every row is accounted for")
}

// stop ends a process in order, as a supervisor does.
func stop(t *testing.T, p *fleet.Process) {
	t.Helper()
	if err := p.Stop(time.Minute); err != nil {
		t.Error(err)
	}
	if strings.Contains(p.Tail(), "sonde: ") {
		t.Errorf("%s ended with a complaint: %s", p.Name, p.Tail())
	}
}

func TestExampleOfTheEmbeddedBusRuns(t *testing.T) {
	dir := t.TempDir()
	http := freeAddress(t)
	text := replaced(t, read(t, "examples/sonde.yaml"), "127.0.0.1:4222", freeAddress(t), "127.0.0.1:9464", http,
		"hooks: [resid_post, token_ids]", `hooks: ["*"]`)
	write(t, filepath.Join(dir, "sonde.yaml"), text)
	s := newSite(t, dir)
	s.start("sonde", http, "run", "--config", "sonde.yaml")
	s.capture()
}

func TestExampleOfANATSClusterRuns(t *testing.T) {
	dir := t.TempDir()
	if err := wiretest.Certificates(dir); err != nil {
		t.Fatal(err)
	}
	lines, err := natstest.Tokens(dir)
	if err != nil {
		t.Fatal(err)
	}
	cluster := natstest.NeedCluster(t, natstest.Options{Lines: append(lines, natstest.TLS(dir))})
	etc := filepath.Join(dir, "etc")
	for from, to := range map[string]string{"ca.pem": "nats-ca.pem", "client.pem": "nats-client.pem",
		"client.key": "nats-client.key", "user.creds": "nats.creds"} {
		copyFile(t, filepath.Join(dir, from), filepath.Join(etc, to))
	}
	text := replaced(t, read(t, "examples/nats-cluster.yaml"), "tls://nats1:4222,tls://nats2:4222,tls://nats3:4222",
		strings.ReplaceAll(cluster.URL(), "nats://", "tls://"), "/etc/sonde", etc) + everyHook
	s := newSite(t, dir)
	for _, role := range []string{"materializer", "agent"} { // one process each
		http := freeAddress(t)
		write(t, filepath.Join(dir, role+".yaml"), text+"http: {listen: "+http+"}\n")
		s.start(role, http, "run", "--config", role+".yaml", "--role", role)
	}
	cluster.Servers[0].Kill() // any one of them may be away
	s.capture()
	noSecret(t, dir, "PRIVATE KEY", "USER NKEY SEED")
}

// everyHook has an engine of another model than a default capture something.
const everyHook = "policy: {rules: [{hooks: [\"*\"]}]}\n"

func TestExampleOfKafkaWithTLSRuns(t *testing.T) {
	if why := kafkatest.Missing(); why != "" {
		notrun.Mark(t, why)
	}
	broker, err := kafkaBroker()
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.Allow(t.Context(), "sonde", "SONDE", kafkatest.Everything...); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	etc := filepath.Join(dir, "etc")
	for from, to := range map[string]string{"ca.pem": "kafka-ca.pem", "client.pem": "kafka-client.pem",
		"client.key": "kafka-client.key"} {
		copyFile(t, filepath.Join(kafkaDir(), from), filepath.Join(etc, to))
	}
	write(t, filepath.Join(etc, "bus-password"), kafkatest.Password+"\n")
	// One broker stands for the three of the example.
	text := replaced(t, read(t, "examples/kafka.yaml"), `"kafka1:9093", "kafka2:9093", "kafka3:9093"`, `"`+broker.Secured+`"`,
		"replicas: 3 ", "replicas: 1 ", "min_insync_replicas: 2 ", "min_insync_replicas: 1 ", "/etc/sonde", etc) + everyHook
	http := freeAddress(t)
	write(t, filepath.Join(dir, "sonde.yaml"), text+"http: {listen: "+http+"}\n")
	s := newSite(t, dir)
	s.start("sonde", http, "run", "--config", "sonde.yaml")
	s.capture()
	noSecret(t, dir, kafkatest.Password, "PRIVATE KEY")
}

// noSecret checks that none stands in a log.
func noSecret(t *testing.T, dir string, secrets ...string) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("no logs: %v", err)
	}
	for _, log := range logs {
		text := readFile(t, log)
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds a secret: %q", log, secret)
			}
		}
	}
}
