package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sonde/ring2"
)

// exitCodes are what a command may end with.
var exitCodes = []struct {
	code    int
	meaning string
}{
	{exitOK, "done"},
	{exitFailed, "the environment is unusable, or a check failed: the error says what to do"},
	{exitUsage, "the command line or the configuration is wrong"},
	{exitInterrupted, "Ctrl-C or SIGTERM came before the command was done; a second one ends it at once, with the " +
		"code of the signal"},
}

// words are kinds of words that name what happened, with the words that the code
// has, and their meaning.
type words struct {
	title, about string
	inCode       []string
	meaning      map[string]string
}

// The words of each kind, and what they mean to whoever reads them. What the code
// has and these do not, and the other way round, fails the test.
func allWords(t *testing.T) []words { return append(wordsOfRows(t), wordsOfRequests(t)...) }

func wordsOfRows(t *testing.T) []words {
	return []words{
		{"Why the ring did not take rows", "Reason of `dropped` and `missing` facts, label `reason` of `sonde_engine_ring_dropped_rows_total`.",
			namesOf(func(i int) fmt.Stringer { return ring2.Reason(i) }), map[string]string{
				"none":         "they were captured",
				"no_slot":      "all descriptors are in use: the agent is behind; `--ring-descs`",
				"no_space":     "the payload is full: the agent is behind; `--ring-bytes`",
				"oversize":     "one record larger than half of the ring: `--ring-bytes`, or fewer hooks",
				"control_full": "not even the STEP record had room; a MISSING record names the rows later",
				"budget":       "over a byte budget of the engine",
				"spool_full":   "the spool of the engine is full; no engine of this repository has one",
				"disabled":     "capture was switched off",
			}},
		{"Why the agent did not publish rows", "Reason of `dropped` facts that the agent states, label `reason` of `sonde_producer_rows_total`.",
			constants(t, "producer/account.go", "reason"), map[string]string{
				"budget":           "over `policy.budget_bytes_per_s`; rules of the lowest priority first",
				"dead_letter_full": "the bus refused the message, and the dead-letter folder has no room to keep it",
				"unknown_request":  "the ring never said to which request they belong: nothing is guessed",
				"unnamed":          "the writer only counted them: no record had room for their names",
				"corrupt":          "the capture did not fit its layout",
				"oversize":         "larger than a message may be",
				"policy":           "an agent before this one had another policy, which chose them",
				"spool_full":       "the bus was away and the spool full; rules of the lowest priority first",
				"spool_damaged":    "the disk of the spool gave back other bytes than it got",
			}},
		{"Facts", "Column `fact` of table `ledger`.", constants(t, "schema/rows.go", "Fact"), map[string]string{
			"layout":      "what a layout of the epoch holds",
			"expected":    "rows that a step will have, and whether the ring took them",
			"missing":     "rows that were never in the ring",
			"aborted":     "rows whose copy failed in the engine",
			"lost":        "rows that died with a process",
			"dropped":     "rows that the agent dropped",
			"dead_letter": "rows of a message that the bus refused for good, or that could not be decoded",
			"amend":       "rows that the engine judged later",
			"closed":      "the end of an epoch; nothing about it comes after this",
		}},
		{"Verdicts of an amendment", "Reason of `amend` facts.", namesOf(func(i int) fmt.Stringer { return ring2.Verdict(i) }),
			map[string]string{
				"accepted": "a speculative token was kept",
				"rejected": "it was thrown away; readback does not take its rows",
				"phantom":  "it was computed after the end of the sequence",
			}},
	}
}

func wordsOfRequests(t *testing.T) []words {
	return []words{
		{"Why a request ended", "Column `reason` of table `requests`, and `finish_reason` of the engine's answers.",
			namesOf(func(i int) fmt.Stringer { return ring2.Finish(i) }), map[string]string{
				"stop":       "the model ended it, or a stop string came",
				"length":     "`max_tokens`, or the context, was reached",
				"abort":      "somebody asked for it over HTTP",
				"disconnect": "the client went away",
				"error":      "the engine failed, or was stopped",
				"detector":   "a detector had it stopped",
			}},
		{"Phases of a token", "Column `phase` counts them from 0.", namesOf(func(i int) fmt.Stringer { return ring2.Phase(i) }),
			map[string]string{
				"prefill":   "a token of the prompt",
				"decode":    "a token that the model wrote",
				"recompute": "computed again after a preemption",
			}},
		{"What became of an abort", "Column `outcome` of table `detections`, label `outcome` of the metrics of aborts.",
			constants(t, "schema/abort.go", "Abort"), map[string]string{
				"stopped":  "the engine ended the request",
				"finished": "it had ended before",
				"unknown":  "there is no such request in this epoch, or the abort came too late",
				"error":    "nobody answered in time, or the answer made no sense",
			}},
		{"Levels of a detector", "Column `level` of table `detections`.", constants(t, "consumers/detector/manifest.go", "Level"),
			map[string]string{
				"warn":     "look at it some time",
				"escalate": "look at it now",
				"stop":     "in mode `enforce`, the request is stopped",
			}},
		{"Modes of a detector", "`detectors[].mode` of the configuration, column `mode` of table `detections`.",
			constants(t, "consumers/detector/detector.go", "Mode"), map[string]string{
				"shadow":  "it judges and publishes, and nobody should act on it",
				"alert":   "it says what it means",
				"enforce": "it also has requests stopped",
			}},
	}
}

func wordsPage(t *testing.T) string {
	var b strings.Builder
	b.WriteString(`# Words that name what happened

The words that stand in metrics, tables, logs and on the command line. What to do about a row that is missing:
[find where a row went](../how-to/find-a-row.md).
`)
	for _, w := range allWords(t) {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| word | meaning |\n|---|---|\n", w.title, w.about)
		for _, word := range w.inCode {
			if w.meaning[word] == "" {
				t.Errorf("%s: the code has %q, and this test does not say what it means", w.title, word)
			}
			fmt.Fprintf(&b, "| `%s` | %s |\n", word, w.meaning[word])
		}
		if len(w.meaning) > len(w.inCode) {
			t.Errorf("%s: this test explains words that the code does not have: it has %v", w.title, w.inCode)
		}
	}
	return b.String()
}

// namesOf lists the names of a code of the ABI, from 0 to the last that has one.
func namesOf(of func(int) fmt.Stringer) []string {
	var out []string
	for i := 0; i < 256; i++ {
		text := of(i).String()
		if strings.ContainsAny(text, " 0123456789(") {
			break
		}
		out = append(out, text)
	}
	return out
}

// constants lists the values of the text constants of a file whose names start so.
func constants(t *testing.T, name, prefix string) []string {
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(repository, name), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, prefix) {
			return true
		}
		if literal, ok := spec.Values[0].(*ast.BasicLit); ok && literal.Kind == token.STRING {
			if text, err := strconv.Unquote(literal.Value); err == nil {
				out = append(out, text)
			}
		}
		return true
	})
	if len(out) == 0 {
		t.Errorf("%s has no constants %s* any more", name, prefix)
	}
	return out
}
