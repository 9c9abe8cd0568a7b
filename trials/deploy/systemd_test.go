package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sonde/internal/notrun"
)

// units are the files of deploy/systemd, by the name under which one is started.
var units = map[string]string{"sonde.service": "sonde.service", "sonde@agent.service": "sonde@.service",
	"sonde@materializer.service": "sonde@.service", "sonde@detector.service": "sonde@.service",
	"sonde@bus.service": "sonde@.service"}

// mostExposure is the level, in tenths, up to which systemd-analyze calls a unit well
// protected. What is left of it are the network and the sockets of the machine.
const mostExposure = "20"

func needTool(t *testing.T, name, why string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		notrun.Mark(t, why+" needs "+name+", and none was found")
	}
}

// installed writes a unit whose program is the one that was built.
func installed(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	write(t, path, replaced(t, read(t, "deploy/systemd/"+units[name]), "/usr/local/bin/sonde", sonde(t)))
	return path
}

// The fear: a unit with a key that systemd does not know, which it passes over, or that
// leaves the machine open to whoever takes over the process.
func TestUnitsAreRightAndHardened(t *testing.T) {
	needTool(t, "systemd-analyze", "the check of the units")
	dir := t.TempDir()
	for name := range units {
		path := installed(t, dir, name)
		for _, args := range [][]string{{"verify", "--man=no", path},
			{"security", "--offline=true", "--no-pager", "--threshold=" + mostExposure, path}} {
			if out, err := exec.Command("systemd-analyze", args...).CombinedOutput(); err != nil ||
				args[0] == "verify" && len(out) > 0 {
				t.Errorf("systemd-analyze %q: %v\n%s", args, err, out)
			}
		}
	}
	// That the check finds anything at all.
	bad := filepath.Join(dir, "bad.service")
	good := readFile(t, filepath.Join(dir, "sonde.service"))
	write(t, bad, strings.Replace(good, "NoNewPrivileges", "NoMorePrivileges", 1))
	out, _ := exec.Command("systemd-analyze", "verify", "--man=no", bad).CombinedOutput()
	if !strings.Contains(string(out), "NoMorePrivileges") {
		t.Errorf("a wrong key is passed over: %s", out)
	}
}

var execStart = regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/sonde (.+)$`)

// The fear: two units that drift apart, or a command line that sonde does not know.
func TestUnitsDifferInTheirCommandAlone(t *testing.T) {
	one, each := read(t, "deploy/systemd/sonde.service"), read(t, "deploy/systemd/sonde@.service")
	_, one, _ = strings.Cut(one, "\nUser=")
	_, each, _ = strings.Cut(each, "\nUser=")
	if one == "" || one != each {
		t.Error("sonde.service and sonde@.service differ behind their command lines")
	}
	for name, file := range units {
		m := execStart.FindStringSubmatch(read(t, "deploy/systemd/"+file))
		if m == nil {
			t.Fatalf("%s starts no sonde", file)
		}
		instance := strings.TrimSuffix(strings.TrimPrefix(name, "sonde@"), ".service")
		args := strings.Fields(strings.ReplaceAll(m[1], "%i", instance))
		dir := t.TempDir()
		at := slices.Index(args, "--config") + 1
		args[at] = filepath.Join(dir, "wrong.yaml")
		write(t, args[at], "no_such_key: 1\n")
		out, code := run(t, dir, nil, args...)
		if code != 2 || !strings.Contains(out, "no_such_key") {
			t.Errorf("%s: %q: exit code %d, %s; want 2 for the configuration", name, args, code, out)
		}
		if !strings.Contains(read(t, "deploy/systemd/"+file), "RestartPreventExitStatus=2\n") {
			t.Errorf("%s repeats a start with a wrong configuration", file)
		}
	}
}

// The fear: the filter of system calls stops something that sonde does, on the machine of
// whoever installs it and nowhere before.
func TestUnitsAllowEverySystemCallThatSondeMakes(t *testing.T) {
	needTool(t, "strace", "the list of system calls that sonde makes")
	needTool(t, "systemd-analyze", "the list of system calls that a unit allows")
	allowed := filter(t, "@system-service")
	for call := range filter(t, "@privileged") {
		delete(allowed, call)
	}
	for _, line := range []string{"SystemCallFilter=@system-service\n", "SystemCallFilter=~@privileged\n"} {
		if !strings.Contains(read(t, "deploy/systemd/sonde.service"), line) {
			t.Fatalf("sonde.service has no line %s", line)
		}
	}
	dir := t.TempDir()
	http := freeAddress(t)
	write(t, filepath.Join(dir, "sonde.yaml"), "bus: {embedded: {listen: "+freeAddress(t)+"}}\n"+
		"http: {listen: "+http+"}\ndetectors: [{bundle: "+mustAbs(t, root+"/detectors/german")+"}]\n"+everyHook)
	counts := filepath.Join(dir, "calls.txt")
	wrapper := filepath.Join(dir, "traced")
	// With -D, strace is the grandchild, and signals reach sonde.
	write(t, wrapper, "#!/bin/sh\nexec strace -D -f -c -U name -o "+counts+" "+sonde(t)+" \"$@\"\n")
	if err := os.Chmod(wrapper, 0o755); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, dir)
	s.startProgram("sonde", wrapper, http, "run", "--config", "sonde.yaml")
	s.capture()
	var made []string
	for until := time.Now().Add(10 * time.Second); len(made) == 0 && time.Now().Before(until); {
		time.Sleep(10 * time.Millisecond)
		made = strings.Fields(readFile(t, counts)) // strace writes it when sonde has ended
	}
	if !slices.Contains(made, "fsync") || !slices.Contains(made, "mmap") {
		t.Fatalf("strace counted %q", made)
	}
	for _, call := range made {
		if regexp.MustCompile(`^[a-z][a-z0-9_]+$`).MatchString(call) && call != "syscall" && call != "total" && !allowed[call] {
			t.Errorf("sonde run calls %s, which the unit does not allow", call)
		}
	}
}

// filter lists the system calls of a group, and of the groups in it.
func filter(t *testing.T, group string) map[string]bool {
	t.Helper()
	text, err := exec.Command("systemd-analyze", "--no-pager", "syscall-filter", group).Output()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, word := range strings.Fields(string(text))[1:] {
		switch {
		case strings.HasPrefix(word, "@"):
			for call := range filter(t, word) {
				out[call] = true
			}
		default:
			out[word] = true
		}
	}
	return out
}
