package oracle

import (
	"fmt"
	"io"
	"sort"
	"strings"
)

// Defect is a way in which a row can be wrong.
type Defect int

// The defects.
const (
	Wrong       Defect = iota // stored with other bytes than its place has
	Twice                     // stored more than once
	Unwitnessed               // stored, and the engine never computed it
	Unasked                   // stored, and no fact expects it
	Silent                    // computed, and neither stored nor named by the ledger
	Phantom                   // named by the ledger, and the engine never computed it
	Computed                  // computed twice, with different bytes
	defectCount
)

var defectNames = [defectCount]string{"with wrong bytes", "stored more than once", "stored but never computed",
	"stored but not expected", "neither stored nor named", "named but never computed", "computed twice, differently"}

// maxNamed bounds the rows of one defect that are named.
const maxNamed = 1000

// Report is what a checker found, in rows.
type Report struct {
	Witnessed  int // computed by the engine
	Stored     int // in the lake
	Matched    int // stored, with the bytes that the engine witnessed
	Recomputed int // stored, with the bytes that their place says
	Named      int // not stored, and named by the ledger
	Unfinished int // named by the ledger, of the step in which an engine died before it witnessed it
	Hooks      map[string]int

	Defects [defectCount]int
	Names   [defectCount][]string // the first of each, in words
}

func (r *Report) add(d Defect, rows int, format string, args ...any) {
	r.Defects[d] += rows
	if len(r.Names[d]) < maxNamed {
		r.Names[d] = append(r.Names[d], fmt.Sprintf(format, args...))
	}
}

// count counts a stored row of a hook, whose name may change after the call.
func (r *Report) count(hook string) {
	if _, known := r.Hooks[hook]; !known {
		hook = strings.Clone(hook)
	}
	r.Hooks[hook]++
}

// Err is an error when there is any defect.
func (r *Report) Err() error {
	var n int
	for _, rows := range r.Defects {
		n += rows
	}
	if n > 0 {
		return fmt.Errorf("%d rows are not what they should be", n)
	}
	return nil
}

// Print writes the counts, and names the rows of each defect.
func (r *Report) Print(out io.Writer) {
	fmt.Fprintf(out, "rows: %d computed = %d stored + %d named by the ledger", r.Witnessed, r.Witnessed-r.Named-
		r.Defects[Silent], r.Named)
	if r.Defects[Silent] > 0 {
		fmt.Fprintf(out, " + %d silently missing", r.Defects[Silent])
	}
	fmt.Fprintf(out, "\nstored rows: %d, of which %d have the witnessed bytes, and %d the bytes that their place says\n",
		r.Stored, r.Matched, r.Recomputed)
	if r.Unfinished > 0 {
		fmt.Fprintf(out, "%d rows of steps in which an engine died are named by the ledger alone\n", r.Unfinished)
	}
	hooks := make([]string, 0, len(r.Hooks))
	for name := range r.Hooks {
		hooks = append(hooks, name)
	}
	sort.Strings(hooks)
	for _, name := range hooks {
		fmt.Fprintf(out, "  %-14s %9d\n", name, r.Hooks[name])
	}
	const most = 40
	for d, rows := range r.Defects {
		if rows == 0 {
			continue
		}
		fmt.Fprintf(out, "WRONG: %d rows %s\n", rows, defectNames[d])
		for i, text := range r.Names[d] {
			if i == most {
				fmt.Fprintf(out, "  and %d more\n", len(r.Names[d])-most)
				break
			}
			fmt.Fprintf(out, "  %s\n", text)
		}
	}
}
