package config

import (
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// Size is a number of bytes, written like 64MiB, 1GiB, 500kB or a plain number.
type Size int64

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

const sizeHint = "write a size like 64MiB, 1GiB, 500kB or a number of bytes"

// ParseSize reads a size; a fraction like 1.5GiB is allowed.
func ParseSize(text string) (Size, error) {
	number, unit := strings.TrimSpace(text), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(number, u.suffix); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	value, err := strconv.ParseFloat(strings.ReplaceAll(number, "_", ""), 64)
	if err != nil || value < 0 || math.IsNaN(value) || value*float64(unit) >= math.MaxInt64 {
		return 0, fmt.Errorf("not a size; %s", sizeHint)
	}
	return Size(value * float64(unit)), nil
}

// String writes the size in its largest exact unit.
func (s Size) String() string {
	for _, u := range []int{3, 2, 1, 0} {
		if b := sizeUnits[u].bytes; int64(s) >= b && int64(s)%b == 0 {
			return strconv.FormatInt(int64(s)/b, 10) + sizeUnits[u].suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// UnmarshalYAML reads a size from a YAML string or number.
func (s *Size) UnmarshalYAML(node ast.Node) (err error) {
	*s, err = ParseSize(scalarText(node))
	return err
}

// MarshalYAML writes the size as String does.
func (s Size) MarshalYAML() (any, error) { return s.String(), nil }

// maxLayer bounds the number of a layer that may be written.
const maxLayer = 1 << 16

// Layers is a set of layers: all of them, or inclusive ranges.
type Layers struct {
	All    bool
	Ranges [][2]int // first, last
}

const layersHint = `write all, a layer like 3, a range like "0-3", or a list of them like [0, "4-7"]`

// AllLayers is every layer, and what belongs to none (embed, final_norm, token_ids).
func AllLayers() Layers { return Layers{All: true} }

// ParseLayers reads "all" or a list like "0-3,7".
func ParseLayers(text string) (Layers, error) {
	if strings.TrimSpace(text) == "all" {
		return AllLayers(), nil
	}
	var out Layers
	for _, part := range strings.Split(text, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.Atoi(first)
		b := a
		if err == nil && isRange {
			b, err = strconv.Atoi(last)
		}
		if err != nil || a < 0 || b < a || b > maxLayer {
			return Layers{}, fmt.Errorf("not a set of layers; %s", layersHint)
		}
		out.Ranges = append(out.Ranges, [2]int{a, b})
	}
	sort.Slice(out.Ranges, func(i, j int) bool { return out.Ranges[i][0] < out.Ranges[j][0] })
	return out, nil
}

// Has says whether the set holds a layer; -1 (no layer) is only in "all".
func (l Layers) Has(layer int) bool {
	for _, r := range l.Ranges {
		if layer >= r[0] && layer <= r[1] {
			return true
		}
	}
	return l.All
}

// String writes the set as ParseLayers reads it.
func (l Layers) String() string {
	if l.All {
		return "all"
	}
	var parts []string
	for _, r := range l.Ranges {
		if r[0] == r[1] {
			parts = append(parts, strconv.Itoa(r[0]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", r[0], r[1]))
		}
	}
	return strings.Join(parts, ",")
}

// UnmarshalYAML reads a scalar or a list of scalars.
func (l *Layers) UnmarshalYAML(node ast.Node) (err error) {
	text := scalarText(node)
	if list, ok := node.(*ast.SequenceNode); ok {
		parts := make([]string, len(list.Values))
		for i, v := range list.Values {
			parts[i] = scalarText(v)
		}
		text = strings.Join(parts, ",")
	}
	*l, err = ParseLayers(text)
	return err
}

// MarshalYAML writes the set as String does.
func (l Layers) MarshalYAML() (any, error) { return l.String(), nil }

// parseWindow checks one half of a token window: a word, or a word with a count.
func parseWindow(text string, counted ...string) error {
	if text == "all" || text == "none" {
		return nil
	}
	word, number, ok := strings.Cut(text, ":")
	if n, err := strconv.Atoi(number); ok && err == nil && n > 0 {
		for _, c := range counted {
			if word == c {
				return nil
			}
		}
	}
	return fmt.Errorf("not a token window; write all, none, %s:N", strings.Join(counted, ":N or "))
}

// scalarText is the text of a scalar as a reader sees it, without quotes.
func scalarText(node ast.Node) string {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value
	case *ast.NullNode:
		return ""
	case *ast.LiteralNode:
		return n.Value.Value
	}
	if node == nil || node.GetToken() == nil {
		return ""
	}
	return node.GetToken().Value
}
