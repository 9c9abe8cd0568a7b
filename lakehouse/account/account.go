// Package account judges the durable ledger: from the facts of the ledger table
// and the identities of the stored rows it gives every expected row exactly one
// class, and names rows that are stored twice, stored unasked, or unexplained.
// It is pure: it reads no files and knows no table format.
package account

import (
	"errors"
	"fmt"
	"sort"
	"strings"
	"text/tabwriter"
)

// Account is the durable ledger in rows: one token at one hook that the policy
// chose. Every expected row is in the first class that fits of Stored, OnBus,
// DeadLettered, Aborted, Dropped, Lost, InFlight and Unexplained.
type Account struct {
	Expected     uint64            // what the HookPoints offered and the policy chose
	Stored       uint64            // in the tables, each counted once
	OnBus        uint64            // not in the tables, and in a message that the bus holds; 0 when nobody looked there
	DeadLettered uint64            // in a dead-letter directory
	Aborted      uint64            // the engine's copy failed
	Dropped      map[string]uint64 // by reason
	Lost         uint64            // died with the engine
	InFlight     uint64            // no class yet, and their epoch is open

	Filtered    uint64 // not chosen by the policy; beside the law
	Early       uint64 // stored rows of open epochs whose facts have not arrived; beside the law
	Duplicated  uint64 // surplus copies of stored rows
	Unasked     uint64 // stored rows of closed epochs that no fact expects
	Unexplained uint64 // expected rows of closed epochs that have no class

	ByHook     []HookCounts // sorted by hook
	Epochs     int          // seen in facts or rows
	OpenEpochs []uint64     // without a closed fact, ascending
	Examples   []string     // names a few rows of each defect

	broken string // why the account is not complete, empty: it is
}

// HookCounts is the part of one hook, all layers together. Rows of merged ranges
// are shared out evenly among the entries of their range.
type HookCounts struct {
	Hook     string // empty: rows whose layout is unknown
	Expected uint64
	Stored   uint64
	OnBus    uint64
	InFlight uint64
	Bad      uint64 // Duplicated + Unasked + Unexplained
}

// DroppedRows is the sum over all reasons.
func (a *Account) DroppedRows() uint64 {
	var n uint64
	for _, rows := range a.Dropped {
		n += rows
	}
	return n
}

// AtRest reports whether nothing is under way: every epoch is closed, and no row
// is in flight or early.
func (a *Account) AtRest() bool {
	return len(a.OpenEpochs) == 0 && a.InFlight == 0 && a.Early == 0
}

// Balance is an error when the law does not hold, or when a row is stored twice,
// stored unasked or unexplained. It holds at every moment, also while rows are in
// flight.
func (a *Account) Balance() error {
	var defects []error
	if a.broken != "" {
		defects = append(defects, errors.New(a.broken))
	}
	sum := a.Stored + a.OnBus + a.DroppedRows() + a.Aborted + a.Lost + a.DeadLettered + a.InFlight
	if sum != a.Expected {
		defects = append(defects, fmt.Errorf("expected %d rows, but stored %d + on the bus %d + dropped %d + aborted %d + "+
			"lost %d + dead-lettered %d + in flight %d = %d", a.Expected, a.Stored, a.OnBus, a.DroppedRows(), a.Aborted, a.Lost,
			a.DeadLettered, a.InFlight, sum))
	}
	for _, defect := range []struct {
		rows uint64
		what string
	}{{a.Duplicated, "stored more than once"}, {a.Unasked, "stored, but no fact expects them"},
		{a.Unexplained, "expected, but neither stored nor explained"}} {
		if defect.rows > 0 {
			defects = append(defects, fmt.Errorf("%d rows are %s", defect.rows, defect.what))
		}
	}
	if len(defects) > 0 && len(a.Examples) > 0 {
		defects = append(defects, errors.New("for example: "+strings.Join(a.Examples, "; ")))
	}
	return errors.Join(defects...)
}

// String is a table for people.
func (a *Account) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(name string, rows uint64) {
		share := 0.0
		if a.Expected > 0 {
			share = 100 * float64(rows) / float64(a.Expected)
		}
		fmt.Fprintf(w, "%s\t%d\t%.2f %%\t\n", name, rows, share)
	}
	fmt.Fprintf(w, "ledger\trows\tshare\t\n")
	line("captured", a.Expected)
	line("= stored", a.Stored)
	if a.OnBus > 0 {
		line("+ on the bus", a.OnBus)
	}
	for _, reason := range a.reasons() {
		line("+ dropped ("+reason+")", a.Dropped[reason])
	}
	line("+ aborted", a.Aborted)
	line("+ lost", a.Lost)
	line("+ dead-lettered", a.DeadLettered)
	line("+ in flight", a.InFlight)
	w.Flush()
	fmt.Fprintf(&b, "beside it: %d filtered, %d early; %d epochs, %d of them open\n", a.Filtered, a.Early, a.Epochs,
		len(a.OpenEpochs))
	fmt.Fprintf(&b, "defects: %d stored more than once, %d stored unasked, %d unexplained\n", a.Duplicated, a.Unasked,
		a.Unexplained)
	for _, example := range a.Examples {
		fmt.Fprintf(&b, "  %s\n", example)
	}
	if a.broken != "" {
		fmt.Fprintf(&b, "not complete: %s\n", a.broken)
	}
	return b.String()
}

// reasons lists the drop reasons; without any, an empty class is still shown.
func (a *Account) reasons() []string {
	var out []string
	for reason := range a.Dropped {
		out = append(out, reason)
	}
	sort.Strings(out)
	if len(out) == 0 {
		out = append(out, "none")
	}
	return out
}
