package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Scripts go on or stop by the exit codes of doctor and top.
func TestExitCodesOfDoctorAndTop(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	folders := fmt.Sprintf("agent: {socket: %s/s, dead_letter: {dir: %s/a, max_bytes: 0}}\n"+
		"materializer: {lake: %s/lake, dead_letter_dir: %s/m}\n", dir, dir, dir, dir)
	store := fmt.Sprintf("bus: {embedded: {store_dir: %s/bus, listen: \"\"}}\n", dir)
	good := write("good.yaml", folders+store+"http: {listen: \"\"}\n")
	// Nobody accepts there, so that the probe of HTTP runs into its time limit.
	bad := write("bad.yaml", folders+store+"http: {listen: \""+taken.Addr().String()+"\"}\n")
	wrong := write("wrong.yaml", "htpp: {}\n")
	for _, c := range []struct {
		args string
		code int
		text string
	}{
		{"doctor --config " + good, exitOK, "ok    bus"},
		{"doctor --json --config " + bad, exitFailed, `{"level":"fail","check":"http"`},
		{"doctor --config " + wrong, exitUsage, "unknown key"},
		{"doctor now", exitUsage, ""},
		{"top --once --url http://127.0.0.1:1", exitFailed, "UNREACHABLE"},
		{"top --url localhost:9464", exitUsage, "write one like"},
	} {
		var out, errOut bytes.Buffer
		code := run(strings.Fields(c.args), &out, &errOut)
		if text := out.String() + errOut.String(); code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("sonde %s: exit code %d, want %d and %q:\n%s", c.args, code, c.code, c.text, text)
		}
	}
}
