package fleet

import (
	"fmt"
	"os"
	"time"
)

// Progress shows how far a trial is: one line that rewrites itself on a
// terminal, and a line now and then where the output goes to a file.
type Progress struct {
	terminal bool
	shown    time.Time
	open     bool // a line without its end is on the terminal
}

// everyFile is how often a line is written to a file.
const everyFile = 30 * time.Second

// NewProgress asks what standard output is.
func NewProgress() *Progress {
	info, err := os.Stdout.Stat()
	return &Progress{terminal: err == nil && info.Mode()&os.ModeCharDevice != 0, shown: time.Now()}
}

// Show replaces the line.
func (p *Progress) Show(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if p.terminal {
		fmt.Printf("\r\033[K%s", text)
		p.open = true
	} else if time.Since(p.shown) >= everyFile {
		p.shown = time.Now()
		fmt.Println(text)
	}
}

// Done ends the line.
func (p *Progress) Done() {
	if p.open {
		fmt.Println()
		p.open = false
	}
}
