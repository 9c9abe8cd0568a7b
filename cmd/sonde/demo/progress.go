package demo

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress shows how far the demo is: a bar on a terminal, a line now and then
// elsewhere.
type progress struct {
	out      io.Writer
	terminal bool

	mu   sync.Mutex
	bar  *progressbar.ProgressBar
	last time.Time
	done int
	all  int
}

// lineInterval is how often a log, which is no terminal, gets a line.
const lineInterval = 5 * time.Second

func newProgress(out io.Writer) *progress {
	file, ok := out.(*os.File)
	if !ok {
		return &progress{out: out}
	}
	info, err := file.Stat()
	return &progress{out: out, terminal: err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"}
}

// phase announces what happens now.
func (p *progress) phase(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	fmt.Fprintf(p.out, format+"\n", args...)
}

// start begins a bar of so many requests.
func (p *progress) start(all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done, p.all, p.last = 0, max(all, 1), time.Now()
	if p.terminal {
		p.bar = progressbar.NewOptions(p.all, progressbar.OptionSetWriter(p.out), progressbar.OptionSetWidth(28),
			progressbar.OptionThrottle(80*time.Millisecond), progressbar.OptionSetPredictTime(false),
			progressbar.OptionClearOnFinish(), progressbar.OptionSetDescription("starting"))
	}
}

// update shows requests answered and a line of live figures.
func (p *progress) update(done int, figures string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = min(done, p.all)
	if p.bar != nil {
		p.bar.Describe(figures)
		_ = p.bar.Set(p.done) // A terminal that went away must not end the demo.
		return
	}
	if !p.terminal && time.Since(p.last) >= lineInterval {
		p.last = time.Now()
		fmt.Fprintf(p.out, "  %3d %%  %s\n", 100*p.done/p.all, figures)
	}
}

// finish removes the bar.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

func (p *progress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear() // As above.
		p.bar = nil
	}
}
