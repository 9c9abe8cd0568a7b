package docrun

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMarksAreReadStrictly(t *testing.T) {
	const block = "\n```sh\nls\n```\n"
	for text, wrong := range map[string]string{
		"<!-- run: a -->" + block:                               "",
		"<!-- run: a, in the repository, needs gcc -->" + block: "",
		"<!-- not run: it takes an hour -->" + block:            "",
		"<!-- an ordinary comment -->" + block:                  "",
		"<!-- run: A b -->" + block:                             "p.md:1: a scenario is a word",
		"<!-- run -->" + block:                                  "p.md:1: \"run:\" is no mark",
		"<!-- not run -->" + block:                              "p.md:1: \"not run:\" is no mark",
		"<!-- file: ../x -->" + block:                           "p.md:1: the file \"../x\" is not below",
		"<!-- file: /x -->" + block:                             "p.md:1: the file \"/x\" is not below",
		"<!-- file: x -->" + block:                              "p.md:2: the page runs nothing that could use the file x",
		"<!-- output: roughly -->" + block:                      "p.md:1: \"output: roughly\" is no mark",
		"<!-- output -->" + block:                               "p.md:2: output stands behind no block that is run",
		"<!-- run: a -->\ntext" + block:                         "p.md:2: the mark before this line stands before no block",
		"<!-- run: a -->\n```yaml\nx\n```\n":                    "p.md:2: a block of \"yaml\" cannot be run",
		"```sh\nls\n":                                           "p.md:1: the block has no end",
	} {
		_, err := Parse("p.md", text)
		if got := fmt.Sprint(err); wrong == "" && err != nil || !strings.HasPrefix(got, wrong) && wrong != "" {
			t.Errorf("%q: %v, want %q", text, err, wrong)
		}
	}
}

func TestOutputIsComparedAsThePageSays(t *testing.T) {
	for _, c := range []struct {
		want, got string
		numbers   bool
		matches   bool
	}{
		{"a\nb\n", "a\nb\n", false, true},
		{"a  b\n", "  a b  \n", false, true},
		{"a\n", "b\n", false, false},
		{"a\n", "a\nb\n", false, false},
		{"a\nb\n", "a\n", false, false},
		{"a\n...\nb\n", "a\nb\n", false, true},
		{"a\n...\nb\n", "a\nx\ny\nb\n", false, true},
		{"a\n...\nb\n", "a\nx\nb\nc\n", false, false},
		{"...\nb\n...\n", "x\nb\ny\nb\n", false, true},
		{"id ... of 2\n", "id 77 of 2\n", false, true},
		{"id ... of 2\n", "id 77 of 3\n", false, false},
		{"1.5 ms, 1,000 rows\n", "23.75 ms, 7 rows\n", true, true},
		{"1.5 ms\n", "2.5 ms\n", false, false},
		{"1 row\n", "no row\n", true, false},
		{"a.b (c)\n", "axb (c)\n", true, false},
	} {
		if err := Match(c.want, c.got, c.numbers); (err == nil) != c.matches {
			t.Errorf("%q against %q, numbers vary %v: %v", c.got, c.want, c.numbers, err)
		}
	}
}

// The fear: a test of the documentation that passes whatever the documentation says.
func TestPagesThatDoNotWorkAreFound(t *testing.T) {
	const ok = "<!-- run: a -->\n```sh\nx=1\necho one >f\n```\n"
	isolated := canIsolate(t)
	for text, wrong := range map[string]string{
		ok + "<!-- run: a -->\n```sh\ncat f; echo $x\n```\n<!-- output -->\n```text\none\n1\n```\n": "",
		ok + "<!-- run: a -->\n```sh\ncat f\n```\n<!-- output -->\n```text\ntwo\n```\n":             "is not as the page shows it",
		ok + "<!-- run: a -->\n```sh\nno-such-command\n```\n":                                       "a command of this block failed",
		ok + "<!-- run: a -->\n```sh\nfalse\necho never\n```\n":                                     "a command of this block failed",
		ok + "<!-- run: a -->\n```sh\nsleep 60 & sleep 60\n```\n":                                   "was not done after",
		ok + "<!-- run: a -->\n```sh\nsleep 60 &\nls models >list\n```\n":                           "",
		"<!-- file: d/f -->\n```yaml\nk: $x\n```\n<!-- run: a -->\n```sh\ncat d/f\n```\n" +
			"<!-- output -->\n```text\nk: $x\n```\n": "",
	} {
		page, err := Parse("p.md", text)
		if err != nil {
			t.Fatal(err)
		}
		dir := shortDir(t)
		s := Scenario{Page: page, Name: "a", Dir: dir, Root: root(t), Path: os.Getenv("PATH"), Isolated: isolated,
			Limit: 2 * time.Second}
		if strings.Contains(text, "sleep 60 &\nls") {
			s.Limit = time.Minute
		}
		started := time.Now()
		results, err := s.Run()
		var said []string
		for _, r := range results {
			if r.Err != nil {
				said = append(said, r.Err.Error())
			}
		}
		if err != nil {
			said = append(said, err.Error())
		}
		all := strings.Join(said, "; ")
		if wrong == "" && all != "" || !strings.Contains(all, wrong) {
			t.Errorf("%q after %v: %q, want %q", text, time.Since(started), all, wrong)
		}
	}
}

func TestACopyOfTheRepositoryHasWhatACheckoutHas(t *testing.T) {
	dir := t.TempDir()
	if err := copyRepository(root(t), dir); err != nil {
		t.Fatal(err)
	}
	for name, there := range map[string]bool{"Makefile": true, "go.mod": true, "models/trilingual/config.json": true,
		"detectors/train_german.sh": true, "build": false, "data": false, ".venv": false, ".git": false} {
		info, err := os.Stat(filepath.Join(dir, name))
		if (err == nil) != there {
			t.Errorf("%s: %v, want it there: %v", name, err, there)
		}
		if name == "detectors/train_german.sh" && err == nil && info.Mode().Perm()&0o100 == 0 {
			t.Errorf("%s cannot be executed any more", name)
		}
	}
}
