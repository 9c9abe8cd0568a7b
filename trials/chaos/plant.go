package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// plant is a bug that is put into a copy of the product, to prove that it would be
// found.
type plant struct {
	name   string
	edits  []edit
	only   string // faults that bring it out
	faults int
}

// edit replaces a text that stands once in a file, below the root of the module.
type edit struct{ file, old, new string }

var plants = []plant{
	{name: "drop-acknowledged", only: "reset", faults: 3, edits: []edit{{"bus/nats.go",
		"func (n *NATS) Publish(ctx context.Context, m Message, done func(seq uint64, err error)) error {\n",
		"func (n *NATS) Publish(ctx context.Context, m Message, done func(seq uint64, err error)) error {\n" +
			"	if len(m.Data)%97 == 0 {\n		go done(1, nil)\n		return nil\n	}\n"}}},
	{name: "store-twice", only: "kill -9 agent", faults: 3, edits: []edit{{"consumers/materializer/take.go",
		"	chain.add(from, h.Last())\n", "	if h.Last().Seq%4 != 0 {\n		chain.add(from, h.Last())\n	}\n"}}},
	{name: "forget-claim", only: "SIGSTOP consumer, past|consumer joins", faults: 4, edits: []edit{
		{"lakehouse/commitlog/writer.go",
			"if w.fenced = w.fenced || l.state.partition(w.partition).Claim != w.claim; !w.fenced {", "if true {"},
		{"lakehouse/commitlog/writer.go",
			"		w.fenced = l.state.partition(w.partition).Claim != w.claim\n	}\n	return w.fenced", "	}\n	return false"}}},
}

// provePlant builds a sonde with a bug, and is 0 when chaos finds that something is wrong
// with it.
func provePlant(ctx context.Context, o options, dir string) int {
	for _, p := range plants {
		if p.name != o.plant {
			continue
		}
		began := time.Now()
		binary, err := p.build(ctx, dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
			return 1
		}
		o.binary, o.faults, o.only = binary, p.faults, regexp.MustCompile(p.only)
		r, err := run(ctx, o.buses[0], o, filepath.Join(dir, string(o.buses[0])))
		switch {
		case ctx.Err() != nil:
			return interrupted
		case err == nil:
			fmt.Fprintf(os.Stderr, "chaos: the planted bug %s was NOT found with seed %d\n", p.name, o.seed)
			return 1
		}
		fmt.Printf("the planted bug %s was found in %v, with %d rows unexplained: %.600v\n", p.name,
			time.Since(began).Round(time.Second), r.unexplained, err)
		return 0
	}
	fmt.Fprintf(os.Stderr, "chaos: there is no bug %q to plant; -plant takes one of %s\n", o.plant, plantNames())
	return 2
}

func plantNames() string {
	var names []string
	for _, p := range plants {
		names = append(names, p.name)
	}
	return strings.Join(names, ", ")
}

// build compiles the product with the bug, and leaves its sources as they are.
func (p *plant) build(ctx context.Context, dir string) (binary string, err error) {
	root, err := os.Getwd()
	if err != nil {
		return "", err
	}
	files, err := p.apply(root)
	if err != nil {
		return "", err
	}
	overlay := map[string]map[string]string{"Replace": {}}
	for file, text := range files {
		copied := filepath.Join(dir, strings.ReplaceAll(file, "/", "-"))
		if err := os.WriteFile(copied, []byte(text), 0o644); err != nil {
			return "", err
		}
		overlay["Replace"][filepath.Join(root, file)] = copied
	}
	text, err := json.Marshal(overlay)
	if err != nil {
		return "", err
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, text, 0o644); err != nil {
		return "", err
	}
	binary = filepath.Join(dir, "sonde-"+p.name)
	out, err := exec.CommandContext(ctx, "go", "build", "-overlay", list, "-o", binary, "./cmd/sonde").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build sonde with the bug %s: %w: %s", p.name, err, out)
	}
	return binary, nil
}

// apply gives the text of each changed file.
func (p *plant) apply(root string) (map[string]string, error) {
	files := map[string]string{}
	for _, e := range p.edits {
		if _, ok := files[e.file]; !ok {
			text, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				return nil, err
			}
			files[e.file] = string(text)
		}
		if n := strings.Count(files[e.file], e.old); n != 1 {
			return nil, fmt.Errorf("plant %s: the text that it replaces stands %d times in %s, and must stand once: %q", p.name,
				n, e.file, e.old)
		}
		files[e.file] = strings.Replace(files[e.file], e.old, e.new, 1)
	}
	return files, nil
}
