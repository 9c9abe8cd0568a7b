package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// statuses are the answers of the engine's HTTP interface that are no success.
var statuses = map[int]string{
	http.StatusBadRequest:            "a parameter is unknown, missing or out of range; `param` names it",
	http.StatusNotFound:              "there is no such address, or no such model",
	http.StatusConflict:              "a request of this `request_id` is open; `code` is `duplicate_request_id`",
	http.StatusRequestEntityTooLarge: "the body is larger than 1 MiB",
	http.StatusTooManyRequests:       "too many calls or open sequences; try again after `Retry-After`",
	http.StatusInternalServerError:   "a step failed",
	http.StatusServiceUnavailable:    "the engine is stopping",
}

// statusConstants are their names in the code.
var statusConstants = map[string]int{"BadRequest": 400, "NotFound": 404, "Conflict": 409,
	"RequestEntityTooLarge": 413, "TooManyRequests": 429, "InternalServerError": 500, "ServiceUnavailable": 503}

var (
	statusInCode = regexp.MustCompile(`http\.Status([A-Za-z]+)`)
	pythonError  = regexp.MustCompile(`(?m)^class (\w+)\((\w+)\):\n    """(.*?)"""`)
)

func errorsPage(t *testing.T) string {
	var b strings.Builder
	b.WriteString(`# Errors

An error says what failed, on which value, and what to do next. The words that name what happened to rows:
[words](words.md).

## On the command line

One line on standard error that starts with ` + "`sonde: `" + `, and an [exit code](cli.md#exit-codes). Mistakes in a configuration file
are listed one a line, with line, key, value and what to write instead.

## Of ` + "`sonde run`" + ` over HTTP

` + "`/livez`" + ` answers 200 while the process works. ` + "`/readyz`" + ` answers 200, or 503 with one sentence for each thing that is waited for.

## Of ` + "`sonde engine`" + ` over HTTP

The body is ` + "`{\"error\": {\"message\", \"type\", \"param\", \"code\"}}`" + `, as OpenAI's clients expect it.

| status | meaning |
|---|---|
`)
	for _, status := range engineStatuses(t) {
		if statuses[status] == "" {
			t.Errorf("the engine answers %d, and this test does not say what it means", status)
		}
		fmt.Fprintf(&b, "| %d | %s |\n", status, statuses[status])
	}
	b.WriteString("\n## In Python\n\nAll are in package `sonde`. Their texts say what to do.\n\n| exception | is a | when |\n|---|---|---|\n")
	source, err := os.ReadFile(filepath.Join(repository, "hookpoint", "sonde", "errors.py"))
	if err != nil {
		t.Fatal(err)
	}
	classes := pythonError.FindAllStringSubmatch(string(source), -1)
	if len(classes) == 0 {
		t.Error("hookpoint/sonde/errors.py has no exceptions any more")
	}
	for _, c := range classes {
		if c[2] != "NamedTuple" {
			fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", c[1], c[2], cell(c[3]))
		}
	}
	return b.String()
}

// engineStatuses lists the statuses that the engine's code names, in order.
func engineStatuses(t *testing.T) []int {
	files, err := filepath.Glob(filepath.Join(repository, "engine", "server", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range statusInCode.FindAllStringSubmatch(string(source), -1) {
			status := statusConstants[m[1]]
			if status == 0 {
				t.Errorf("%s names http.Status%s, which this test does not know", name, m[1])
			}
			if !slices.Contains(out, status) {
				out = append(out, status)
			}
		}
	}
	if len(out) != len(statuses) {
		t.Errorf("the engine answers %v, and this test explains %d statuses", out, len(statuses))
	}
	slices.Sort(out)
	return out
}
