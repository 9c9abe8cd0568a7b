package account

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// maxEntries bounds the entries of one layout.
const maxEntries = 1 << 16

// ParseEntries reads a set of layout entries as facts write it, like "0-3,7":
// ascending, without overlap. Empty text is the empty set.
func ParseEntries(text string) ([]int, error) {
	if text == "" {
		return nil, nil
	}
	var out []int
	next := 0
	for _, part := range strings.Split(text, ",") {
		low, high, isRange := strings.Cut(part, "-")
		first, err := strconv.ParseUint(low, 10, 16)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(high, 10, 16)
		}
		if err != nil || last < first || int(first) < next {
			return nil, fmt.Errorf("entries %.80q are no ascending set like 0-3,7 of numbers below %d", text, maxEntries)
		}
		for i := first; i <= last; i++ {
			out = append(out, int(i))
		}
		next = int(last) + 1
	}
	return out, nil
}

// LayoutEntry is one entry of a layout, as the detail of a layout fact lists it.
type LayoutEntry struct {
	Hook  string `json:"hook"`
	Layer int    `json:"layer"`
	Shard int    `json:"shard"`
}

// ParseLayout reads the detail of a layout fact.
func ParseLayout(detail string) ([]LayoutEntry, error) {
	var out []LayoutEntry
	if err := json.Unmarshal([]byte(detail), &out); err != nil {
		return nil, fmt.Errorf("read the entries of a layout fact: %w", err)
	}
	if len(out) == 0 || len(out) > maxEntries {
		return nil, fmt.Errorf("a layout fact lists %d entries; it must list 1 to %d", len(out), maxEntries)
	}
	return out, nil
}

// ToldByObituary reads the detail of a closed fact: whether the journal of the
// dead engine was told to its end.
func ToldByObituary(detail string) bool {
	var d struct {
		Told string `json:"told"`
	}
	return json.Unmarshal([]byte(detail), &d) == nil && d.Told == "obituary"
}
