package docrun

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Scenario runs the blocks of one name on one page, in order, in one shell.
type Scenario struct {
	Page     Page
	Name     string
	Dir      string // empty folder where the blocks run
	Root     string // the repository
	Path     string // of the shell
	Python   bool   // whether python is in Path, and has what the pages import
	Isolated bool   // see Shell
	Limit    time.Duration
}

// Linked lists what lies in the folder of a scenario from the start.
var Linked = []string{"models", "examples", "detectors"}

// Result is what became of a block.
type Result struct {
	Block  Block
	Output string
	Err    error // it ended badly, or printed something else than the page shows
}

// Run runs the scenario, and returns a result for each block that was begun; the
// last may have failed. The error is about the scenario as a whole.
func (s *Scenario) Run() ([]Result, error) {
	notes, err := os.MkdirTemp(filepath.Dir(s.Dir), "notes")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(notes)
	if err := s.prepare(); err != nil {
		return nil, err
	}
	script := filepath.Join(notes, "script")
	if err := os.WriteFile(script, []byte(s.script(notes)), 0o600); err != nil {
		return nil, err
	}
	shell := Shell(script, s.Isolated)
	shell.Dir = s.Dir
	shell.Env = s.environment(shell.Env)
	if err := shell.Start(); err != nil {
		return nil, fmt.Errorf("start a shell: %w", err)
	}
	// What the page leaves in the background ends with its shell.
	kill := func() { _ = syscall.Kill(-shell.Process.Pid, syscall.SIGKILL) }
	expired := time.AfterFunc(s.Limit, kill)
	ended := shell.Wait()
	inTime := expired.Stop()
	kill()
	results, err := s.collect(notes, ended)
	if !inTime && err == nil {
		err = fmt.Errorf("the page was not done after %v", s.Limit)
	}
	return results, err
}

// prepare lays the folder out as the pages say.
func (s *Scenario) prepare() error {
	for _, b := range s.Page.Blocks {
		if b.Action == Run && b.Scenario == s.Name && b.InRepository {
			return copyRepository(s.Root, s.Dir)
		}
	}
	for _, name := range Linked {
		if err := os.Symlink(filepath.Join(s.Root, name), filepath.Join(s.Dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// environment leaves out what would make commands behave otherwise than on the
// machine of a reader.
func (s *Scenario) environment(base []string) []string {
	var env []string
	for _, v := range base {
		name, _, _ := strings.Cut(v, "=")
		lower := strings.ToLower(name)
		if strings.HasSuffix(lower, "_proxy") || name == "PATH" || name == "MAKEFLAGS" || name == "MAKELEVEL" ||
			strings.HasPrefix(name, "SONDE_") && name != worldVariable {
			continue
		}
		env = append(env, v)
	}
	return append(env, "PATH="+s.Path, "PYTHONPATH="+filepath.Join(s.Root, "hookpoint"))
}

// script is what bash runs: each block as it is written, with its output in a file
// of its own. A command that fails ends it.
func (s *Scenario) script(notes string) string {
	var b strings.Builder
	b.WriteString("set -e\n")
	for i, block := range s.Page.Blocks {
		if s.Page.ScenarioOf(i) != s.Name {
			continue
		}
		switch {
		case block.Action == File:
			fmt.Fprintf(&b, "mkdir -p \"$(dirname '%s')\"\ncat >'%s' <<'END_OF_DOCRUN'\n%sEND_OF_DOCRUN\n",
				block.Path, block.Path, block.Text)
		case block.Action == Run && block.Language == "python" && s.Python:
			fmt.Fprintf(&b, "%spython - <<'END_OF_DOCRUN'\n%sEND_OF_DOCRUN\n", begin(notes, i), block.Text)
		case block.Action == Run && block.Language == "sh":
			b.WriteString(begin(notes, i) + block.Text)
		}
	}
	return b.String() + begin(notes, len(s.Page.Blocks))
}

// begin directs the output into the file of block i.
func begin(notes string, i int) string { return fmt.Sprintf("exec >'%s/%05d' 2>&1\n", notes, i) }

// collect reads the outputs, and compares them with the page.
func (s *Scenario) collect(notes string, ended error) ([]Result, error) {
	var results []Result
	for i, block := range s.Page.Blocks {
		name := filepath.Join(notes, fmt.Sprintf("%05d", i))
		text, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return results, err
		}
		r := Result{Block: block, Output: string(text)}
		if i+1 < len(s.Page.Blocks) {
			if shown := s.Page.Blocks[i+1]; shown.Action == Output {
				r.Err = Match(shown.Text, r.Output, shown.NumbersVary)
			}
		}
		results = append(results, r)
	}
	if ended == nil {
		return results, nil
	}
	if len(results) == 0 {
		return nil, fmt.Errorf("the shell ended before its first block: %w", ended)
	}
	last := &results[len(results)-1]
	last.Err = fmt.Errorf("a command of this block failed (%w); the block printed:\n%s", ended, last.Output)
	return results, nil
}

// copyRepository copies what a fresh checkout holds.
func copyRepository(root, dir string) error {
	return filepath.WalkDir(root, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil || rel == "." {
			return err
		}
		if d.IsDir() {
			if strings.HasPrefix(rel, ".") || rel == "build" || rel == "data" || d.Name() == "build" {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(dir, rel), 0o755)
		}
		if !d.Type().IsRegular() {
			return nil
		}
		return copyFile(name, filepath.Join(dir, rel))
	})
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, info.Mode().Perm())
}
