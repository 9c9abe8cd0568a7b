package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sonde/config"
)

// storeLock is the file that the embedded server locks.
func storeLock(c *config.Config) string { return filepath.Join(c.Bus.Embedded.StoreDir, "lock") }

// lockHolder says who has locked a file, or "" when nobody has. A lock file outlives
// its holder, and the kernel gives the lock back with the process.
func lockHolder(path string) string {
	f, err := os.Open(path)
	if err != nil { // nobody could have locked it, or it is not ours to look at
		return ""
	}
	defer f.Close()
	// A shared lock, for microseconds: whoever starts in between is told the same.
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return ""
	}
	var st unix.Stat_t
	text, readErr := os.ReadFile("/proc/locks")
	if readErr != nil || unix.Fstat(int(f.Fd()), &st) != nil {
		return "another process"
	}
	if pid := holderIn(string(text), unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino); pid > 0 {
		return processName(pid)
	}
	return "another process"
}

// holderIn finds who holds the lock of a file in the text of /proc/locks; 0: nobody
// that can be seen. A line is "1: FLOCK ADVISORY WRITE 4711 fd:00:1234 0 EOF".
func holderIn(text string, major, minor uint32, inode uint64) int {
	want := fmt.Sprintf("%02x:%02x:%d", major, minor, inode)
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != want {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil {
			return pid
		}
	}
	return 0
}
