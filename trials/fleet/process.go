// Package fleet starts, kills and restarts the processes of a Sonde pipeline,
// as an operator's supervisor would, for trials that need real process deaths.
package fleet

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Process is one supervised child. Its methods may be called from several
// goroutines.
type Process struct {
	Name string
	bin  string
	args []string
	log  string

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
	starts int
}

// NewProcess describes a child; Start starts it. Its output is appended to
// NAME.log in dir.
func NewProcess(name, dir, bin string, args ...string) *Process {
	return &Process{Name: name, bin: bin, args: args, log: filepath.Join(dir, name+".log")}
}

// Start starts the child. It returns once the process exists, not once it is
// ready.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		select {
		case <-p.exited:
		default:
			return fmt.Errorf("start %s: it is still running as process %d", p.Name, p.cmd.Process.Pid)
		}
	}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer out.Close()
	p.starts++
	fmt.Fprintf(out, "--- start %d of %s\n", p.starts, p.Name)
	cmd := exec.Command(p.bin, p.args...)
	cmd.Stdout, cmd.Stderr = out, out
	// A trial that dies must not leave its children behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := fork(cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // The exit state is read through Exited and ProcessState.
		close(exited)
	}()
	p.cmd, p.exited = cmd, exited
	return nil
}

// fork runs start on the one thread that starts all children: their death signal
// comes when that thread ends, so it must be one that never does.
func fork(start func() error) error {
	done := make(chan error)
	forks() <- func() { done <- start() }
	return <-done
}

var forks = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for start := range work {
			start()
		}
	}()
	return work
})

// Signal sends a signal to a running child.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return fmt.Errorf("signal %s: it was never started", p.Name)
	}
	return p.cmd.Process.Signal(sig)
}

// Log is the file that the child's output is appended to.
func (p *Process) Log() string { return p.log }

// PID is the process id of the child that was started last, 0 before.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Kill sends SIGKILL and waits until the process is gone.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill %s: %w", p.Name, err)
	}
	return p.Wait(30 * time.Second)
}

// Stop sends SIGTERM and waits up to grace; then it kills.
func (p *Process) Stop(grace time.Duration) error {
	if !p.Running() {
		return nil
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %s: %w", p.Name, err)
	}
	if err := p.Wait(grace); err != nil {
		_ = p.Kill()
		return fmt.Errorf("stop %s: it ignored SIGTERM for %v and was killed; its last words: %s", p.Name, grace, p.Tail())
	}
	return nil
}

// Wait waits until the child has exited.
func (p *Process) Wait(limit time.Duration) error {
	p.mu.Lock()
	exited := p.exited
	p.mu.Unlock()
	if exited == nil {
		return nil
	}
	select {
	case <-exited:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("wait for %s: still running after %v", p.Name, limit)
	}
}

// Running tells whether the child exists.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Starts counts how often the child was started.
func (p *Process) Starts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.starts
}

// Tail returns the last line of the child's log.
func (p *Process) Tail() string {
	f, err := os.Open(p.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 4096 {
		_, _ = f.Seek(-4096, io.SeekEnd)
	}
	last := ""
	for scan := bufio.NewScanner(f); scan.Scan(); {
		last = scan.Text()
	}
	return last
}
