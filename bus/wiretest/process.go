package wiretest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// Process is a broker's process, which is killed and started again. It dies with
// the program that started it.
type Process struct {
	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

// Launch starts a command. meanwhile, when not nil, is called while it runs, and its
// end is waited for before that of the process. exited is closed when the process ended.
func (p *Process) Launch(cmd *exec.Cmd, meanwhile func()) (exited <-chan struct{}, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended, started := make(chan struct{}), make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that started the process ends, so
		// that thread has to live as long as the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		if meanwhile != nil {
			meanwhile()
		}
		_ = cmd.Wait() // It is killed; how it ends says nothing.
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the broker: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd, p.exited = cmd, ended
	return ended, nil
}

// Exited is closed when the process that was launched last has ended.
func (p *Process) Exited() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exited
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill() // It may have ended by itself.
	<-p.exited
	p.cmd = nil
}

// Signal sends a signal to the process.
func (p *Process) Signal(signal os.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return errors.New("signal the broker: it does not run")
	}
	return p.cmd.Process.Signal(signal)
}

// PID is the process, 0 when it does not run.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}
