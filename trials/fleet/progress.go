package fleet

import (
	"fmt"
	"os"
	"time"
)

// Progress shows how far a trial is: one line that rewrites itself on a
// terminal, and a line now and then where the output goes to a file.
type Progress struct {
	out      *os.File
	terminal bool
	shown    time.Time
	open     bool // a line without its end is on the terminal
}

// everyFile is how often a line is written to a file.
const everyFile = 30 * time.Second

// NewProgress shows on standard output.
func NewProgress() *Progress { return NewProgressOn(os.Stdout) }

// NewProgressOn shows on a terminal or a file: it asks which of them it is.
func NewProgressOn(out *os.File) *Progress {
	info, err := out.Stat()
	return &Progress{out: out, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0, shown: time.Now()}
}

// Show replaces the line.
func (p *Progress) Show(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if p.terminal {
		fmt.Fprintf(p.out, "\r\033[K%s", text)
		p.open = true
	} else if time.Since(p.shown) >= everyFile {
		p.shown = time.Now()
		fmt.Fprintln(p.out, text)
	}
}

// Done ends the line.
func (p *Progress) Done() {
	if p.open {
		fmt.Fprintln(p.out)
		p.open = false
	}
}
