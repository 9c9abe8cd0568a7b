package docrun

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// worldVariable, in the environment of a test binary, says that it is to become
// the shell of a scenario.
const worldVariable = "SONDE_DOCRUN_SCRIPT"

// DefaultPorts are those that the pages use, as a reader of them does.
var DefaultPorts = []string{"4222", "8000", "8222", "9464", "9465"}

// Enter must be the first call of TestMain. In a process that Shell started it
// never returns: it becomes the shell, in a network of its own.
func Enter() {
	script := os.Getenv(worldVariable)
	if script == "" {
		return
	}
	if err := os.Unsetenv(worldVariable); err != nil {
		fail(err)
	}
	if err := raiseLoopback(); err != nil {
		fail(err)
	}
	fail(syscall.Exec("/bin/bash", []string{"bash", script}, os.Environ()))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "docrun:", err)
	os.Exit(1)
}

// raiseLoopback switches the one interface of a new network namespace on.
func raiseLoopback() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("raise the loopback interface: %w", err)
	}
	defer unix.Close(s)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("raise the loopback interface: %w", err)
	}
	return nil
}

// Shell runs a script with bash, in a process group of its own. When isolated, it
// has a network of its own, so that the ports in a page are free whatever else runs
// on the machine; the calling program must begin with Enter.
func Shell(script string, isolated bool) *exec.Cmd {
	if !isolated {
		c := exec.Command("/bin/bash", script)
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		c.Env = os.Environ()
		return c
	}
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), worldVariable+"="+script)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
	return c
}

// CanIsolate says whether this machine lets a process have a network of its own.
func CanIsolate(emptyScript string) bool { return Shell(emptyScript, true).Run() == nil }

// BusyPort is one of DefaultPorts that somebody listens on, or empty.
func BusyPort() string {
	for _, port := range DefaultPorts {
		l, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			return port
		}
		l.Close()
	}
	return ""
}
