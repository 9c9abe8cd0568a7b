package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxFileBytes bounds a configuration file; a larger one is refused unread.
const maxFileBytes = 1 << 20

// Load reads and checks a file. The error is an *Error when the file can be
// read but is wrong.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w; give an existing file with --config", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w; give a file", err)
	}
	if len(text) > maxFileBytes {
		return Config{}, fmt.Errorf("configuration %s is larger than %s; give the right file", path, Size(maxFileBytes))
	}
	return Parse(path, text)
}

// Parse checks the text of a file; name stands in its errors.
func Parse(name string, text []byte) (Config, error) {
	c := Default()
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	if p := encoding(text); p != nil {
		return Config{}, &Error{File: name, Problems: []Problem{*p}}
	}
	// Keys written twice are left to the walk, which knows their whole names.
	file, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return Config{}, syntaxError(name, text, err)
	}
	if p := documents(file.Docs); p != nil {
		return Config{}, &Error{File: name, Problems: []Problem{*p}}
	}
	w := &walk{lines: map[string]int{}, values: map[string]string{}}
	if len(file.Docs) == 1 && file.Docs[0].Body != nil && file.Docs[0].Body.Type() != ast.CommentType {
		w.root(file.Docs[0].Body)
		if len(w.problems) == 0 {
			err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(&c)
			if err != nil && !errors.Is(err, io.EOF) {
				return Config{}, syntaxError(name, text, err)
			}
		}
	}
	if len(w.problems) == 0 {
		c.fillRules(w.written)
		w.check(c)
	}
	if len(w.problems) > 0 {
		sort.SliceStable(w.problems, func(i, j int) bool { return w.problems[i].Line < w.problems[j].Line })
		return Config{}, &Error{File: name, Problems: w.problems}
	}
	return c, nil
}

// encoding finds what is no text in UTF-8, and characters that nobody writes by hand.
func encoding(text []byte) *Problem {
	for rest, at := text, 1; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && n == 1:
			return &Problem{Line: at, Key: "the file", Want: fmt.Sprintf(
				"not text in UTF-8: it holds the byte 0x%02X; save it in the encoding UTF-8", rest[0])}
		case r == '\n':
			at++
		case unicode.IsControl(r) && r != '\t' && r != '\r':
			return &Problem{Line: at, Key: "the file", Want: fmt.Sprintf(
				"not plain text: it holds the control character U+%04X; remove it, or give the right file", r)}
		}
		rest = rest[n:]
	}
	return nil
}

// documents allows one document, and no directive before it.
func documents(docs []*ast.DocumentNode) *Problem {
	for _, d := range docs {
		if d.Body != nil && d.Body.Type() == ast.DirectiveType {
			return &Problem{Line: line(d.Body), Key: "%", Want: "a directive of YAML; remove this line"}
		}
	}
	if len(docs) > 1 {
		return &Problem{Line: line(docs[1].Body), Key: "---", Want: "a second document; write one document per file"}
	}
	return nil
}

// keyAndValue takes a line of the file apart as far as that is possible when it is no YAML.
var keyAndValue = regexp.MustCompile(`^[\s-]*([\w.-]+)[ \t]*:(.*)$`)

// syntaxError turns the parser's error into ours, with the key and the value of the line where it gave up.
func syntaxError(name string, text []byte, err error) error {
	p := Problem{Line: 1, Key: "the file", Want: err.Error()}
	var e yaml.Error
	if !errors.As(err, &e) {
		return &Error{File: name, Problems: []Problem{p}}
	}
	p.Want = e.GetMessage() + "; check the indentation, the quotes and the colons of this line"
	if tk := e.GetToken(); tk != nil {
		p.Line = tk.Position.Line
	}
	lines := strings.Split(string(text), "\n")
	written := strings.TrimRight(lines[min(p.Line, len(lines))-1], "\r")
	if m := keyAndValue.FindStringSubmatch(written); m != nil {
		p.Key, p.Value = m[1], harmless(strings.TrimSpace(m[2]))
	} else {
		p.Value = harmless(strings.TrimSpace(written))
	}
	if indent := written[:len(written)-len(strings.TrimLeft(written, " \t"))]; strings.Contains(indent, "\t") {
		p.Want = "a tab before the key; write two spaces for each level instead"
	}
	return &Error{File: name, Problems: []Problem{p}}
}

func line(node ast.Node) int {
	if node == nil || node.GetToken() == nil {
		return 1
	}
	return node.GetToken().Position.Line
}
