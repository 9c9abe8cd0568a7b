package config

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// PasswordVariable is the only environment variable that overrides a file: a
// secret must not stand in the configuration, and never on a command line, where
// every user of the machine could read it.
const PasswordVariable = "SONDE_BUS_PASSWORD"

const secretHint = "write it into the variable " + PasswordVariable + ", or into the file that bus.password_file names"

// secretKey is what people call a key for a secret. None of ours holds one.
var secretKey = regexp.MustCompile(`(?i)passw(or)?d$|^pass$|secret|token$|credential|api_?key`)

const maxSecretBytes = 4096

// Password is the password of Bus.User: of the environment, or else of
// Bus.PasswordFile without the line's end. Without either it is empty.
func (b Bus) Password() (string, error) {
	if v := os.Getenv(PasswordVariable); v != "" {
		return v, nil
	}
	if b.PasswordFile == "" {
		return "", nil
	}
	text, err := os.ReadFile(b.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("read bus.password_file: %w", err)
	}
	if len(text) > maxSecretBytes {
		return "", fmt.Errorf("read bus.password_file %s: %d bytes are no password; at most %d", b.PasswordFile, len(text),
			maxSecretBytes)
	}
	password := strings.TrimRight(string(text), "\r\n")
	if password == "" {
		return "", fmt.Errorf("read bus.password_file %s: it is empty", b.PasswordFile)
	}
	return password, nil
}
