package docrun

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sonde/internal/notrun"
)

func TestMain(m *testing.M) {
	Enter()
	code := m.Run()
	if binary.dir != "" {
		_ = os.RemoveAll(binary.dir) // It lies among temporary files.
	}
	os.Exit(code)
}

const pageLimit = 5 * time.Minute // a page that hangs must not hang the tests

func root(t *testing.T) string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// pages lists every Markdown file of the project.
func pages(t *testing.T) []string {
	var names []string
	base := root(t)
	err := filepath.WalkDir(base, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(base, name)
		if err != nil {
			return err
		}
		if d.IsDir() && rel != "." {
			switch {
			case strings.HasPrefix(d.Name(), "."), d.Name() == "build", d.Name() == "testdata", rel == "data":
				return filepath.SkipDir
			}
		}
		if filepath.Ext(name) == ".md" {
			names = append(names, filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < 10 {
		t.Fatalf("found only %d pages below %s", len(names), base)
	}
	return names
}

// runHere says whether this test runs the blocks of a page. Those of hookpoint are
// run by its own tests, beside the processes that they start.
func runHere(name string) bool { return name == "README.md" || strings.HasPrefix(name, "docs/") }

// The fear: a command in the documentation that nobody ever ran.
func TestEveryCommandIsRunOrSaysWhyNot(t *testing.T) {
	for _, name := range pages(t) {
		page, err := Load(root(t), name)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, b := range page.Blocks {
			if b.Executable() && (b.Action == Unmarked || b.Action == Output) {
				t.Errorf("%s:%d: a block of %s without a mark; write <!-- run: NAME -->, <!-- file: PATH --> or "+
					"<!-- not run: REASON --> before it (go doc ./internal/docrun)", name, b.Line, b.Language)
			}
		}
	}
}

// The fear: documentation that does not work for whoever follows it.
func TestPagesWorkAsTheyAreWritten(t *testing.T) {
	isolated := canIsolate(t)
	for _, name := range pages(t) {
		if !runHere(name) {
			continue
		}
		page, err := Load(root(t), name)
		if err != nil {
			t.Fatal(err)
		}
		for _, scenario := range page.Scenarios() {
			t.Run(name+"/"+scenario, func(t *testing.T) {
				if isolated {
					t.Parallel()
				} else if port := BusyPort(); port != "" {
					notrun.Mark(t, "needs a network of its own, which this machine does not give, or a free port "+port)
				}
				runScenario(t, page, scenario, isolated)
			})
		}
		for _, b := range page.Blocks {
			if b.Action == NotRun {
				t.Run(place(page, b), func(t *testing.T) { notrun.Mark(t, b.Reason) })
			}
		}
	}
}

func runScenario(t *testing.T, page Page, name string, isolated bool) {
	for _, b := range page.Blocks {
		if b.Scenario == name && b.Needs != "" {
			need(t, b.Needs)
		}
	}
	need(t, "curl")
	python := pythonFolder(t)
	dir := shortDir(t)
	s := Scenario{Page: page, Name: name, Dir: dir, Root: root(t), Python: python != "", Isolated: isolated,
		Limit: pageLimit, Path: strings.Join([]string{binaryFolder(t), python, os.Getenv("PATH")}, ":")}
	started := time.Now()
	results, err := s.Run()
	t.Logf("%d blocks in %v", len(results), time.Since(started).Round(time.Millisecond))
	for _, r := range results {
		t.Logf("%s printed:\n%s", place(page, r.Block), r.Output)
		if r.Err != nil {
			t.Errorf("%s: %v", place(page, r.Block), r.Err)
		}
	}
	if err != nil {
		t.Errorf("%s: %v", page.Name, err)
	}
	if t.Failed() {
		logs(t, dir)
	}
	for _, b := range page.Blocks {
		if b.Action == Run && b.Scenario == name && b.Language == "python" && python == "" {
			t.Run(place(page, b), func(t *testing.T) {
				notrun.Mark(t, "needs the Python environment; make test-python makes it")
			})
		}
	}
}

func need(t *testing.T, program string) {
	if _, err := exec.LookPath(program); err != nil {
		notrun.Mark(t, "needs "+program+", and none was found")
	}
}

func place(page Page, b Block) string {
	return strings.ReplaceAll(page.Name, "/", "_") + "_line_" + strconv.Itoa(b.Line)
}

// logs shows what the processes of a page that failed wrote to *.log.
func logs(t *testing.T, dir string) {
	names, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Errorf("%v", err)
		}
		t.Logf("--- %s:\n%s", filepath.Base(name), text[max(0, len(text)-4000):])
	}
}

// shortDir is a folder whose path leaves room for the name of a socket.
func shortDir(t *testing.T) string {
	base, err := os.MkdirTemp("", "docs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Errorf("%v", err)
		}
	})
	dir := filepath.Join(base, "page")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

var binary struct {
	once sync.Once
	dir  string
	err  error
}

// programs are those that the pages want on the path. The broker is the one that
// sonde embeds, as a program of its own.
var programs = []string{"./cmd/sonde", "github.com/nats-io/nats-server/v2"}

// binaryFolder is a folder with the programs, made of this source tree.
func binaryFolder(t *testing.T) string {
	binary.once.Do(func() {
		if binary.dir, binary.err = os.MkdirTemp("", "sonde-docs-bin"); binary.err != nil {
			return
		}
		build := exec.Command("go", append([]string{"build", "-trimpath", "-o", binary.dir + "/"}, programs...)...)
		build.Dir, build.Env = root(t), append(os.Environ(), "CGO_ENABLED=0")
		out, err := build.CombinedOutput()
		if err != nil {
			binary.err = errors.New("go build: " + err.Error() + "\n" + string(out))
		}
	})
	if binary.err != nil {
		t.Fatal(binary.err)
	}
	return binary.dir
}

// pythonFolder is the folder of a python that has what the pages import, or empty.
func pythonFolder(t *testing.T) string {
	dir := filepath.Join(root(t), ".venv", "bin")
	probe := exec.Command(filepath.Join(dir, "python"), "-c", "import numpy, pyarrow, nats, duckdb, polars, datafusion")
	if probe.Run() != nil {
		return ""
	}
	return dir
}

func canIsolate(t *testing.T) bool {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return CanIsolate(empty)
}
