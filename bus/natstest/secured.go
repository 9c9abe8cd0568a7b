package natstest

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// TLS is the line of a server that speaks TLS and asks clients for a certificate, with
// the files that wiretest.Certificates writes below dir.
func TLS(dir string) string {
	return fmt.Sprintf("tls { cert_file: %q, key_file: %q, ca_file: %q, verify: true }", filepath.Join(dir, "server.pem"),
		filepath.Join(dir, "server.key"), filepath.Join(dir, "ca.pem"))
}

// UserKey writes the seed of a new user into a file, and gives its public key.
func UserKey(name string) (public string, err error) {
	_, public, err = newKey(name, nkeys.CreateUser)
	return public, err
}

// newKey writes the seed of a new key into a file.
func newKey(name string, create func() (nkeys.KeyPair, error)) (key nkeys.KeyPair, public string, err error) {
	if key, err = create(); err != nil {
		return nil, "", err
	}
	if public, err = key.PublicKey(); err != nil {
		return nil, "", err
	}
	seed, err := key.Seed()
	if err != nil {
		return nil, "", err
	}
	return key, public, os.WriteFile(name, append(seed, '\n'), 0o600)
}

// Tokens are the lines of a server whose accounts and users are known by their tokens
// alone. Below dir it writes the credentials of a user of an account with JetStream,
// user.creds, and those of one that has expired, expired.creds, with the keys of all.
func Tokens(dir string) ([]string, error) {
	operator, operatorName, err := newKey(filepath.Join(dir, "operator.nk"), nkeys.CreateOperator)
	if err != nil {
		return nil, err
	}
	account, accountName, err := newKey(filepath.Join(dir, "account.nk"), nkeys.CreateAccount)
	if err != nil {
		return nil, err
	}
	_, system, err := newKey(filepath.Join(dir, "system.nk"), nkeys.CreateAccount)
	if err != nil {
		return nil, err
	}
	for name, valid := range map[string]time.Duration{"user": time.Hour, "expired": -time.Hour} {
		if err := credentials(filepath.Join(dir, name), account, time.Now().Add(valid)); err != nil {
			return nil, err
		}
	}
	o := jwt.NewOperatorClaims(operatorName)
	o.SystemAccount = system
	ours := jwt.NewAccountClaims(accountName)
	ours.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: -1, MemoryStorage: -1, Streams: -1, Consumer: -1}
	var texts []string
	for _, claims := range []jwt.Claims{o, ours, jwt.NewAccountClaims(system)} {
		text, err := claims.Encode(operator)
		if err != nil {
			return nil, err
		}
		texts = append(texts, text)
	}
	return []string{"operator: " + texts[0], "resolver: MEMORY", "system_account: " + system,
		fmt.Sprintf("resolver_preload: { %s: %s, %s: %s }", accountName, texts[1], system, texts[2])}, nil
}

// credentials writes NAME.creds of a new user, and its key NAME.nk.
func credentials(name string, account nkeys.KeyPair, expires time.Time) error {
	user, public, err := newKey(name+".nk", nkeys.CreateUser)
	if err != nil {
		return err
	}
	claims := jwt.NewUserClaims(public)
	claims.Expires = expires.Unix()
	token, err := claims.Encode(account)
	if err != nil {
		return err
	}
	seed, err := user.Seed()
	if err != nil {
		return err
	}
	text, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		return err
	}
	return os.WriteFile(name+".creds", text, 0o600)
}
