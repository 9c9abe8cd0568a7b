package main

import (
	"bytes"
	"strings"
	"testing"

	"sonde/lakehouse"
	"sonde/lakehouse/account"
)

// Names of models and hooks come from engines: they must not break out of their
// cell, nor into the front matter that programs read.
func TestCardKeepsForeignTextInItsCell(t *testing.T) {
	hostile := "evil|`\n---\nlicense: wrong\n<script>"
	c := card{licence: "cc-by-4.0", account: account.NewBuilder().Finish(),
		tables:  []cardTable{{name: "vectors", files: []string{"vectors/a.parquet"}, rows: 1}},
		hooks:   []lakehouse.Hook{{Table: "vectors", Hook: hostile, Layers: []int{0, 1, 2, 5}, DType: "bf16", Shape: "8,64"}},
		plain:   []cardColumn{{"request", "string"}},
		models:  []string{"| " + cell(hostile) + " | none | `d` | none |"},
		version: 3}
	var out bytes.Buffer
	if err := c.write(&out); err != nil {
		t.Fatal(err)
	}
	front, body, _ := strings.Cut(strings.TrimPrefix(out.String(), "---\n"), "---\n")
	if strings.Contains(front, "wrong") || !strings.Contains(front, "license: cc-by-4.0\n") {
		t.Errorf("front matter:\n%s", front)
	}
	if strings.Contains(body, "\n---\n") || strings.Contains(body, "<script>") || strings.Contains(body, "\nlicense") {
		t.Errorf("a name broke out of its cell:\n%s", body)
	}
	if !strings.Contains(body, " | 0-2, 5 | bf16 | 8,64 | ") {
		t.Errorf("the hook is not described:\n%s", body)
	}
}

func TestLayersAreWrittenAsRanges(t *testing.T) {
	for want, layers := range map[string][]int{"": nil, "-": {-1}, "-, 0-1": {-1, 0, 1}, "3": {3},
		"0-2, 4, 6-7": {0, 1, 2, 4, 6, 7}} {
		if got := layersText(layers); got != want {
			t.Errorf("layers %v are written %q, want %q", layers, got, want)
		}
	}
}

func TestCardOfNoLakeSaysWhatToDo(t *testing.T) {
	var out, errOut bytes.Buffer
	code := run([]string{"lake", "card", "--lake", t.TempDir()}, &out, &errOut)
	if code == exitOK || !strings.Contains(errOut.String(), "run the materializer") {
		t.Errorf("exit code %d: %s", code, errOut.String())
	}
	code = run([]string{"lake", "card", "--lake", t.TempDir(), "--license", "two words"}, &out, &errOut)
	if code != exitUsage {
		t.Errorf("a licence that is no identifier: exit code %d, want %d", code, exitUsage)
	}
}
