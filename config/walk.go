package config

import (
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"unicode"

	"github.com/goccy/go-yaml/ast"

	"sonde/spelling"
)

// walk compares a parsed file with the Config type: every key must be known,
// every value must have the right shape. It remembers where each key stands, so
// that the checks of meaning can name a line too.
type walk struct {
	problems []Problem
	lines    map[string]int
	values   map[string]string
}

var (
	sizeType   = reflect.TypeFor[Size]()
	layersType = reflect.TypeFor[Layers]()
)

func (w *walk) add(node ast.Node, key, value, want string) {
	w.problems = append(w.problems, Problem{Line: line(node), Key: orFile(key), Value: harmless(value),
		Want: want + foreign(key+value)})
}

// foreign names the first character outside ASCII of what is wrong: people cannot
// see that a letter, a blank or a minus sign is another one that looks the same.
func foreign(text string) string {
	for _, r := range text {
		if r > unicode.MaxASCII {
			return fmt.Sprintf("; it holds %+q (%c, U+%04X), which may look like a plain character and is none", r, r, r)
		}
	}
	return ""
}

func (w *walk) written(key string) bool {
	_, found := w.lines[key]
	return found
}

func (w *walk) root(node ast.Node) { w.value(node, "", reflect.TypeFor[Config]()) }

// value checks one node against the Go type that will hold it.
func (w *walk) value(node ast.Node, path string, t reflect.Type) {
	if anchor, ok := node.(*ast.AnchorNode); ok {
		node = anchor.Value
	}
	if _, ok := node.(*ast.AliasNode); ok {
		w.add(node, path, scalarText(node), "aliases are not allowed; write the value out")
		return
	}
	if tag, ok := node.(*ast.TagNode); ok {
		w.add(node, path, shown(node), "tags are not allowed; write the value without "+tag.Start.Value)
		return
	}
	w.lines[path] = line(node)
	if isScalar(node) {
		w.values[path] = shown(node)
	}
	if _, null := node.(*ast.NullNode); null {
		if t.Kind() != reflect.Struct || t == layersType {
			w.add(node, path, "null", "empty; write a value or remove the key")
		}
		return
	}
	switch {
	case t == sizeType:
		if _, err := ParseSize(scalarText(node)); err != nil || !isScalar(node) {
			w.add(node, path, shown(node), "not a size; "+sizeHint)
		}
	case t == layersType:
		var l Layers
		if err := l.UnmarshalYAML(node); err != nil {
			w.add(node, path, shown(node), err.Error())
		}
	case t.Kind() == reflect.Pointer:
		w.value(node, path, t.Elem())
	case t.Kind() == reflect.Struct:
		w.fields(node, path, t)
	case t.Kind() == reflect.Slice:
		w.list(node, path, t)
	case t.Kind() == reflect.Map:
		w.labels(node, path, t)
	default:
		w.scalar(node, path, t)
	}
}

func (w *walk) fields(node ast.Node, path string, t reflect.Type) {
	pairs, ok := pairsOf(node)
	if !ok {
		w.add(node, orFile(path), shown(node), "not a block of keys; write keys below it: "+strings.Join(keysOf(t), ", "))
		return
	}
	seen := map[string]bool{}
	for _, pair := range pairs {
		key := scalarText(pair.Key)
		field, known := fieldOf(t, key)
		full := join(path, key)
		switch {
		case !known:
			w.add(pair.Key, full, "", unknownKey(path, key, t))
		case seen[key]:
			w.add(pair.Key, full, "", "written twice; keep one of them")
		default:
			seen[key] = true
			w.value(pair.Value, full, field.Type)
		}
	}
}

func (w *walk) list(node ast.Node, path string, t reflect.Type) {
	list, ok := node.(*ast.SequenceNode)
	if !ok {
		w.add(node, path, shown(node), "not a list; write - before each item, or [a, b]")
		return
	}
	for i, item := range list.Values {
		w.value(item, fmt.Sprintf("%s[%d]", path, i), t.Elem())
	}
}

func (w *walk) labels(node ast.Node, path string, t reflect.Type) {
	pairs, ok := pairsOf(node)
	if !ok {
		w.add(node, path, shown(node), "not a block of labels; write lines like language: de")
		return
	}
	seen := map[string]bool{}
	for _, pair := range pairs {
		full := join(path, scalarText(pair.Key))
		if seen[full] {
			w.add(pair.Key, full, "", "written twice; keep one of them")
			continue
		}
		seen[full] = true
		w.value(pair.Value, full, t.Elem())
	}
}

func (w *walk) scalar(node ast.Node, path string, t reflect.Type) {
	ok, want := false, ""
	switch t.Kind() {
	case reflect.String:
		_, isString := node.(*ast.StringNode)
		_, isLiteral := node.(*ast.LiteralNode)
		ok, want = isString || isLiteral, "not a text; write it in quotes"
		if strings.ContainsFunc(strings.TrimRight(scalarText(node), "\n"), unicode.IsControl) {
			ok, want = false, "holds a control character; write plain text in one line"
		}
	case reflect.Bool:
		_, ok = node.(*ast.BoolNode)
		want = "not a yes or no; write true or false"
	case reflect.Int:
		_, ok = node.(*ast.IntegerNode)
		want = "not a whole number; write one without a unit (the unit is in the key)"
		if _, err := strconv.ParseInt(scalarText(node), 0, 0); errors.Is(err, strconv.ErrRange) {
			ok, want = false, "too large; "+rangeHint(path)
		}
	case reflect.Float64:
		_, isInt := node.(*ast.IntegerNode)
		_, isFloat := node.(*ast.FloatNode)
		ok, want = isInt || isFloat, "not a number; write one like 12.5"
	default:
		panic("BUG: config has a field of kind " + t.Kind().String())
	}
	if text, quoted := node.(*ast.StringNode); !ok && quoted && t.Kind() != reflect.String && plainScalar(text.Value) {
		want = "in quotes it is a text; write " + text.Value + " without them"
	}
	if !ok {
		w.add(node, path, shown(node), want)
	}
}

// plainScalar says whether a text would be a number, true or false without its quotes.
func plainScalar(text string) bool {
	_, err := strconv.ParseFloat(text, 64)
	return err == nil || text == "true" || text == "false"
}

func unknownKey(path, key string, t reflect.Type) string {
	known := keysOf(t)
	if secretKey.MatchString(key) {
		return "a secret never stands in this file; " + secretHint
	}
	if best := nearest(key, known); best != "" {
		return fmt.Sprintf("unknown key; write %s", best)
	}
	if block, inner, dotted := strings.Cut(key, "."); dotted {
		return fmt.Sprintf("keys are nested, not joined by dots; write %s: and below it, indented, %s:", block, inner)
	}
	if where := elsewhere(key); where != "" {
		return fmt.Sprintf("unknown key here; it belongs to %s", where)
	}
	return fmt.Sprintf("unknown key; %s knows %s", orFile(path), strings.Join(known, ", "))
}

// elsewhere finds the place of a key that exists, but not where it was written.
func elsewhere(key string) string {
	for _, full := range Keys() {
		if full == key || strings.HasSuffix(full, "."+key) {
			return full
		}
	}
	return ""
}

// Keys lists every key of the file, like agent.dead_letter.dir or
// policy.rules[].as, sorted.
func Keys() []string {
	var out []string
	var visit func(t reflect.Type, path string)
	visit = func(t reflect.Type, path string) {
		for i := range t.NumField() {
			f := t.Field(i)
			full := join(path, f.Tag.Get("yaml"))
			switch {
			case f.Type.Kind() == reflect.Struct && f.Type != layersType:
				visit(f.Type, full)
			case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
				visit(f.Type.Elem(), full+"[]")
			default:
				out = append(out, full)
			}
		}
	}
	visit(reflect.TypeFor[Config](), "")
	sort.Strings(out)
	return out
}

func keysOf(t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		out = append(out, t.Field(i).Tag.Get("yaml"))
	}
	return out
}

func fieldOf(t reflect.Type, key string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("yaml") == key {
			return t.Field(i), true
		}
	}
	return reflect.StructField{}, false
}

// nearestKeys are up to three keys whose whole name, or the end of it, is near to a word.
func nearestKeys(word string) []string {
	type scored struct {
		key      string
		distance int
	}
	var near []scored
	for _, key := range Keys() {
		best := spelling.Distance(word, key)
		for end := key; end != ""; _, end, _ = strings.Cut(end, ".") {
			best = min(best, spelling.Distance(word, end))
		}
		if best < len(word)/3+2 {
			near = append(near, scored{key, best})
		}
	}
	sort.SliceStable(near, func(i, j int) bool { return near[i].distance < near[j].distance })
	var out []string
	for _, n := range near[:min(3, len(near))] {
		out = append(out, n.key)
	}
	return out
}

// nearest is the candidate with the smallest edit distance, if it is near
// enough to be a slip of the hand.
func nearest(word string, candidates []string) string {
	best, bestDistance := "", len(word)/3+2
	for _, c := range candidates {
		if d := spelling.Distance(word, c); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

func pairsOf(node ast.Node) ([]*ast.MappingValueNode, bool) {
	switch n := node.(type) {
	case *ast.MappingNode:
		return n.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}, true
	}
	return nil, false
}

func isScalar(node ast.Node) bool {
	_, ok := node.(ast.ScalarNode)
	return ok
}

// shown is a value as the user wrote it, short enough for one line.
func shown(node ast.Node) string {
	text, _, _ := strings.Cut(strings.TrimSpace(node.String()), "\n")
	return text
}

// login is a name and a password before a host.
var login = regexp.MustCompile(`[^\s/:@"']+:[^\s@]+@`)

// harmless is a value that may stand in a log: short, and without a password.
func harmless(text string) string {
	if login.MatchString(text) {
		return "(hidden)"
	}
	return clip(text)
}

func clip(text string) string {
	if runes := []rune(text); len(runes) > 60 {
		return string(runes[:57]) + "..."
	}
	return text
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func orFile(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}
