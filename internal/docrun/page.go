// Package docrun runs the documentation: the commands and programs of its pages,
// as they are written there, and compares what they print with what the pages show.
//
// A comment before a fenced block says what becomes of it:
//
//	<!-- run: NAME -->                     run it; blocks of one name on one page share a shell and a folder, in order
//	<!-- run: NAME, in the repository -->  the same, in a copy of the repository
//	<!-- run: NAME, needs PROGRAM -->      the same, where there is such a program; elsewhere it is listed as NOT RUN
//	<!-- not run: REASON -->               leave it, and list it as NOT RUN
//	<!-- file: PATH -->                    write it to this file, in the folder of the blocks around it
//	<!-- output -->                        what the block before prints; `...` stands for any text, alone for any lines
//	<!-- output: numbers vary -->          the same, and a number stands for any number
//
// Blocks of sh and python must have one of the first four. How much white space
// stands between words never matters.
package docrun

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
)

// Action is what becomes of a block.
type Action string

// The actions of a block.
const (
	Unmarked Action = ""
	Run      Action = "run"
	NotRun   Action = "not run"
	File     Action = "file"
	Output   Action = "output"
)

// Block is one fenced block of a page.
type Block struct {
	Line         int    // of its fence, from 1
	Language     string // of the fence: sh, python, yaml, ...
	Text         string // ends in a line feed
	Action       Action
	Scenario     string // of Run: its name
	InRepository bool   // of Run
	Needs        string // of Run: a program, or empty
	Reason       string // of NotRun
	Path         string // of File, below the folder of the scenario
	NumbersVary  bool   // of Output
}

// Page is a Markdown file.
type Page struct {
	Name   string // path below the root of the repository
	Blocks []Block
}

// Executable says whether a block of this language must be marked.
func (b *Block) Executable() bool {
	switch b.Language {
	case "sh", "bash", "shell", "console", "python":
		return true
	}
	return false
}

var (
	fence   = regexp.MustCompile("^( *)(```+|~~~+)([A-Za-z0-9_+-]*)")
	comment = regexp.MustCompile(`^ *<!-- (run|not run|file|output)(?:: (.+?))? -->$`)
)

// Load reads a page below root.
func Load(root, name string) (Page, error) {
	text, err := os.ReadFile(path.Join(root, name))
	if err != nil {
		return Page{}, err
	}
	return Parse(name, string(text))
}

// Parse reads the text of a page. It refuses marks that stand before no block, and
// marks that it does not know.
func Parse(name, text string) (Page, error) {
	page := Page{Name: name}
	lines := strings.Split(text, "\n")
	mark := Block{}
	for i := 0; i < len(lines); i++ {
		if m := comment.FindStringSubmatch(lines[i]); m != nil {
			var err error
			if mark, err = parseMark(m[1], m[2]); err != nil {
				return page, fmt.Errorf("%s:%d: %w", name, i+1, err)
			}
			continue
		}
		m := fence.FindStringSubmatch(lines[i])
		if m == nil {
			if mark.Action != Unmarked {
				return page, fmt.Errorf("%s:%d: the mark before this line stands before no block", name, i+1)
			}
			continue
		}
		b, first := mark, i+1
		b.Line, b.Language = first, m[3]
		for i++; i < len(lines) && strings.TrimSpace(lines[i]) != m[2]; i++ {
			b.Text += strings.TrimPrefix(lines[i], m[1]) + "\n"
		}
		if i == len(lines) {
			return page, fmt.Errorf("%s:%d: the block has no end", name, first)
		}
		page.Blocks = append(page.Blocks, b)
		mark = Block{}
	}
	return page, page.check()
}

func parseMark(action, argument string) (Block, error) {
	b := Block{Action: Action(action)}
	switch {
	case b.Action == Run && argument != "":
		b.Scenario, b.Needs, _ = strings.Cut(argument, ", needs ")
		b.Scenario, b.InRepository = strings.CutSuffix(b.Scenario, ", in the repository")
		if !regexp.MustCompile(`^[a-z0-9-]+$`).MatchString(b.Scenario) {
			return b, fmt.Errorf("a scenario is a word of small letters, not %q", argument)
		}
	case b.Action == NotRun && argument != "":
		b.Reason = argument
	case b.Action == File && argument != "":
		b.Path = argument
		if path.IsAbs(argument) || !fsLocal(argument) {
			return b, fmt.Errorf("the file %q is not below the folder of the page", argument)
		}
	case b.Action == Output && (argument == "" || argument == "numbers vary"):
		b.NumbersVary = argument != ""
	default:
		return b, fmt.Errorf("%q is no mark of a block", strings.TrimSpace(action+": "+argument))
	}
	return b, nil
}

func fsLocal(name string) bool { return path.Clean(name) == name && !strings.HasPrefix(name, "..") }

// check finds output that no block before it prints, and files of no scenario.
func (p *Page) check() error {
	for i, b := range p.Blocks {
		switch {
		case b.Action == Output && (i == 0 || p.Blocks[i-1].Action != Run):
			return fmt.Errorf("%s:%d: output stands behind no block that is run", p.Name, b.Line)
		case b.Action == File && p.ScenarioOf(i) == "":
			return fmt.Errorf("%s:%d: the page runs nothing that could use the file %s", p.Name, b.Line, b.Path)
		case b.Action == Run && b.Language != "sh" && b.Language != "python":
			return fmt.Errorf("%s:%d: a block of %q cannot be run", p.Name, b.Line, b.Language)
		}
	}
	return nil
}

// ScenarioOf is the scenario of block i: of a file, that of the next block that is
// run, or of the one before it.
func (p *Page) ScenarioOf(i int) string {
	for _, b := range p.Blocks[i:] {
		if b.Action == Run {
			return b.Scenario
		}
	}
	for ; i >= 0; i-- {
		if p.Blocks[i].Action == Run {
			return p.Blocks[i].Scenario
		}
	}
	return ""
}

// Scenarios lists the names of what a page runs, in order.
func (p *Page) Scenarios() []string {
	var names []string
	seen := map[string]bool{}
	for _, b := range p.Blocks {
		if b.Action == Run && !seen[b.Scenario] {
			seen[b.Scenario] = true
			names = append(names, b.Scenario)
		}
	}
	return names
}
