package detector

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// A stranger writes a bundle from the page: each key must stand there, and no other.
func TestThePageNamesEveryKeyOfTheManifest(t *testing.T) {
	text, err := os.ReadFile("BUNDLE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## detector.yaml")
	table, _, _ = strings.Cut(table, "\n## ")
	documented := map[string]bool{}
	for _, line := range strings.Split(table, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		for i, word := range strings.Split(cells[1], "`") {
			if i%2 == 1 {
				documented[word] = true
			}
		}
	}
	for _, key := range keysOf(reflect.TypeFor[Manifest](), "") {
		if !documented[key] {
			t.Errorf("BUNDLE.md does not name %s", key)
		}
		delete(documented, key)
	}
	for key := range documented {
		t.Errorf("BUNDLE.md names %s, which no manifest has", key)
	}
	for kind := range aggregationKinds {
		if !strings.Contains(string(text), "| `"+kind+"` |") {
			t.Errorf("BUNDLE.md does not explain the aggregation %s", kind)
		}
	}
}

// keysOf lists the keys of a manifest, like levels[].measured.detected.
func keysOf(t reflect.Type, prefix string) []string {
	switch t.Kind() {
	case reflect.Pointer:
		return keysOf(t.Elem(), prefix)
	case reflect.Slice:
		return keysOf(t.Elem(), prefix+"[]")
	case reflect.Struct:
		var out []string
		for i := range t.NumField() {
			name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
			if prefix != "" {
				name = prefix + "." + name
			}
			out = append(out, keysOf(t.Field(i).Type, name)...)
		}
		return out
	}
	return []string{prefix}
}
