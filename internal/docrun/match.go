package docrun

import (
	"fmt"
	"regexp"
	"strings"
)

var number = regexp.MustCompile(`[0-9]+(?:[.,][0-9]+)*`)

// Match compares what a block printed with what the page shows. A line `...`
// stands for any number of lines, `...` in a line for any text. With numbersVary, a
// number stands for any number. White space counts as one blank, and none at the
// ends of lines.
func Match(want, got string, numbersVary bool) error {
	wanted, found := linesOf(want), linesOf(got)
	patterns := make([]*regexp.Regexp, len(wanted))
	for i, line := range wanted {
		if line != "..." {
			patterns[i] = pattern(line, numbersVary)
		}
	}
	deepest := 0
	// reach[j]: the lines of want so far match the first j lines of got.
	reach := make([]bool, len(found)+1)
	reach[0] = true
	for i := range wanted {
		next := make([]bool, len(found)+1)
		any := false
		for j := range reach {
			switch {
			case patterns[i] == nil:
				next[j] = reach[j] || j > 0 && next[j-1]
			case reach[j] && j < len(found) && patterns[i].MatchString(found[j]):
				next[j+1] = true
			}
		}
		for _, r := range next {
			any = any || r
		}
		if !any {
			return fmt.Errorf("line %d of the output is not as the page shows it:\n  want %s\n--- printed:\n%s", i+1,
				wanted[i], got)
		}
		reach, deepest = next, i+1
	}
	if !reach[len(found)] {
		return fmt.Errorf("more was printed than the %d lines that the page shows:\n--- printed:\n%s", deepest, got)
	}
	return nil
}

func linesOf(text string) []string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := range lines {
		lines[i] = strings.Join(strings.Fields(lines[i]), " ")
	}
	return lines
}

func pattern(line string, numbersVary bool) *regexp.Regexp {
	parts := strings.Split(line, "...")
	for i, part := range parts {
		if !numbersVary {
			parts[i] = regexp.QuoteMeta(part)
			continue
		}
		var b strings.Builder
		last := 0
		for _, at := range number.FindAllStringIndex(part, -1) {
			b.WriteString(regexp.QuoteMeta(part[last:at[0]]) + number.String())
			last = at[1]
		}
		parts[i] = b.String() + regexp.QuoteMeta(part[last:])
	}
	return regexp.MustCompile("^" + strings.Join(parts, ".*") + "$")
}
