// Package tidy holds the house rules of STYLE.md as tests, so that nobody has
// to remember them in review.
package tidy

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"
)

const (
	maxFileLines     = 500
	maxFunctionLines = 70
	maxLineLetters   = 120
)

// layers says which of our packages a package may import, by path prefix. The
// longest matching prefix wins. A package that is missing here fails the test:
// whoever adds one decides where it stands.
var layers = map[string][]string{
	".":               {}, // the reference pages
	"ring2":           {},
	"dot":             {},
	"catalogue":       {}, // names of metrics and checks, for all who show them
	"schema":          {"ring2"},
	"bus":             {"bus", "catalogue"},
	"spool":           {"bus", "catalogue"},
	"deadletter":      {},
	"tally":           {"schema", "bus"}, // what the stages of the way tell each other
	"spelling":        {},
	"config":          {"spelling"},
	"safetensors":     {},
	"modelconfig":     {"spelling"},
	"engine":          {"engine", "ring2", "dot", "safetensors", "catalogue"},
	"lakehouse":       {"schema", "safetensors"},
	"recording":       {"ring2"},
	"producer":        {"schema", "ring2", "bus", "dot", "catalogue", "spool", "deadletter", "tally"},
	"consumers/group": {"bus", "catalogue"},
	"consumers/materializer": {"schema", "bus", "lakehouse", "consumers/group", "catalogue", "deadletter",
		"tally"},
	"consumers/detector": {"schema", "bus", "lakehouse", "consumers/group", "dot", "safetensors", "catalogue",
		"tally"},
	"cmd": {"ring2", "recording", "dot", "schema", "bus", "config", "safetensors", "engine", "lakehouse", "producer",
		"spool", "deadletter",
		"consumers", "catalogue", "modelconfig", "cmd"},
	"trials": {"ring2", "dot", "schema", "bus", "config", "engine", "lakehouse", "producer", "consumers", "cmd",
		"trials"},
	"nvml":     {"catalogue"}, // a module of its own, because it needs cgo
	"internal": {},
}

var bannedPackageNames = map[string]bool{
	"util": true, "utils": true, "common": true, "helpers": true, "helper": true, "manager": true, "misc": true,
	"base": true, "lib": true, "shared": true,
}

func TestImportsFlowOneWay(t *testing.T) {
	for _, f := range goFiles(t) {
		file := parse(t, f, parser.ImportsOnly)
		dir := filepath.ToSlash(filepath.Dir(f))
		allowed, ok := layerOf(dir)
		if !ok {
			t.Errorf("%s: folder %s has no place in the import order; add it to layers in this test", f, dir)
			continue
		}
		for _, spec := range file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatalf("%s: import %s: %v", f, spec.Path.Value, err)
			}
			target, ours := strings.CutPrefix(path, "sonde/")
			if !ours || path == "sonde" || target == "internal/notrun" || within(target, dir) || within(dir, target) {
				continue
			}
			if strings.HasSuffix(f, "_test.go") && strings.HasSuffix(target, "test") {
				continue
			}
			if !anyPrefix(allowed, target) && !strings.HasSuffix(f, "_test.go") {
				t.Errorf("%s imports %s: imports flow schema <- ring2 <- producer, consumers, lakehouse <- cmd", f, path)
			}
		}
	}
}

func TestPackageNamesAreNouns(t *testing.T) {
	for _, f := range goFiles(t) {
		if name := parse(t, f, parser.PackageClauseOnly).Name.Name; bannedPackageNames[name] {
			t.Errorf("%s: package %s says nothing about what it holds", f, name)
		}
	}
}

func TestFilesFunctionsAndLinesAreShort(t *testing.T) {
	for _, f := range goFiles(t) {
		text := read(t, f)
		if generated(text) {
			continue
		}
		lines := bytes.Split(text, []byte("\n"))
		if len(lines) > maxFileLines+1 {
			t.Errorf("%s has %d lines; at most %d: split it by topic", f, len(lines)-1, maxFileLines)
		}
		for i, line := range lines {
			if n := len([]rune(string(line))); n > maxLineLetters && !bytes.Contains(line, []byte("`")) {
				t.Errorf("%s:%d has %d letters; at most %d", f, i+1, n, maxLineLetters)
			}
		}
		checkFunctions(t, f)
	}
}

func checkFunctions(t *testing.T, f string) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, filepath.Join(root, f), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range file.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		length := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1
		if length > maxFunctionLines {
			t.Errorf("%s: function %s has %d lines; at most %d", f, fn.Name.Name, length, maxFunctionLines)
		}
	}
}

// Words that must not stand in the project: work left for later without a name,
// and addresses of machines that are not the reader's.
var bannedWords = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b|/wo` + `rk/|/ro` + `ot/|pro` +
	`xy\.golang\.org|py` + `pi\.org|regi` + `stry\.npmjs|deb\.deb` + `ian\.org`)

func TestNoLeftovers(t *testing.T) {
	for _, f := range textFiles(t) {
		for i, line := range strings.Split(string(read(t, f)), "\n") {
			if m := bannedWords.FindString(line); m != "" {
				t.Errorf("%s:%d holds %q", f, i+1, m)
			}
		}
	}
}

var (
	metricLiteral = regexp.MustCompile(`"(sonde_[a-z0-9_]+)"`)
	metricMade    = regexp.MustCompile(`promauto|prometheus\.(Must)?New(Counter|Gauge|Histogram|Summary|Untyped|Desc|Const)`)
)

// Who makes a metric takes it from the catalogue, and the catalogue has none that
// nobody makes. Commands and trials only read metrics by their names.
func TestMetricsAreThoseOfTheCatalogue(t *testing.T) {
	const file = "catalogue/catalogue.go"
	listed, made, wanted := map[string]string{}, map[string]string{}, map[string]string{}
	for _, f := range goFiles(t) {
		names := made
		switch {
		case f == file:
			names = listed
		case strings.HasSuffix(f, "_test.go") || within(f, "catalogue"):
			continue
		case within(f, "cmd") || within(f, "trials"):
			names = wanted
		}
		text := string(read(t, f))
		for _, m := range metricLiteral.FindAllStringSubmatch(text, -1) {
			names[m[1]] = f
		}
		if m := metricMade.FindString(text); m != "" {
			t.Errorf("%s makes a metric with %s; take it from the catalogue by its name", f, m)
		}
	}
	if len(listed) == 0 {
		t.Fatal("found no metric in the catalogue: the pattern of this test no longer fits")
	}
	reportDifference(t, "metric", made, listed, file)
	for _, name := range sortedKeys(wanted) {
		if listed[name] == "" {
			t.Errorf("%s reads the metric %s, which %s does not have", wanted[name], name, file)
		}
	}
}

var configTag = regexp.MustCompile("`[^`]*yaml:\"([a-z0-9_]+)")
var configDocumented = regexp.MustCompile("(?m)^\\| `([a-z0-9_.\\[\\]]+)`")

func TestConfigurationKeysAreDocumented(t *testing.T) {
	inCode, inDocs := map[string]string{}, map[string]string{}
	for _, f := range goFiles(t) {
		if !strings.HasPrefix(f, "config/") || strings.HasSuffix(f, "_test.go") {
			continue
		}
		for _, m := range configTag.FindAllStringSubmatch(string(read(t, f)), -1) {
			inCode[m[1]] = f
		}
	}
	for _, m := range configDocumented.FindAllStringSubmatch(string(read(t, "CONFIG.md")), -1) {
		for _, part := range strings.Split(m[1], ".") {
			inDocs[strings.TrimSuffix(part, "[]")] = "CONFIG.md"
		}
	}
	if len(inCode) == 0 {
		t.Fatal("found no configuration key in config/: the pattern of this test no longer fits")
	}
	reportDifference(t, "configuration key", inCode, inDocs, "CONFIG.md")
}

var makeTarget = regexp.MustCompile(`(?m)^([a-z][a-z0-9-]*):([^=\n]*)$`)

func TestMakeTargetsSayWhatTheyDo(t *testing.T) {
	for _, m := range makeTarget.FindAllStringSubmatch(string(read(t, "Makefile")), -1) {
		if !strings.Contains(m[2], "## ") {
			t.Errorf("Makefile: target %s has no ## comment, so make help does not list it", m[1])
		}
	}
}

func TestDirectDependenciesHaveAReason(t *testing.T) {
	reasons := string(read(t, "DEPENDENCIES.md"))
	direct := regexp.MustCompile(`(?m)^\t(\S+) v\S+$`)
	for _, m := range direct.FindAllStringSubmatch(string(read(t, "go.mod")), -1) {
		if !strings.Contains(reasons, m[1]) {
			t.Errorf("go.mod: %s has no line of reason in DEPENDENCIES.md", m[1])
		}
	}
}

func reportDifference(t *testing.T, what string, inCode, inDocs map[string]string, doc string) {
	for _, name := range sortedKeys(inCode) {
		if inDocs[name] == "" {
			t.Errorf("%s %s (%s) is missing in %s", what, name, inCode[name], doc)
		}
	}
	for _, name := range sortedKeys(inDocs) {
		if inCode[name] == "" {
			t.Errorf("%s names the %s %s, which no code has", doc, what, name)
		}
	}
}

const root = "../.."

func goFiles(t *testing.T) []string {
	var out []string
	for _, f := range textFiles(t) {
		if strings.HasSuffix(f, ".go") {
			out = append(out, f)
		}
	}
	return out
}

var textSuffixes = map[string]bool{".go": true, ".md": true, ".h": true, ".c": true, ".py": true, ".yaml": true,
	".yml": true, ".sh": true, ".mod": true, ".s": true, "": true}

// textFiles lists what a reader reads: sources and documents, without what was
// built, what a run left behind, vendored assets and test data.
func textFiles(t *testing.T) []string {
	var out []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch {
			case rel == "build", rel == "data", d.Name() == "testdata", d.Name() == "assets",
				rel != "." && strings.HasPrefix(d.Name(), "."):
				return filepath.SkipDir
			}
			return nil
		}
		if textSuffixes[filepath.Ext(path)] {
			out = append(out, filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func layerOf(dir string) ([]string, bool) {
	best, found := "", false
	for prefix := range layers {
		if within(dir, prefix) && len(prefix) >= len(best) {
			best, found = prefix, true
		}
	}
	return layers[best], found
}

func within(path, prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }

func anyPrefix(prefixes []string, path string) bool {
	for _, p := range prefixes {
		if within(path, p) {
			return true
		}
	}
	return false
}

func generated(text []byte) bool {
	head := text[:min(len(text), 200)]
	return bytes.Contains(head, []byte("Code generated"))
}

func parse(t *testing.T, f string, mode parser.Mode) *ast.File {
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, f), nil, mode)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func read(t *testing.T, f string) []byte {
	text, err := os.ReadFile(filepath.Join(root, f))
	if err != nil {
		t.Errorf("%v", err)
	}
	return text
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
