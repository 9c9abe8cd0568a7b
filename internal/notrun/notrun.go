// Package notrun marks tests that cannot run in this environment, so that a
// missing tool is listed in the report and never looks like a pass.
package notrun

import (
	"fmt"
	"testing"
)

// Mark prints "NOT RUN: <test>: <reason>" to standard output and skips the
// test. The reason says what is missing.
func Mark(t testing.TB, reason string) {
	t.Helper()
	fmt.Printf("NOT RUN: %s: %s\n", t.Name(), reason)
	t.Skip(reason)
}
