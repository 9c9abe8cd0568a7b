package fleet

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
)

// inside marks the copy of this program that InNamespace runs, and says whether it may
// mount.
const (
	inside      = "SONDE_TRIAL_NAMESPACE"
	insideOwn   = "own"
	insideOuter = "outer"
)

// InNamespace runs this program again in a mount namespace of its own, where what it
// mounts goes with it, and without that where the machine does not let it. In the copy,
// again is true. Otherwise code is the exit code of the copy.
func InNamespace() (again bool, code int) {
	if os.Getenv(inside) != "" {
		return true, 0
	}
	runtime.LockOSThread() // The death signal of the child comes when this thread ends.
	var exit *exec.ExitError
	for _, how := range []string{insideOwn, insideOuter} {
		cmd := exec.Command(os.Args[0], os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"="+how)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if how == insideOwn {
			ownMounts(cmd.SysProcAttr)
		}
		err := runForwarding(cmd)
		if err == nil {
			return false, 0
		}
		if errors.As(err, &exit) {
			return false, max(1, exit.ExitCode())
		}
	}
	return false, 1
}

// runForwarding runs a command to its end, which is asked for by the signals that ask
// for the end of this process.
func runForwarding(cmd *exec.Cmd) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case err := <-done:
			return err
		case s := <-signals:
			_ = cmd.Process.Signal(s) // It may have ended.
		}
	}
}

func ownMounts(a *syscall.SysProcAttr) {
	a.Unshareflags = syscall.CLONE_NEWNS
	if os.Getuid() != 0 {
		a.Cloneflags = syscall.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
}
