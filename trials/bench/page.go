package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
)

// figure is one number of the page, as it is kept from run to run.
type figure struct {
	ID string `json:"id"` // like "c.hidden.1MiB.speed_to_bare"
	spread
	Unit string `json:"unit"`
	Aim  *aim   `json:"aim,omitempty"`
}

// aim is what a figure should reach. A figure without one is only shown.
type aim struct {
	Bound  float64 `json:"bound"`
	AtMost bool    `json:"at_most"`
	Met    bool    `json:"met"`
}

// atLeast and atMost judge the median.
func (f figure) atLeast(bound float64) figure {
	f.Aim = &aim{Bound: bound, Met: f.Median >= bound}
	return f
}

func (f figure) atMost(bound float64) figure {
	f.Aim = &aim{Bound: bound, AtMost: true, Met: f.Median <= bound}
	return f
}

// verdict says whether the aim was met, and by how much it was missed.
func (f figure) verdict() string {
	switch {
	case f.Aim == nil:
		return ""
	case math.IsNaN(f.Median):
		return "NOT MEASURED"
	case f.Aim.Met:
		return "PASS"
	case f.Aim.AtMost:
		return fmt.Sprintf("over by %.2g", f.Median-f.Aim.Bound)
	}
	return fmt.Sprintf("short by %.2g", f.Aim.Bound-f.Median)
}

// section is one part of the page.
type section struct {
	Letter, Title string
	notes         []string // before the table
	header        []string
	rows          [][]string
	after         []string // behind the table
	figures       []figure
}

func (s *section) row(cells ...string) { s.rows = append(s.rows, cells) }

func (s *section) keep(f ...figure) { s.figures = append(s.figures, f...) }

func (s *section) notef(format string, a ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, a...))
}

func (s *section) afterf(format string, a ...any) {
	s.after = append(s.after, fmt.Sprintf(format, a...))
}

func (s *section) print(out io.Writer) {
	fmt.Fprintf(out, "\n%s. %s\n", s.Letter, s.Title)
	for _, n := range s.notes {
		fmt.Fprintf(out, "   %s\n", n)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "   %s\n", strings.Join(s.header, "\t"))
	for _, r := range s.rows {
		fmt.Fprintf(w, "   %s\n", strings.Join(r, "\t"))
	}
	_ = w.Flush() // the page goes to a terminal or a pipe, whose end is not our error
	for _, n := range s.after {
		fmt.Fprintf(out, "   %s\n", n)
	}
}

// ratio writes a median with its range.
func ratio(s spread) string { return fmt.Sprintf("%.2f [%.2f..%.2f]", s.Median, s.Low, s.High) }

// judged is a ratio with its aim and what became of it.
func judged(f figure) string {
	sign := ">="
	if f.Aim.AtMost {
		sign = "<="
	}
	return fmt.Sprintf("%s  %s %.2f: %s", ratio(f.spread), sign, f.Aim.Bound, f.verdict())
}

func percent(share float64) string { return fmt.Sprintf("%.0f %%", 100*share) }

// sizeName writes a size of messages.
func sizeName(bytes int) string {
	if bytes >= 1<<20 {
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
	return fmt.Sprintf("%d KiB", bytes>>10)
}

// summary counts the aims of all sections and names those that were missed.
func summary(sections []*section) string {
	met, all := 0, 0
	var missed []string
	for _, s := range sections {
		for _, f := range s.figures {
			if f.Aim == nil {
				continue
			}
			all++
			if f.Aim.Met {
				met++
			} else {
				missed = append(missed, fmt.Sprintf("%s %s", f.ID, f.verdict()))
			}
		}
	}
	text := fmt.Sprintf("%d of %d aims met", met, all)
	if len(missed) > 0 {
		text += "; missed: " + strings.Join(missed, ", ")
	}
	return text
}
