package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const configs = "../../modelconfig/testdata"

func runHooks(t *testing.T, want int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	if code := run(append([]string{"hooks"}, args...), &out, &err); code != want {
		t.Fatalf("sonde hooks %s exits with %d, want %d: %s", strings.Join(args, " "), code, want, err.String())
	}
	return out.String(), err.String()
}

// What a person sees of each kind of model.
func TestHooksPrintsItsGoldenPages(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(configs, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no configurations: %v", err)
	}
	for _, file := range files {
		golden := strings.TrimSuffix(file, ".json") + ".txt"
		got, _ := runHooks(t, exitOK, file, "--tokens-per-second", "1000")
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if at := firstDifference(string(want), got); at != "" {
			t.Errorf("%s: %s", golden, at)
		}
	}
}

func TestHooksInJSONCanBeChosenAndSummed(t *testing.T) {
	out, _ := runHooks(t, exitOK, filepath.Join(configs, "llama3_8b.json"), "--json", "--hooks", "resid_post,logits",
		"--tokens-per-second", "10")
	var r hooksReport
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Hooks) != 33 || r.Total.PerToken != 32*8192 || r.Rate.Bytes != 10*32*8192 ||
		r.Rate.SampledBytes != 10*256512 || !r.Known {
		t.Errorf("%+v", r)
	}
}

func TestHooksRefusesWhatIsWrong(t *testing.T) {
	good := filepath.Join(configs, "gpt2.json")
	broken := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(broken, []byte(`{"model_type": "llama", "num_hidden_layers": 1e400}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"no such file":                  {filepath.Join(t.TempDir(), "none")},
		"num_hidden_layers is 1e400":    {broken},
		"nearest: resid_post":           {good, "--hooks", "resid_pots"},
		"is -1; want 0 or more":         {good, "--tokens-per-second", "-1"},
		"more than can be counted":      {good, "--tokens-per-second", "9223372036854775807"},
		"write sonde hooks CONFIG_JSON": {},
		"read configuration: read /":    {"/"},
		"unknown flag: --token-per-sec": {good, "--token-per-sec", "5"},
	} {
		out, stderr := runHooks(t, exitUsage, args...)
		if out != "" || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("sonde hooks %s says %q; want %q", strings.Join(args, " "), stderr, want)
		}
	}
}
