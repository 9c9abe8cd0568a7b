package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/natstest"
	"sonde/bus/wiretest"
)

// secret must stand in no log and no error.
const secret = "pAssw0rd-of-the-test"

// quoted writes texts into a line of a server's configuration.
func quoted(format string, args ...any) string {
	for i, a := range args {
		args[i] = fmt.Sprintf("%q", a)
	}
	return fmt.Sprintf(format, args...)
}

// userKey writes the seed of a new user, and gives its public key.
func userKey(t *testing.T, name string) string {
	t.Helper()
	public, err := natstest.UserKey(name)
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// securedNATS is a server with TLS that asks for a certificate, and users with a
// password and a key. Below dir lie the files of its clients.
func securedNATS(t *testing.T) (s *natstest.Server, dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := wiretest.Certificates(dir); err != nil {
		t.Fatal(err)
	}
	public := userKey(t, filepath.Join(dir, "user.nk"))
	userKey(t, filepath.Join(dir, "stranger.nk"))
	return natstest.Need(t, natstest.Options{Lines: []string{
		natstest.TLS(dir),
		quoted("authorization { users: [ { user: sonde, password: %s }, { nkey: %s }, "+
			"{ user: poor, password: %s, permissions { publish: _none, subscribe: \"_INBOX.>\" } } ] }", secret, public,
			secret),
	}}), dir
}

func secured(s *natstest.Server, dir string) bus.NATSOptions {
	return bus.NATSOptions{URL: s.URL, Security: bus.NATSSecurity{TLS: true, CAFile: filepath.Join(dir, "ca.pem"),
		CertFile: filepath.Join(dir, "client.pem"), KeyFile: filepath.Join(dir, "client.key"), User: "sonde",
		Password: secret}}
}

// carriesMessages publishes, reads back, trims and asks.
func carriesMessages(t *testing.T, o bus.NATSOptions) {
	t.Helper()
	b := openNATS(t, o)
	p := newPublisher(b, fmt.Sprint("p", time.Now().UnixNano()), 50_000) // the broker knows ids of before
	for i := range 30 {
		if err := p.publish(deadline(t), i); err != nil {
			t.Fatal(err)
		}
	}
	p.check(t, 30)
	if err := b.Trim(deadline(t), 0, 20); err != nil {
		t.Error(err)
	}
	stop, err := b.Serve("sonde.cmd.a", func(data []byte) []byte { return data })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if reply, err := b.Request(deadline(t), "sonde.cmd.a", []byte("x")); err != nil || string(reply) != "x" {
		t.Errorf("request: %q, %v", reply, err)
	}
}

func TestNATSWithTLSPasswordsAndKeys(t *testing.T) {
	s, dir := securedNATS(t)
	o := secured(s, dir)
	carriesMessages(t, o)
	o.Security.User, o.Security.Password, o.Security.NKeyFile = "", "", filepath.Join(dir, "user.nk")
	o.Security.InboxPrefix = "_INBOX_of.sonde"
	o.URL = strings.Replace(o.URL, "nats://", "tls://", 1)
	carriesMessages(t, o)
}

// jwtNATS is a server whose accounts and users are known by their tokens alone.
func jwtNATS(t *testing.T) (s *natstest.Server, dir string) {
	t.Helper()
	dir = t.TempDir()
	lines, err := natstest.Tokens(dir)
	if err != nil {
		t.Fatal(err)
	}
	return natstest.Need(t, natstest.Options{Lines: lines}), dir
}

func TestNATSWithCredentials(t *testing.T) {
	s, dir := jwtNATS(t)
	carriesMessages(t, bus.NATSOptions{URL: s.URL,
		Security: bus.NATSSecurity{CredsFile: filepath.Join(dir, "user.creds")}})
	refuses(t, "refuses the user, its password, its key or its credentials", dir, bus.NATSOptions{URL: s.URL,
		Security: bus.NATSSecurity{CredsFile: filepath.Join(dir, "expired.creds")}})
}

// refuses opens a bus that must be refused at once, in one sentence, without a secret
// in it or in the log.
func refuses(t *testing.T, want, dir string, o bus.NATSOptions) {
	t.Helper()
	log := &lines{}
	o.Logger = log.logger()
	opened := refusesToOpen(t, want, o)
	if o.Stream == "" {
		o.Stream = "SONDE"
	}
	_, probed := bus.Probe(deadline(t), o)
	oneSentence(t, want, probed)
	for _, s := range secretsBelow(t, dir) {
		if text := fmt.Sprint(opened, probed, log); strings.Contains(text, s) {
			t.Errorf("%s: a secret stands in %s", want, text)
		}
	}
}

// refusesToOpen opens a bus that must be refused at once.
func refusesToOpen(t *testing.T, want string, o bus.NATSOptions) error {
	t.Helper()
	if o.Logger == nil {
		o.Logger = quiet()
	}
	ctx, cancel := contextOf(20 * time.Second)
	defer cancel()
	b, err := bus.OpenNATS(ctx, o)
	if err == nil {
		b.Close()
	}
	oneSentence(t, want, err)
	return err
}

// oneSentence checks an error that no repetition changes.
func oneSentence(t *testing.T, want string, err error) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("%s: it works", want)
	case !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n"):
		t.Errorf("%s: %v", want, err)
	case errors.Is(err, context.DeadlineExceeded):
		t.Errorf("%s: it was tried until the end: %v", want, err)
	}
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// secretsBelow are the password and every line of the keys and credentials of a folder.
func secretsBelow(t *testing.T, dir string) []string {
	t.Helper()
	out := []string{secret}
	for _, pattern := range []string{"*.nk", "*.creds", "*.key"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				if line = strings.TrimSpace(line); len(line) > 40 && !strings.Contains(line, "*") {
					out = append(out, line)
				}
			}
		}
	}
	return out
}

// Each is one clear sentence, at once, because no repetition helps.
func TestNATSRefusalsAreSaidOnceAndClearly(t *testing.T) {
	s, dir := securedNATS(t)
	plain := natstest.Need(t, natstest.Options{})
	junk := filepath.Join(dir, "junk.creds")
	if err := os.WriteFile(junk, []byte("-----BEGIN NATS USER JWT-----\n"+secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		want   string
		change func(o *bus.NATSOptions)
	}{
		{"refuses the user, its password", func(o *bus.NATSOptions) { o.Security.Password = "wrong-" + secret }},
		{"refuses the user, its password", func(o *bus.NATSOptions) { o.Security.User = "" }},
		{"refuses the user, its password, its key", func(o *bus.NATSOptions) {
			o.Security.User, o.Security.NKeyFile = "", filepath.Join(dir, "stranger.nk")
		}},
		{"signed by nobody that is trusted", func(o *bus.NATSOptions) {
			o.Security.CAFile = filepath.Join(dir, "stranger.pem")
		}},
		{"signed by nobody that is trusted; name the authority in bus.nats.tls.ca_file", func(o *bus.NATSOptions) {
			o.Security = bus.NATSSecurity{User: "sonde", Password: secret}
		}},
		{"refuses the client's certificate, or asks for one", func(o *bus.NATSOptions) {
			o.Security.CertFile, o.Security.KeyFile = "", ""
		}},
		{"does not speak TLS", func(o *bus.NATSOptions) { o.URL = plain.URL }},
		{"no such file", func(o *bus.NATSOptions) { o.Security.CAFile = filepath.Join(dir, "nothing") }},
		{"no such file", func(o *bus.NATSOptions) { o.Security.NKeyFile = filepath.Join(dir, "nothing") }},
		{"holds no seed of a user key", func(o *bus.NATSOptions) { o.Security.NKeyFile = filepath.Join(dir, "ca.pem") }},
		{"hold no JWT with the seed", func(o *bus.NATSOptions) { o.Security.CredsFile = junk }},
		{"rules of the broker do not allow publishing to $JS.API.STREAM.INFO.SONDE", func(o *bus.NATSOptions) {
			o.Security.User = "poor"
		}},
	} {
		o := secured(s, dir)
		c.change(&o)
		refuses(t, c.want, dir, o)
	}
}

// The fear: a login that the broker once took and refuses now, say while its own users
// are loaded again, ends a process that could have waited.
func TestALoginThatIsRefusedLaterIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	public := userKey(t, filepath.Join(dir, "user.nk"))
	s := natstest.Need(t, natstest.Options{Lines: []string{quoted("authorization { users: [ { nkey: %s } ] }", public)}})
	b := openNATS(t, bus.NATSOptions{URL: s.URL, Security: bus.NATSSecurity{NKeyFile: filepath.Join(dir, "user.nk")}})
	p := newPublisher(b, "p", 100)
	if err := p.publish(deadline(t), 0); err != nil {
		t.Fatal(err)
	}
	p.waiting.Wait()
	seed, err := os.ReadFile(filepath.Join(dir, "user.nk"))
	if err != nil {
		t.Fatal(err)
	}
	userKey(t, filepath.Join(dir, "user.nk")) // now a stranger
	s.Kill()
	if err := s.Up(); err != nil {
		t.Fatal(err)
	}
	if err := p.publish(deadline(t), 1); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if b.Connected() {
		t.Error("the bus is connected with a stranger's key")
	}
	if err := os.WriteFile(filepath.Join(dir, "user.nk"), seed, 0o600); err != nil {
		t.Fatal(err)
	}
	p.check(t, 2)
}
