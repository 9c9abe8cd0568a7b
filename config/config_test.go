package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden errors in testdata")

// wrongCase is one section of testdata/wrong.md: a file, and the answer to it.
var wrongCase = regexp.MustCompile("(?s)## ([a-z0-9_]+)\n\n```yaml\n(.*?)\n```\n\n((?:> [^\n]*\n)+)")

const wrongPage = "testdata/wrong.md"

func TestWrongFilesSayWhatToWrite(t *testing.T) {
	page, err := os.ReadFile(wrongPage)
	if err != nil {
		t.Fatal(err)
	}
	cases := wrongCase.FindAllStringSubmatch(string(page), -1)
	if len(cases) < 40 {
		t.Fatalf("found %d wrong files in %s; want at least 40", len(cases), wrongPage)
	}
	text := string(page)
	for _, c := range cases {
		name, file := c[1]+".yaml", c[2]
		_, err := Parse(name, []byte(file+"\n"))
		var wrong *Error
		if !errors.As(err, &wrong) {
			t.Errorf("%s: got error %v; want an *Error", name, err)
			continue
		}
		for _, p := range wrong.Problems {
			if p.Line < 1 || p.Key == "" || p.Want == "" {
				t.Errorf("%s: incomplete problem %+v", name, p)
			}
		}
		got := "> " + strings.ReplaceAll(err.Error(), "\n", "\n> ") + "\n"
		if *update {
			section := "## " + c[1] + "\n\n```yaml\n" + file + "\n```\n\n"
			text = strings.Replace(text, section+c[3], section+got, 1)
		} else if got != c[3] {
			t.Errorf("%s:\ngot  %swant %s", name, got, c[3])
		}
	}
	if *update {
		if err := os.WriteFile(wrongPage, []byte(text), 0o644); err != nil {
			t.Fatal(err)
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

func TestAPasswordNeverStandsInAMessage(t *testing.T) {
	_, err := Parse("login.yaml", []byte("bus:\n  url: nats://sonde:hunter2@broker:4222\n"))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v; want an error without the password", err)
	}
}

func TestTheEnvironmentGoesBeforeThePasswordFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("of the file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := Bus{User: "sonde", PasswordFile: file}
	if got, err := b.Password(); err != nil || got != "of the file" {
		t.Errorf("got %q, %v", got, err)
	}
	t.Setenv(PasswordVariable, "of the environment")
	if got, err := b.Password(); err != nil || got != "of the environment" {
		t.Errorf("got %q, %v", got, err)
	}
	t.Setenv(PasswordVariable, "")
	b.PasswordFile += ".missing"
	if _, err := b.Password(); err == nil {
		t.Error("a missing password file is no error")
	}
}

func TestEveryKeyIsExplained(t *testing.T) {
	page, err := os.ReadFile("../CONFIG.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range Keys() {
		found, err := Explain(string(page), key)
		if err != nil || len(found) != 1 || found[0].Key != key || found[0].Text == "" || found[0].Type == "" {
			t.Errorf("%s: got %+v, %v", key, found, err)
		}
	}
	if found, err := Explain(string(page), "agent.dead_letter"); err != nil || len(found) != 2 {
		t.Errorf("a block: got %+v, %v", found, err)
	}
	if _, err := Explain(string(page), "agent.linger"); err == nil || !strings.Contains(err.Error(), "agent.linger_ms") {
		t.Errorf("a slip: got %v", err)
	}
}

// The schema must let every valid example pass and know every key; editors do the rest.
func TestTheSchemaKnowsEveryKey(t *testing.T) {
	schema := readSchema(t)
	for _, key := range Keys() {
		at := schema
		for _, part := range strings.Split(key, ".") {
			properties, _ := at["properties"].(map[string]any)
			at, _ = properties[strings.TrimSuffix(part, "[]")].(map[string]any)
			if strings.HasSuffix(part, "[]") {
				at, _ = at["items"].(map[string]any)
			}
		}
		if at == nil || at["description"] == nil {
			t.Errorf("the schema has no description of %s", key)
		}
	}
}

// Editors of other systems save a byte order mark and line ends of two characters.
func TestFilesOfOtherEditorsAreRead(t *testing.T) {
	for _, text := range []string{"\ufeffagent:\n  linger_ms: 3\n", "agent:\r\n  linger_ms: 3\r\n",
		"---\nagent: {linger_ms: 3}\n...\n"} {
		if c, err := Parse("other.yaml", []byte(text)); err != nil || c.Agent.LingerMS != 3 {
			t.Errorf("%q: got %d, %v", text, c.Agent.LingerMS, err)
		}
	}
	for text, want := range map[string]string{
		"\xff\xfea\x00g\x00":             "other.yaml:1: the file: not text in UTF-8: it holds the byte 0xFF",
		"# a\nagent:\n  socket: caf\xe9": "other.yaml:3: the file: not text in UTF-8: it holds the byte 0xE9",
		"log: {}\n\x7fELF\x02":           "other.yaml:2: the file: not plain text: it holds the control character U+007F",
	} {
		if _, err := Parse("other.yaml", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: got %v; want %s", text, err, want)
		}
	}
}

// A key that somebody half remembers must be found from its end too.
func TestAnUnknownKeyNamesTheNearest(t *testing.T) {
	page, err := os.ReadFile("../CONFIG.md")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"lingre_ms": "agent.linger_ms", "max_byte": "bus.embedded.max_bytes",
		"agent.deadletter.dir": "agent.dead_letter.dir", "polcy.mode": "policy.mode"} {
		if _, err := Explain(string(page), key); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v; want %s", key, err, want)
		}
	}
}
