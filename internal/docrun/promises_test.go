package docrun

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	goTest     = regexp.MustCompile("^- \\[`([a-z0-9_/]+)\\.((?:Test|Fuzz)[A-Za-z0-9_]+)`\\]\\(\\.\\./([^)]+)\\)$")
	pythonTest = regexp.MustCompile("^- \\[`([a-z0-9_/]+\\.py)::(test_[a-z0-9_]+)`\\]\\(\\.\\./([^)]+)\\)$")
	makeRun    = regexp.MustCompile("`make ([a-z-]+)`")
)

// brokenProofs lists what a page of promises names and what is not there, and
// promises without a test.
func brokenProofs(root, text string) []string {
	var broken []string
	promise, tests := "", 0
	done := func() {
		if promise != "" && tests == 0 {
			broken = append(broken, promise+" names no test")
		}
	}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		broken = append(broken, err.Error())
	}
	for _, line := range strings.Split(text, "\n") {
		for _, m := range makeRun.FindAllStringSubmatch(line, -1) {
			if !strings.Contains(string(makefile), "\n"+m[1]+":") {
				broken = append(broken, "make "+m[1]+" does not exist")
			}
		}
		if title, ok := strings.CutPrefix(line, "## "); ok {
			done()
			promise, tests = title, 0
		}
		if !strings.HasPrefix(line, "- ") {
			continue
		}
		tests++
		if problem := proofProblem(root, line); problem != "" {
			broken = append(broken, problem)
		}
	}
	done()
	return broken
}

func proofProblem(root, line string) string {
	definition := ""
	m := goTest.FindStringSubmatch(line)
	if m != nil {
		if m[1] != path.Dir(m[3]) || !strings.HasSuffix(m[3], "_test.go") {
			return fmt.Sprintf("%s is in %s, not in package %s", m[2], m[3], m[1])
		}
		definition = "\nfunc " + m[2] + "("
	} else if m = pythonTest.FindStringSubmatch(line); m != nil {
		if m[1] != m[3] {
			return fmt.Sprintf("%s links to %s", m[1], m[3])
		}
		definition = "\ndef " + m[2] + "("
	} else {
		return line + " names no test"
	}
	source, err := os.ReadFile(filepath.Join(root, m[3]))
	if err != nil {
		return err.Error()
	}
	if !strings.Contains(string(source), definition) {
		return m[3] + " has no test " + m[2]
	}
	return ""
}

// The fear: a promise whose proof was renamed or removed.
func TestEveryPromiseIsProvedByTestsThatExist(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root(t), "docs", "promises.md"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n- "); n < 50 {
		t.Errorf("docs/promises.md names only %d tests: the pattern of this test no longer fits", n)
	}
	for _, b := range brokenProofs(root(t), string(text)) {
		t.Errorf("docs/promises.md: %s", b)
	}
}

func TestPromisesWithoutProofAreFound(t *testing.T) {
	dir := t.TempDir()
	files := map[string]string{"Makefile": "\ntorture: build\n",
		"a/x_test.go": "package a\n\nfunc TestX(t *testing.T) {}\n", "a/test_y.py": "\ndef test_y() -> None:\n"}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for text, wrong := range map[string]string{
		"## P\n- [`a.TestX`](../a/x_test.go)\n`make torture`": "",
		"## P\n- [`a/test_y.py::test_y`](../a/test_y.py)":     "",
		"## P\n- [`a.TestXY`](../a/x_test.go)":                "a/x_test.go has no test TestXY",
		"## P\n- [`b.TestX`](../a/x_test.go)":                 "TestX is in a/x_test.go, not in package b",
		"## P\n- [`a/test_y.py::test_z`](../a/test_y.py)":     "a/test_y.py has no test test_z",
		"## P\n- TestX": "- TestX names no test",
		"## P\nwords\n## Q\n- [`a.TestX`](../a/x_test.go)":       "P names no test",
		"## P\n- [`a.TestX`](../a/x_test.go)\n\n`make nonsense`": "make nonsense does not exist",
	} {
		if got := strings.Join(brokenProofs(dir, text), "; "); got != wrong {
			t.Errorf("%q: %q, want %q", text, got, wrong)
		}
	}
}
