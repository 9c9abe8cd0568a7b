package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

//go:embed write_parquet.py
var writeParquet string

// pyarrow is a Python process that holds rows and writes them when it is told to.
type pyarrow struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	answers *bufio.Scanner
	errors  bytes.Buffer
}

// pyarrow starts the process. Where no Python with pyarrow is, it returns nil and
// notes that.
func (b *bench) pyarrow(ctx context.Context, files []string, out string) (*pyarrow, error) {
	if b.python == "" {
		b.miss("pyarrow: needs .venv with pyarrow; `make test-python` makes it")
		return nil, nil
	}
	p := &pyarrow{cmd: exec.CommandContext(ctx, b.python, append([]string{"-c", writeParquet, out}, files...)...)}
	p.cmd.Stderr = &p.errors
	p.cmd.WaitDelay = time.Second
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", b.python, err)
	}
	p.answers = bufio.NewScanner(stdout)
	if p.answers.Scan() && p.answers.Text() == "ready" {
		return p, nil
	}
	p.close()
	if strings.Contains(p.errors.String(), "ModuleNotFoundError") {
		b.miss("pyarrow: .venv has none; `make test-python` installs it")
		return nil, nil
	}
	return nil, fmt.Errorf("start pyarrow: %s", lastLine(p.errors.String()))
}

// write is an arm: the process measures itself, without the way to it.
func (p *pyarrow) write(context.Context) (s sample, err error) {
	if _, err := io.WriteString(p.stdin, "write\n"); err != nil {
		return s, fmt.Errorf("tell pyarrow to write: %w; it said: %s", err, lastLine(p.errors.String()))
	}
	if !p.answers.Scan() {
		return s, fmt.Errorf("pyarrow ended: %s", lastLine(p.errors.String()))
	}
	_, err = fmt.Sscan(p.answers.Text(), &s.seconds, &s.cpu)
	return s, err
}

func (p *pyarrow) close() {
	_ = p.stdin.Close()
	_ = p.cmd.Wait() // it ends with its input; what it says of that changes nothing
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
