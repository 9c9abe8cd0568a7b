package config

import (
	"net/url"
	"regexp"
	"strings"
)

var inboxPattern = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)

func (w *walk) checkNATS(b Bus) {
	for address := range strings.SplitSeq(b.URL, ",") {
		if b.URL == "" {
			break
		}
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || (u.Scheme != "nats" && u.Scheme != "tls") {
			w.wrong("bus.url", "not the address of a NATS server; write nats://host:4222, with commas between several")
			break
		}
		if u.User != nil {
			w.secret("bus.url", "holds a login; write bus.user, and the password into "+PasswordVariable+
				" or the file named by bus.password_file")
			break
		}
	}
	if _, both := w.lines["bus.embedded"]; both && b.URL != "" {
		w.wrong("bus.embedded", "the embedded bus does not run beside bus.url; remove one of the two")
	}
	if _, written := w.lines["bus.nats"]; !written {
		return
	}
	if b.URL == "" {
		w.wrong("bus.nats", "nothing without bus.url; write the address of your server, or remove it")
	}
	n := b.NATS
	w.between("bus.nats.replicas", n.Replicas)
	if n.InboxPrefix != "" && !inboxPattern.MatchString(n.InboxPrefix) {
		w.wrong("bus.nats.inbox_prefix", "not a subject; write one like _INBOX_tenant")
	}
	if n.NKeyFile != "" && n.CredsFile != "" {
		w.wrong("bus.nats.nkey_file", "there is bus.nats.creds_file too; one proof is enough, remove the other")
	}
	if (n.NKeyFile != "" || n.CredsFile != "") && (b.User != "" || b.PasswordFile != "") {
		w.missing("bus.nats", "bus.user", "there is a key or credentials file too; one proof is enough, remove the other")
	}
	w.checkTLS("bus.nats.tls", n.TLS, b.NATSUsesTLS())
}

// checkTLS looks at the files of a block. on says whether TLS is spoken.
func (w *walk) checkTLS(path string, t TLS, on bool) {
	if !on && (t.CAFile != "" || t.CertFile != "" || t.KeyFile != "") {
		w.missing(path, path+".enabled", "files without TLS; write enabled: true, or remove them")
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		w.missing(path, path+".cert_file", "a certificate and its key go together; write both or none")
	}
}
