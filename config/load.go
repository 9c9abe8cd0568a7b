package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"

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
		return Config{}, fmt.Errorf("read configuration %s: %w", path, err)
	}
	if len(text) > maxFileBytes {
		return Config{}, fmt.Errorf("configuration %s is larger than %s; is it the right file?", path, Size(maxFileBytes))
	}
	return Parse(path, text)
}

// Parse checks the text of a file; name stands in its errors.
func Parse(name string, text []byte) (Config, error) {
	c := Default()
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return Config{}, syntaxError(name, err)
	}
	if len(file.Docs) > 1 {
		return Config{}, &Error{File: name, Problems: []Problem{{Line: line(file.Docs[1].Body), Key: "---",
			Want: "a second document; write one document per file"}}}
	}
	w := &walk{lines: map[string]int{}, values: map[string]string{}}
	if len(file.Docs) == 1 && file.Docs[0].Body != nil && file.Docs[0].Body.Type() != ast.CommentType {
		w.root(file.Docs[0].Body)
		if len(w.problems) == 0 {
			err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(&c)
			if err != nil && !errors.Is(err, io.EOF) {
				return Config{}, syntaxError(name, err)
			}
		}
	}
	if len(w.problems) == 0 {
		c.fillRules()
		w.check(c)
	}
	if len(w.problems) > 0 {
		sort.SliceStable(w.problems, func(i, j int) bool { return w.problems[i].Line < w.problems[j].Line })
		return Config{}, &Error{File: name, Problems: w.problems}
	}
	return c, nil
}

// syntaxError turns the parser's error into ours.
func syntaxError(name string, err error) error {
	p := Problem{Line: 1, Key: "yaml", Want: err.Error()}
	var e yaml.Error
	if errors.As(err, &e) {
		p.Want = e.GetMessage() + "; check the indentation, the quotes and the colons of this line"
		var twice *yaml.DuplicateKeyError
		if errors.As(err, &twice) {
			p.Want = e.GetMessage() + "; keep one of the two"
		}
		if tk := e.GetToken(); tk != nil {
			p.Line, p.Value = tk.Position.Line, strconv.Quote(clip(strings.TrimSpace(tk.Value)))
		}
	}
	return &Error{File: name, Problems: []Problem{p}}
}

func line(node ast.Node) int {
	if node == nil || node.GetToken() == nil {
		return 1
	}
	return node.GetToken().Position.Line
}
