package bus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// NATSSecurity says how a client proves who it is, and how it knows the server. At
// most one of User, NKeyFile and CredsFile is given. Files are read again for each
// connection, so that they may be replaced while a program runs.
type NATSSecurity struct {
	TLS       bool
	CAFile    string // PEM of the authorities that sign the servers' certificates, "": those of the system
	CertFile  string // PEM of the client's certificate, "": none
	KeyFile   string // PEM of its key
	User      string
	Password  string
	NKeyFile  string // seed of a user key, SU...
	CredsFile string // JWT of a user and the seed of its key, as nsc writes them

	// InboxPrefix is where answers to this client are sent, "": _INBOX. Where clients
	// that must not see each other share an account, each needs a prefix of its own.
	InboxPrefix string
}

func (s *NATSSecurity) inboxPrefix() string {
	if s.InboxPrefix == "" {
		return "_INBOX"
	}
	return s.InboxPrefix
}

// maxSecretFile bounds the files with keys and credentials.
const maxSecretFile = 64 << 10

func (s *NATSSecurity) options() ([]nats.Option, error) {
	var out []nats.Option
	if s.TLS {
		c, err := clientTLS(s.CAFile, s.CertFile, s.KeyFile)
		if err != nil {
			return nil, err
		}
		out = append(out, nats.Secure(c))
	}
	if s.InboxPrefix != "" {
		out = append(out, nats.CustomInboxPrefix(s.InboxPrefix))
	}
	switch {
	case s.CredsFile != "":
		text, err := readSecret("credentials", s.CredsFile)
		if err != nil {
			return nil, err
		}
		token, err1 := nkeys.ParseDecoratedJWT(text)
		key, err2 := nkeys.ParseDecoratedUserNKey(text)
		if err1 != nil || err2 != nil || strings.Count(token, ".") != 2 {
			return nil, fmt.Errorf("read the credentials %s: they hold no JWT with the seed of a user key", s.CredsFile)
		}
		return append(out, nats.UserJWT(func() (string, error) { return token, nil }, key.Sign)), nil
	case s.NKeyFile != "":
		text, err := readSecret("key", s.NKeyFile)
		if err != nil {
			return nil, err
		}
		key, err := nkeys.ParseDecoratedUserNKey(text)
		if err != nil {
			return nil, fmt.Errorf("read the key %s: it holds no seed of a user key", s.NKeyFile)
		}
		public, err := key.PublicKey()
		if err != nil {
			return nil, fmt.Errorf("read the key %s: it is no user key", s.NKeyFile)
		}
		return append(out, nats.Nkey(public, key.Sign)), nil
	case s.User != "":
		out = append(out, nats.UserInfo(s.User, s.Password))
	}
	return out, nil
}

// readSecret reads a small file. Its errors tell nothing of what stands in it.
func readSecret(what, name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err == nil && info.Size() > maxSecretFile {
		err = fmt.Errorf("%d bytes are too many; at most %d", info.Size(), maxSecretFile)
	}
	var text []byte
	if err == nil {
		text, err = os.ReadFile(name)
	}
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		return nil, fmt.Errorf("read the %s %s: %w", what, name, err)
	}
	return text, nil
}

// refusalByNATS says in one line why a server refuses a connection, whatever is
// repeated; "" where asking again can help.
func refusalByNATS(err error) string {
	switch {
	case errors.Is(err, nats.ErrAuthorization):
		return "the broker refuses the user, its password, its key or its credentials"
	case errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAccountAuthExpired):
		return "the credentials have expired; put newer ones into bus.nats.creds_file"
	case errors.Is(err, nats.ErrAuthRevoked):
		return "the credentials were revoked"
	case errors.Is(err, nats.ErrNkeysNotSupported):
		return "the broker takes no keys; use bus.user"
	case errors.Is(err, nats.ErrSecureConnWanted):
		return "the broker does not speak TLS there"
	}
	return refusalOfTLS(err, "bus.nats.tls.ca_file")
}

// deniedBy takes apart what a server says when its access rules do not allow something.
var deniedBy = regexp.MustCompile(`(?i)Permissions Violation for (Publish|Subscription) to "([^"]*)"`)

// denials are what the access rules of the broker do not allow on one connection. The
// server tells it beside the answers, and drops what it does not allow: whoever waits
// for an answer would wait for its timeout and learn nothing.
type denials struct {
	mu     sync.Mutex // a leaf
	told   map[string]bool
	asking map[*asking]bool
}

// asking is a question under way.
type asking struct {
	cancel  func()
	subject string // "": any of JetStream's
	denied  error
}

const (
	// maxDenials bounds the different denials of a connection that are told.
	maxDenials = 64
	// denialGrace is how long a question that was not the one denied may still be answered.
	denialGrace = 250 * time.Millisecond
)

// errDenied is a permanent error: only whoever changes the rules can help.
func errDenied(verb, subject string) error {
	return errPermanent{fmt.Errorf("the access rules of the broker do not allow %s %s", verb, subject)}
}

// ask registers a question. stop gives why it was denied, nil when it was not.
func (d *denials) ask(subject string, cancel func()) (stop func() error) {
	a := &asking{cancel: cancel, subject: subject}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asking == nil {
		d.asking = map[*asking]bool{}
	}
	d.asking[a] = true
	return func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.asking, a)
		return a.denied
	}
}

// hear takes what the server says, and reports whether it is a denial that was not told
// before: which verb on which subject.
func (d *denials) hear(err error, inbox string) (verb, subject string, denied, first bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return "", "", false, false
	}
	m := deniedBy.FindStringSubmatch(err.Error())
	if m == nil {
		return "", "", false, false
	}
	verb, subject = "publishing to", m[2]
	if strings.EqualFold(m[1], "Subscription") {
		verb = "reading"
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.told == nil {
		d.told = map[string]bool{}
	}
	first = len(d.told) < maxDenials && !d.told[verb+subject]
	if first {
		d.told[verb+subject] = true
	}
	anyone := strings.HasPrefix(subject, "$JS.") || strings.HasPrefix(subject, inbox+".")
	for a := range d.asking {
		switch {
		case a.subject == subject:
			a.denied = errDenied(verb, subject)
			a.cancel()
		case a.subject == "" && anyone:
			// It may be another question's; then this one is answered in the meantime.
			a.denied = errDenied(verb, subject)
			time.AfterFunc(denialGrace, a.cancel)
		}
	}
	return verb, subject, true, first
}

// heardError takes what the server says beside its answers.
func (n *NATS) heardError(d *denials, err error) {
	verb, subject, denied, first := d.hear(err, n.o.Security.inboxPrefix())
	switch {
	case !denied:
		n.log.Warn("the bus reports a problem", "error", err)
	case first:
		n.log.Warn("the access rules of the broker do not allow it", "what", verb, "subject", subject)
	}
	if denied && verb != "reading" && Match(Subjects, subject) {
		plain := n.o.plainSubject(subject)
		n.pubs[PartitionOf(plain, len(n.pubs))].deny(plain)
	}
}

// deny refuses what was sent to a subject that the broker's rules do not allow: it
// stands before others that may be taken.
func (p *publisher) deny(subject string) {
	p.mu.Lock()
	var denied []*entry
	for _, e := range p.entries {
		if e.sent && !e.answered && e.err == nil && e.m.Subject == subject {
			denied = append(denied, e)
		}
	}
	p.mu.Unlock()
	for _, e := range denied {
		p.giveUp(e, fmt.Errorf("publish to %s: the access rules of the broker do not allow it: %w", subject, ErrRefused))
	}
}
