package demo

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// child is the engine, a process of its own.
type child struct {
	log     string
	process *os.Process
	exited  chan struct{} // closed once the process is gone
	err     error         // its exit, valid after exited is closed
}

// startChild starts this same binary with other arguments. The child dies with
// this process, however this process ends; when ctx ends, it is killed.
func startChild(ctx context.Context, log string, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program's own file, to start the engine: %w", err)
	}
	out, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("write the engine's log: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = out, out
	// A group of its own: Ctrl-C in the terminal reaches only this process, which
	// then stops the engine in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	c := &child{log: log, exited: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends, so
		// that thread has to live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		c.process = cmd.Process
		started <- err
		if err == nil {
			c.err = cmd.Wait()
		}
		close(c.exited)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the engine: %w", err)
	}
	context.AfterFunc(ctx, c.kill)
	return c, nil
}

// kill ends the child at once; it does nothing to one that is gone.
func (c *child) kill() {
	select {
	case <-c.exited:
	default:
		_ = c.process.Kill() // It may have exited in between.
		<-c.exited
	}
}

// stop asks the child to end and waits for it; after the limit it is killed.
func (c *child) stop(limit time.Duration) error {
	_ = c.process.Signal(syscall.SIGTERM) // An exited child is seen below.
	select {
	case <-c.exited:
	case <-time.After(limit):
		c.kill()
		return fmt.Errorf("the engine did not stop within %v and was killed; its last words: %s", limit, c.lastWords())
	}
	if c.err != nil {
		return fmt.Errorf("the engine failed: %w; its last words: %s", c.err, c.lastWords())
	}
	return nil
}

// lastWords is the end of the child's log, for error messages.
func (c *child) lastWords() string {
	text, err := os.ReadFile(c.log)
	if err != nil {
		return "(no log: " + err.Error() + ")"
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}
