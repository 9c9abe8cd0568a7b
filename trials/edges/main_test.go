package edges

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sonde/internal/notrun"
)

// inside marks the copy of the test binary that runs the tests.
const inside = "SONDE_EDGES_NAMESPACE"

// sondeBinary is the sonde that all tests run, built once.
var sondeBinary = sync.OnceValues(buildSonde)

var scratch string // folder of the binary

func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		os.Exit(runInNamespace())
	}
	var err error
	if scratch, err = os.MkdirTemp("", "sonde-edges-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(scratch) // What is left of it is in the folder for temporary files.
	os.Exit(code)
}

// runInNamespace runs this binary again where it may mount, and without that where
// the machine does not let it.
func runInNamespace() int {
	runtime.LockOSThread() // The death signal of the child comes when this thread ends.
	var exit *exec.ExitError
	for _, private := range []bool{true, false} {
		cmd := exec.Command(os.Args[0], os.Args[1:]...)
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if private {
			cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
			if os.Getuid() != 0 {
				cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
				cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
				cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
			}
		} else {
			cmd.Env = append(cmd.Env, inside+"=none")
		}
		err := cmd.Run()
		if err == nil {
			return 0
		}
		if errors.As(err, &exit) {
			return max(1, exit.ExitCode())
		}
	}
	return 1
}

func buildSonde() (string, error) {
	out := filepath.Join(scratch, "sonde")
	cmd := exec.Command("go", "build", "-trimpath", "-o", out, "sonde/cmd/sonde")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build sonde: %w: %s", err, text)
	}
	return out, nil
}

// disk mounts a file system of so many MiB in memory, for this test alone.
func disk(t *testing.T, mib int) string {
	t.Helper()
	dir := t.TempDir()
	if os.Getenv(inside) == "none" {
		notrun.Mark(t, "this machine has no mount namespaces for this user")
	}
	err := unix.Mount("sonde-edges", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755", mib))
	if err != nil {
		notrun.Mark(t, fmt.Sprintf("mounting a file system in memory is refused: %v", err))
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// fill takes the last byte of a disk, and returns how to give it back.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	f, err := os.CreateTemp(dir, "ballast-*")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := 1 << 20; block >= 512; block /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, block))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	return func() {
		t.Helper()
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
	}
}
