package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "write docs/reference anew")

const repository = "../.."

// generatedNote opens each page, so that nobody edits one.
const generatedNote = "<!-- Made from the code by make docs-reference. Change the code, not this page. -->\n\n"

// The fear: a reference that says what the code did last month.
func TestReferencePagesAreWhatTheCodeSays(t *testing.T) {
	for name, make := range map[string]func(*testing.T) string{"cli": cliPage, "tables": tablesPage,
		"messages": messagesPage, "words": wordsPage, "errors": errorsPage} {
		path := filepath.Join(repository, "docs", "reference", name+".md")
		want := generatedNote + strings.TrimRight(make(t), "\n") + "\n"
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Errorf("%v; write it with make docs-reference", err)
			continue
		}
		if at := firstDifference(string(got), want); at != "" {
			t.Errorf("docs/reference/%s.md is stale: write it anew with make docs-reference; %s", name, at)
		}
	}
}

func firstDifference(got, want string) string {
	a, b := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(a), len(b)) {
		switch {
		case i >= len(a):
			return fmt.Sprintf("line %d is missing: %s", i+1, b[i])
		case i >= len(b):
			return fmt.Sprintf("line %d is too much: %s", i+1, a[i])
		case a[i] != b[i]:
			return fmt.Sprintf("line %d is\n  %s\nand the code says\n  %s", i+1, a[i], b[i])
		}
	}
	return ""
}

func TestADifferenceNamesItsLine(t *testing.T) {
	for _, c := range []struct{ got, want, text string }{
		{"a\nb", "a\nb", ""},
		{"a\nx", "a\nb", "line 2 is\n  x\nand the code says\n  b"},
		{"a", "a\nb", "line 2 is missing: b"},
		{"a\nb", "a", "line 2 is too much: b"},
	} {
		if text := firstDifference(c.got, c.want); text != c.text {
			t.Errorf("%q against %q: %q, want %q", c.got, c.want, text, c.text)
		}
	}
}

// cliPage describes every command from what it says of itself.
func cliPage(*testing.T) string {
	var b strings.Builder
	b.WriteString(`# Commands

One binary, ` + "`sonde`" + `. Every command has ` + "`--help`" + `. What a command is asked for goes to standard output; logs, progress and
errors go to standard error. An error is one line that starts with ` + "`sonde: `" + `.

## Exit codes

| code | meaning |
|---|---|
`)
	for _, c := range exitCodes {
		fmt.Fprintf(&b, "| %d | %s |\n", c.code, c.meaning)
	}
	b.WriteString("\n## List\n\n| command | what it does |\n|---|---|\n")
	root := rootCommand()
	walk(root, func(c *cobra.Command) {
		name := c.CommandPath()
		fmt.Fprintf(&b, "| [`%s`](#%s) | %s |\n", name, strings.ReplaceAll(name, " ", "-"), cell(c.Short))
	})
	walk(root, func(c *cobra.Command) { describeCommand(&b, c) })
	return b.String()
}

// walk calls f for every command that can be typed, in the order of the help.
func walk(c *cobra.Command, f func(*cobra.Command)) {
	for _, child := range c.Commands() {
		if child.Hidden || !child.IsAvailableCommand() {
			continue
		}
		f(child)
		walk(child, f)
	}
}

func describeCommand(b *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(b, "\n## %s\n\n", c.CommandPath())
	long := c.Long
	if long == "" {
		long = c.Short + "."
	}
	use := c.UseLine()
	if c.HasAvailableSubCommands() {
		use = c.CommandPath() + " COMMAND [flags]"
	}
	fmt.Fprintf(b, "```text\n%s\n```\n\n```text\n%s\n```\n", use, strings.TrimRight(long, "\n"))
	writeFlags(b, "Flags", c.NonInheritedFlags().FlagUsages())
	writeFlags(b, "Flags of "+c.Parent().CommandPath(), c.InheritedFlags().FlagUsages())
}

// writeFlags shows flags as --help does.
func writeFlags(b *strings.Builder, title, usages string) {
	var lines []string
	for _, line := range strings.Split(strings.TrimRight(usages, "\n"), "\n") {
		if !strings.Contains(line, " --help ") {
			if strings.Contains(line, " --threads ") {
				line = cpus.ReplaceAllString(line, "(default one a CPU)")
			}
			lines = append(lines, line)
		}
	}
	if text := strings.Join(lines, "\n"); text != "" {
		fmt.Fprintf(b, "\n%s:\n\n```text\n%s\n```\n", title, text)
	}
}

// cpus is the default of --threads, which is the machine's.
var cpus = regexp.MustCompile(`\(default [0-9]+\)$`)

// The fear: an exit code that the code has and the documentation does not.
func TestEveryExitCodeIsDocumented(t *testing.T) {
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile(`(?s)const \(\n(.*?)\n\)`).FindSubmatch(source)
	if block == nil {
		t.Fatal("main.go has no block of exit codes any more")
	}
	inCode := bytes.Count(block[1], []byte("exit"))
	if inCode != len(exitCodes) {
		t.Errorf("main.go has %d exit codes, and this test documents %d", inCode, len(exitCodes))
	}
}
