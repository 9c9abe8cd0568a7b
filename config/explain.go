package config

import (
	"fmt"
	"reflect"
	"regexp"
	"strings"
)

// Explanation is what the reference says about one key.
type Explanation struct {
	Key, Type, Default, Text string
}

// row is one row of the table in CONFIG.md.
var row = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (.*?) \\| (.*) \\|$")

// Explain finds a key, or every key below a block, in the reference page. An
// unknown key is an error that names the nearest ones.
func Explain(page, key string) ([]Explanation, error) {
	key = strings.NewReplacer("[0]", "[]", "[*]", "[]").Replace(strings.TrimSuffix(key, "."))
	var out []Explanation
	for _, m := range row.FindAllStringSubmatch(page, -1) {
		plain := strings.ReplaceAll(m[1], "[]", "")
		for _, name := range []string{m[1], plain} {
			if name == key || strings.HasPrefix(name, key+".") || key == "" {
				out = append(out, Explanation{m[1], typeName(m[1]), strings.Trim(m[2], "`"), m[3]})
				break
			}
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	if where := elsewhere(key); where != "" {
		return Explain(page, where)
	}
	if near := nearestKeys(key); len(near) > 0 {
		return nil, fmt.Errorf("unknown key %q; did you mean %s?", key, strings.Join(near, ", or "))
	}
	return nil, fmt.Errorf("unknown key %q; sonde config explain lists all", key)
}

// typeOf is the Go type that holds a key.
func typeOf(key string) reflect.Type {
	t := reflect.TypeFor[Config]()
	for _, part := range strings.Split(key, ".") {
		f, known := fieldOf(t, strings.TrimSuffix(part, "[]"))
		if !known {
			panic("BUG: the reference names the key " + key + ", which does not exist")
		}
		if t = f.Type; strings.HasSuffix(part, "[]") {
			t = t.Elem()
		}
	}
	return t
}

// typeName says what may be written as the value of a key.
func typeName(key string) string {
	t := typeOf(key)
	switch {
	case t == sizeType:
		return "size, like 64MiB"
	case t == layersType:
		return `layers: all, 3, "0-3", or a list of them`
	case t.Kind() == reflect.Pointer:
		return "number"
	case t.Kind() == reflect.Slice:
		return "list of texts"
	case t.Kind() == reflect.Map:
		return "block of labels"
	case t.Kind() == reflect.Int:
		return "whole number"
	case t.Kind() == reflect.Bool:
		return "true or false"
	}
	return "text"
}
