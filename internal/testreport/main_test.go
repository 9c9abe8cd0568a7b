package main

import (
	"strings"
	"testing"
)

func TestReadCountsVerdictsAndKeepsReasons(t *testing.T) {
	lines := []string{
		`{"Action":"output","Package":"p","Test":"TestA","Output":"NOT RUN: TestA: needs gcc\n"}`,
		`{"Action":"skip","Package":"p","Test":"TestA"}`,
		`{"Action":"pass","Package":"p","Test":"TestB"}`,
		`{"Action":"output","Package":"p","Test":"TestC","Output":"boom\n"}`,
		`{"Action":"fail","Package":"p","Test":"TestC"}`,
		`{"Action":"build-output","ImportPath":"q","Output":"q.go:1: syntax error\n"}`,
		`not json`,
	}
	r, err := read(strings.NewReader(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	if r.passed != 1 || r.failed != 1 || r.skipped != 1 {
		t.Fatalf("counted %d passed, %d failed, %d skipped; want one of each", r.passed, r.failed, r.skipped)
	}
	var b strings.Builder
	r.print(&b)
	for _, want := range []string{"boom", "syntax error", "not json", "NOT RUN: TestA: needs gcc",
		"1 passed, 1 failed, 1 skipped"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("report lacks %q:\n%s", want, b.String())
		}
	}
}
