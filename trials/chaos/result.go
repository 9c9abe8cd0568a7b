package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// outcome is what became of one fault.
type outcome struct {
	fault
	recovery time.Duration // from its end until new rows of every engine were in the dataset
	notHere  string        // why it could not be made on this machine
	unfelt   bool          // it met nobody, and is not counted
	named    int           // rows that are not in the dataset, each named by the ledger
}

// result is one run on one bus.
type result struct {
	on       busName
	seed     uint64
	outcomes []outcome
	took     time.Duration

	captured, stored, named, unexplained uint64 // rows
	why                                  error  // why it failed; nil: it did not
}

// made says that a fault happened, and to somebody.
func (o *outcome) made() bool { return o.notHere == "" && !o.unfelt }

// injected counts the faults that were made.
func (r *result) injected() (n int) {
	for i := range r.outcomes {
		if r.outcomes[i].made() {
			n++
		}
	}
	return n
}

// cell is what the table says about one kind on one bus.
type cell struct {
	injected, recovered, notHere, named int
	slowest                             time.Duration
}

func (r *result) cell(k *kind) (c cell) {
	for _, o := range r.outcomes {
		switch {
		case o.Kind != k:
			continue
		case o.notHere != "":
			c.notHere++
			continue
		case o.unfelt:
			continue
		}
		c.injected++
		if o.recovery > 0 {
			c.recovered++
		}
		c.slowest, c.named = max(c.slowest, o.recovery), c.named+o.named
	}
	return c
}

// writeTable writes the one table of faults against outcomes, as Markdown.
func writeTable(out io.Writer, results []*result) {
	fmt.Fprint(out, "| fault |")
	for _, r := range results {
		fmt.Fprintf(out, " %s: injected | recovered | slowest, of stated | rows lost, named |", r.on)
	}
	fmt.Fprintf(out, "\n|---|%s\n", strings.Repeat("---:|---:|---:|---:|", len(results)))
	for i := range kinds {
		k := &kinds[i]
		if !slices.ContainsFunc(results, func(r *result) bool { c := r.cell(k); return c.injected+c.notHere > 0 }) {
			continue
		}
		fmt.Fprintf(out, "| %s |", k.name)
		for _, r := range results {
			c := r.cell(k)
			switch {
			case c.injected > 0:
				fmt.Fprintf(out, " %d | %d | %.1f s of %.0f s | %d |", c.injected, c.recovered, c.slowest.Seconds(),
					k.within(r.on).Seconds(), c.named)
			case c.notHere > 0:
				fmt.Fprintf(out, " NOT RUN: %d | | | |", c.notHere)
			default:
				fmt.Fprint(out, " | | | |")
			}
		}
		fmt.Fprintln(out)
	}
	fmt.Fprint(out, "| **all** |")
	for _, r := range results {
		var all cell
		for i := range kinds {
			c := r.cell(&kinds[i])
			all.injected, all.recovered, all.named = all.injected+c.injected, all.recovered+c.recovered, all.named+c.named
		}
		fmt.Fprintf(out, " **%d** | **%d** | | **%d** |", all.injected, all.recovered, all.named)
	}
	fmt.Fprint(out, "\n\n")
	for _, r := range results {
		fmt.Fprintf(out, "%s, seed %d, %v: ", r.on, r.seed, r.took.Round(time.Second))
		switch {
		case r.captured == 0:
			fmt.Fprint(out, "FAILED before its rows were counted\n\n")
			continue
		case r.why != nil:
			fmt.Fprint(out, "FAILED; ")
		}
		fmt.Fprintf(out, "%d rows computed = %d stored + %d named by the ledger; **%d unexplained**\n\n", r.captured,
			r.stored, r.named, r.unexplained)
	}
}
