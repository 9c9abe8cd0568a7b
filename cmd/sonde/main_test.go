package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Exit codes are part of the interface: scripts rely on them.
func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	for file, text := range map[string]string{good: "agent:\n  wait: event\n", bad: "agent:\n  wiat: event\n"} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args string
		code int
		text string // must stand in the output
	}{
		{"--help", exitOK, "sonde demo"},
		{"version", exitOK, "sonde "},
		{"validate --help", exitOK, "exit code is then 2"},
		{"validate " + good, exitOK, "is valid"},
		{"validate " + bad, exitUsage, "agent.wiat: unknown key; write wait"},
		{"validate " + filepath.Join(dir, "absent.yaml"), exitUsage, "no such file"},
		{"validate", exitUsage, "write sonde validate FILE; see"},
		{"run extra", exitUsage, "got 1 argument(s), [\"extra\"]; write sonde run; see"},
		{"validate " + dir, exitUsage, "is a directory; give a file"},
		{"tap rign", exitUsage, "did you mean ring?"},
		{"validate --frobnicate x", exitUsage, "sonde validate --help"},
		{"frobnicate", exitUsage, "unknown command"},
		{"confg", exitUsage, "did you mean config? see sonde --help"},
		{"lake", exitOK, "sonde lake verify"},
		{"lake frobnicate", exitUsage, "unknown command \"frobnicate\" for \"sonde lake\""},
		{"replay " + filepath.Join(dir, "absent"), exitFailed, "name the folder that sonde record wrote"},
	} {
		var out, errOut bytes.Buffer
		code := run(strings.Fields(c.args), &out, &errOut)
		if code != c.code {
			t.Errorf("sonde %s: exit code %d, want %d; stderr: %s", c.args, code, c.code, errOut.String())
		}
		if text := out.String() + errOut.String(); !strings.Contains(text, c.text) {
			t.Errorf("sonde %s: output lacks %q:\n%s", c.args, c.text, text)
		}
	}
}
