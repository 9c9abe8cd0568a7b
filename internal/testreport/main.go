// Command testreport reads the output of `go test -json` and prints what a
// person wants to know of it: the output of each failed test, the tests that
// could not run here and why, and one closing line that counts.
//
// It exits 1 when a test failed, when a package did not build, or when no test
// ran at all; a run that proves nothing must not look like one that passed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
)

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	// ImportPath stands in for Package in the build-output events.
	ImportPath string
}

// report collects the verdicts of one run.
type report struct {
	passed, failed, skipped int
	output                  map[string][]string
	failures                []string
	notRun                  []string
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: testreport FILE, where FILE holds the output of go test -json")
		os.Exit(2)
	}
	f, err := os.Open(os.Args[1])
	if err != nil {
		fmt.Fprintf(os.Stderr, "testreport: %v\n", err)
		os.Exit(1)
	}
	defer f.Close()
	r, err := read(f)
	if err != nil {
		fmt.Fprintf(os.Stderr, "testreport: %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
	r.print(os.Stdout)
	if r.failed > 0 || len(r.failures) > 0 || r.passed == 0 {
		os.Exit(1)
	}
}

// read consumes the events. A line that is not JSON is kept as a failure, since
// it is what the go command prints when it could not even start.
func read(in io.Reader) (*report, error) {
	r := &report{output: map[string][]string{}}
	scan := bufio.NewScanner(in)
	scan.Buffer(make([]byte, 1<<20), 16<<20)
	for scan.Scan() {
		var e event
		if err := json.Unmarshal(scan.Bytes(), &e); err != nil {
			r.failures = append(r.failures, scan.Text())
			continue
		}
		r.add(e)
	}
	return r, scan.Err()
}

func (r *report) add(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output":
		r.output[key] = append(r.output[key], e.Output)
	case "build-output":
		r.failures = append(r.failures, strings.TrimRight(e.Output, "\n"))
	case "pass", "fail", "skip":
		r.verdict(e, key)
		delete(r.output, key)
	}
}

func (r *report) verdict(e event, key string) {
	if e.Action == "fail" {
		r.failures = append(r.failures, strings.TrimRight(strings.Join(r.output[key], ""), "\n"))
	}
	if e.Test == "" {
		return
	}
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
	case "skip":
		r.skipped++
		r.notRun = append(r.notRun, reason(e, r.output[key]))
	}
}

// reason finds the line that notrun.Mark printed; a test that skips without one
// is reported with the whole of what it said.
func reason(e event, lines []string) string {
	for _, line := range lines {
		if i := strings.Index(line, "NOT RUN: "); i >= 0 {
			return strings.TrimSpace(line[i:])
		}
	}
	return fmt.Sprintf("NOT RUN: %s %s: %s", e.Package, e.Test, strings.TrimSpace(strings.Join(lines, " ")))
}

func (r *report) print(w io.Writer) {
	for _, f := range r.failures {
		fmt.Fprintln(w, f)
	}
	sort.Strings(r.notRun)
	for _, n := range r.notRun {
		fmt.Fprintln(w, n)
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
}
