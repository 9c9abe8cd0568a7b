package deploy

import (
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"sonde/bus/natstest"
)

// The fear: rights that are right for the rows, and too few for the programs that carry
// them: for a fact, a verdict, a command, or its answer.
func TestEveryRoleWorksWithTheRightsOfItsUser(t *testing.T) {
	dir := t.TempDir()
	for _, user := range []string{"MATERIALIZER", "AGENT_ALPHA", "AGENT_BETA", "DETECTOR", "READER_BETA"} {
		t.Setenv(user+"_PASSWORD", secret)
	}
	conf, err := filepath.Rel(dir, mustAbs(t, root+"/deploy/nats/tenants.conf"))
	if err != nil {
		t.Fatal(err)
	}
	server := natstest.Need(t, natstest.Options{Dir: dir, Lines: []string{`include "` + conf + `"`}})
	write(t, filepath.Join(dir, "password"), secret)
	s := newSite(t, dir)
	for _, r := range [][2]string{{"materializer", "materializer"}, {"detector", "detector"}, {"agent", "agent-alpha"}} {
		role, user := r[0], r[1]
		listen := freeAddress(t)
		write(t, filepath.Join(dir, role+".yaml"), "bus:\n  url: "+server.URL+"\n  user: "+user+"\n"+
			"  password_file: password\n"+
			"  nats: {inbox_prefix: _INBOX_"+strings.ReplaceAll(user, "-", "_")+"}\nhttp: {listen: "+listen+"}\n"+
			"detectors: [{bundle: "+mustAbs(t, root+"/detectors/german")+", mode: enforce}]\n")
		s.start(role, listen, "run", "--config", role+".yaml", "--role", role)
	}
	address := freeAddress(t)
	engine := spawn(t, "engine", dir, sonde(t), "engine", "--model", mustAbs(t, root+"/models/trilingual"),
		"--listen", address, "--ring-socket", s.socket, "--wait-agent", "20s", "--step-delay", "20ms")
	ready(t, "http://"+address+"/healthz", engine)
	answer, err := http.Post("http://"+address+"/v1/completions", "application/json", strings.NewReader(`{"prompt":
		"Das Paket ist in der Liste der Pakete, die nicht mehr gebraucht werden und", "max_tokens": 200, "sonde": {"tenant": "alpha"}}`))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	if answer.Body.Close(); err != nil || !strings.Contains(string(text), `"finish_reason":"detector"`) {
		t.Errorf("the detector did not stop the request: %s, %v", text, err)
	}
	stop(t, engine)
	s.await()
	for _, p := range s.roles {
		stop(t, p)
	}
	for _, name := range []string{"materializer", "detector", "agent"} {
		log := readFile(t, filepath.Join(dir, name+".log"))
		if strings.Contains(log, "access rules") {
			t.Errorf("%s lacks a right:\n%s", name, log)
		}
	}
}
