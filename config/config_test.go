package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden errors in testdata")

// Every wrong file gives exactly the error beside it.
func TestWrongFilesSayWhatToWrite(t *testing.T) {
	files, err := filepath.Glob("testdata/wrong/*.yaml")
	if err != nil || len(files) < 15 {
		t.Fatalf("found %d wrong files (%v); want at least 15", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Parse(filepath.Base(file), text)
		var wrong *Error
		if !errors.As(err, &wrong) {
			t.Errorf("%s: got error %v; want an *Error", file, err)
			continue
		}
		for _, p := range wrong.Problems {
			if p.Line < 1 || p.Key == "" || p.Want == "" {
				t.Errorf("%s: incomplete problem %+v", file, p)
			}
		}
		golden := strings.TrimSuffix(file, ".yaml") + ".txt"
		if *update {
			if err := os.WriteFile(golden, []byte(err.Error()+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err2 := os.ReadFile(golden)
		if err2 != nil {
			t.Fatal(err2)
		}
		if got := err.Error() + "\n"; got != string(want) {
			t.Errorf("%s:\ngot  %swant %s", file, got, want)
		}
	}
}

func TestEmptyFilesMeanTheDefaults(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "\n\n", "policy:\n", "agent:\n  dead_letter:\n"} {
		c, err := Parse("empty.yaml", []byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if !reflect.DeepEqual(c, Default()) {
			t.Errorf("%q: got %+v", text, c)
		}
	}
}

func TestAFileOverridesOnlyWhatItNames(t *testing.T) {
	c, err := Parse("part.yaml", []byte(`
agent:
  dead_letter: {max_bytes: 1.5GiB}
policy:
  rules:
    - hooks: [resid_post]
      layers: [2, "4-6"]
      requests: {labels: {language: de}, sample_percent: 12}
    - {hooks: ["*"], as: stats, window: {decode: "every:8"}}
detectors:
  - bundle: detectors/german
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Agent.DeadLetter.MaxBytes = 3 << 29
	twelve := 12.0
	want.Policy.Rules = []Rule{
		{Name: "rule 1", Hooks: []string{"resid_post"}, Layers: Layers{Ranges: [][2]int{{2, 2}, {4, 6}}},
			Requests: Requests{Labels: map[string]string{"language": "de"}, SamplePercent: &twelve},
			Window:   Window{Prompt: "all", Decode: "all"}, As: "tensor", Stride: 1},
		{Name: "rule 2", Hooks: []string{"*"}, Layers: AllLayers(), Window: Window{Prompt: "all", Decode: "every:8"},
			As: "stats", Stride: 1}}
	want.Detectors = []Detector{{Bundle: "detectors/german", Mode: "alert"}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestSizesAndLayersSurviveWriting(t *testing.T) {
	for _, text := range []string{"64MiB", "1GiB", "3TiB", "1000", "0", "5KiB"} {
		s, err := ParseSize(text)
		if err != nil || s.String() != text {
			t.Errorf("size %s: got %s, %v", text, s, err)
		}
	}
	for _, text := range []string{"all", "0", "0-3,7"} {
		l, err := ParseLayers(text)
		if err != nil || l.String() != text {
			t.Errorf("layers %s: got %s, %v", text, l, err)
		}
	}
	l, _ := ParseLayers("0-3,7")
	if !l.Has(3) || !l.Has(7) || l.Has(4) || l.Has(-1) {
		t.Errorf("layers 0-3,7 hold the wrong layers")
	}
}

func TestExamplesAreValid(t *testing.T) {
	files, err := filepath.Glob("../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("found no examples: %v", err)
	}
	for _, f := range files {
		if _, err := Load(f); err != nil {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// The example documents the defaults: what it writes out is what is meant without it.
func TestTheExampleWritesTheDefaults(t *testing.T) {
	c, err := Load("../examples/sonde.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, Default()) {
		t.Errorf("got  %+v\nwant %+v", c, Default())
	}
}

func TestConfigMDNamesEveryKey(t *testing.T) {
	text, err := os.ReadFile("../CONFIG.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range Keys() {
		if !strings.Contains(string(text), "| `"+key+"` |") {
			t.Errorf("CONFIG.md has no row for %s", key)
		}
	}
}
