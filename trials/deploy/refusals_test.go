package deploy

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sonde/bus/kafkatest"
	"sonde/bus/natstest"
	"sonde/bus/wiretest"
	"sonde/internal/notrun"
)

// refusal is a mistake in a configuration, and what each command must say about it.
type refusal struct {
	name string
	want string   // in one line of every command
	bus  []string // pairs of what stands in the right configuration and what does instead
	env  []string
}

// natsWrong are the mistakes with a NATS server.
var natsWrong = []refusal{
	{"wrong password", "the broker refuses the user, its password", nil, []string{"SONDE_BUS_PASSWORD=wrong-" + secret}},
	{"unknown user", "the broker refuses the user, its password", []string{"user: sonde", "user: nobody"}, nil},
	{"wrong authority", "signed by nobody that is trusted", []string{"ca.pem", "stranger.pem"}, nil},
	{"no certificate", "refuses the client's certificate, or asks for one",
		[]string{"cert_file: ", "# ", "key_file: ", "# "}, nil},
	{"no TLS", "signed by nobody that is trusted", []string{"tls:", "tls: {} #", "enabled", "#", "ca_file", "#",
		"cert_file", "#", "key_file", "#"}, nil},
	{"missing right", "the access rules of the broker do not allow publishing to $JS.API.STREAM.INFO.SONDE",
		[]string{"user: sonde", "user: poor"}, nil},
}

// kafkaWrong are the mistakes with a Kafka cluster.
var kafkaWrong = []refusal{
	{"wrong password", "the broker refuses the user or its password", nil, []string{"SONDE_BUS_PASSWORD=wrong-" + secret}},
	{"wrong authority", "signed by nobody that is trusted", []string{"ca.pem", "stranger.pem"}, nil},
	{"no certificate", "refuses the client's certificate, or asks for one",
		[]string{"cert_file: ", "# ", "key_file: ", "# "}, nil},
	{"missing right", "the access rules of the broker do not allow", []string{"stream: REFUSALS", "stream: NOTMINE"}, nil},
}

const secret = kafkatest.Password

// refuses runs the commands that need a bus with each mistake. sonde run must end at
// once, as no repetition helps; the doctor must find it, and tap.
func refuses(t *testing.T, right string, wrong []refusal) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "sonde.yaml")
	for _, r := range wrong {
		write(t, file, replaced(t, right, r.bus...)+"http: {listen: \"\"}\n")
		env := r.env
		if env == nil {
			env = []string{"SONDE_BUS_PASSWORD=" + secret}
		}
		for _, command := range [][]string{{"run", "--config", file, "--role", "materializer"}, {"doctor", "--config", file},
			{"tap", "bus", "--config", file}} {
			began := time.Now()
			out, code := run(t, dir, env, command...)
			said := 0
			for line := range strings.Lines(out) {
				if strings.Contains(line, r.want) {
					said++
				}
			}
			if code != 1 || said != 1 {
				t.Errorf("%s: sonde %s: exit code %d after %s, and %d lines with %q; want 1 and 1:\n%s", r.name, command[0],
					code, time.Since(began).Round(time.Millisecond), said, r.want, out)
			}
			if strings.Contains(out, secret) || strings.Contains(out, "goroutine") {
				t.Errorf("%s: sonde %s shows a secret or a stack:\n%s", r.name, command[0], out)
			}
		}
	}
}

func TestMistakesWithANATSServerAreOneLineAndExitCode1(t *testing.T) {
	dir := t.TempDir()
	if err := wiretest.Certificates(dir); err != nil {
		t.Fatal(err)
	}
	server := natstest.Need(t, natstest.Options{Lines: []string{natstest.TLS(dir), `authorization { users: [
		{ user: sonde, password: "` + secret + `" }
		{ user: poor, password: "` + secret + `", permissions { publish: nothing, subscribe: "_INBOX.>" } } ] }`}})
	refuses(t, "bus:\n  url: "+server.URL+"\n  user: sonde\n  nats:\n    tls:\n      enabled: true\n      ca_file: "+
		filepath.Join(dir, "ca.pem")+"\n      cert_file: "+filepath.Join(dir, "client.pem")+"\n      key_file: "+
		filepath.Join(dir, "client.key")+"\n", natsWrong)
}

func TestMistakesWithAKafkaClusterAreOneLineAndExitCode1(t *testing.T) {
	if why := kafkatest.Missing(); why != "" {
		notrun.Mark(t, why)
	}
	broker, err := kafkaBroker()
	if err != nil {
		t.Fatal(err)
	}
	if err := broker.Allow(t.Context(), "sonde", "REFUSALS", kafkatest.Everything...); err != nil {
		t.Fatal(err)
	}
	refuses(t, "bus:\n  user: sonde\n  stream: REFUSALS\n  kafka:\n    brokers: [\""+broker.Secured+"\"]\n"+
		"    sasl: scram-sha-512\n    tls:\n      enabled: true\n      ca_file: "+filepath.Join(kafkaDir(), "ca.pem")+
		"\n      cert_file: "+filepath.Join(kafkaDir(), "client.pem")+"\n      key_file: "+
		filepath.Join(kafkaDir(), "client.key")+"\n", kafkaWrong)
}

// onlyLine is the one line of a text that holds something.
func onlyLine(t *testing.T, text, part string) string {
	t.Helper()
	found := ""
	for line := range strings.Lines(text) {
		if !strings.Contains(line, part) {
			continue
		}
		if found != "" {
			t.Errorf("%q is said twice:\n%s", part, text)
		}
		found = strings.TrimSpace(line)
	}
	if found == "" {
		t.Errorf("%q is not said:\n%s", part, text)
	}
	return found
}

func TestAStreamThatIsNotThereIsOneLine(t *testing.T) {
	configs := map[string]string{"NATS": "bus: {url: " + natstest.Need(t, natstest.Options{}).URL + ", stream: NOWHERE}\n"}
	if kafkatest.Missing() == "" {
		broker, err := kafkaBroker()
		if err != nil {
			t.Fatal(err)
		}
		configs["Kafka"] = "bus: {kafka: {brokers: [\"" + broker.Address + "\"]}, stream: NOWHERE}\n"
	}
	for name, text := range configs {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "sonde.yaml"), text+"http: {listen: \"\"}\n")
		out, code := run(t, dir, nil, "tap", "bus", "--config", "sonde.yaml")
		if onlyLine(t, out, "it does not exist; start sonde run, which makes it"); code != 1 {
			t.Errorf("%s: tap bus: exit code %d: %s", name, code, out)
		}
		out, _ = run(t, dir, nil, "doctor", "--config", "sonde.yaml")
		if !strings.HasPrefix(onlyLine(t, out, "NOWHERE"), "ok") {
			t.Errorf("%s: doctor: %s", name, out)
		}
	}
}

// The fear: one message that the broker can never take is sent again for ever, and holds
// up all others.
func TestMessagesThatAreTooLargeForTheBrokerAreNamedAndHoldUpNothing(t *testing.T) {
	server := natstest.Need(t, natstest.Options{Lines: []string{"max_payload: 16KB"}})
	dir := t.TempDir()
	http := freeAddress(t)
	write(t, filepath.Join(dir, "sonde.yaml"), "bus: {url: "+server.URL+"}\nhttp: {listen: "+http+"}\n"+everyHook)
	out, code := run(t, dir, nil, "doctor", "--config", "sonde.yaml")
	line := onlyLine(t, out, "max_payload of the broker), and agent.batch_bytes")
	if !strings.HasPrefix(line, "fail") || code != 1 {
		t.Errorf("doctor: exit code %d, %s", code, line)
	}
	s := newSite(t, dir)
	s.start("sonde", http, "run", "--config", "sonde.yaml")
	s.captured = regexp.MustCompile(`(?s)dead-lettered +[1-9].* in flight +0 .*, 0 of them open.*every row is accounted for`)
	s.capture()
	if text := readFile(t, filepath.Join(dir, "sonde.log")); !strings.Contains(text, "broker's max_payload is 16") {
		t.Errorf("the log says nothing of it:\n%s", text)
	}
}
