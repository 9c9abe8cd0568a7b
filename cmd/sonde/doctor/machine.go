package doctor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sonde/config"
)

// What the agent opens: for each rank a connection and an eventfd, and two memfds
// while it attaches; and what the bus, the lake and HTTP have open beside.
const (
	filesPerRank = 4
	filesBeside  = 256
	mostRanks    = 1024 // that an agent takes
	fewRanks     = 64   // that should always fit
)

// kernel looks for what a ring needs: memfds whose size can be sealed.
func kernel() []Finding {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return one(Fail, "kernel", "it does not say its version: "+err.Error(), "run on Linux 3.17 or later")
	}
	version := unix.ByteSliceToString(name.Release[:])
	if err := seal(); err != nil {
		return one(Fail, "kernel", fmt.Sprintf("Linux %s makes no sealed memory: %v", version, err),
			"allow memfd_create and fcntl in the sandbox, or use Linux 3.17 or later")
	}
	return one(OK, "kernel", "Linux "+version+", memory can be sealed", "")
}

func seal() error {
	fd, err := unix.MemfdCreate("sonde-doctor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, 4096); err != nil {
		return fmt.Errorf("ftruncate: %w", err)
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if unix.Ftruncate(fd, 0) == nil {
		return errors.New("a sealed memory could be shrunk")
	}
	return nil
}

const shmemPages = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

// memory says how rings lie in memory. Neither is a fault: engine and agent lock
// nothing, and a ring of small pages only costs more misses.
func memory() []Finding {
	var limit unix.Rlimit
	locked := "cannot be read"
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err == nil {
		locked = bytesText(limit.Cur)
	}
	out := one(OK, "memlock", "limit "+locked+"; only a GPU engine that pins its ring needs more than the ring", "")
	text, err := os.ReadFile(shmemPages)
	return append(out, hugePages(string(text), err))
}

func hugePages(text string, err error) Finding {
	_, chosen, _ := strings.Cut(text, "[")
	chosen, _, _ = strings.Cut(chosen, "]")
	switch {
	case err == nil && slices.Contains([]string{"always", "within_size", "force"}, chosen):
		return Finding{OK, "huge pages", "rings get them (" + chosen + ")", ""}
	case err == nil && slices.Contains([]string{"never", "advise", "deny"}, chosen):
		return Finding{OK, "huge pages", "rings get none (" + chosen + ")", "for rings of GiB, write within_size into " +
			shmemPages}
	}
	return Finding{OK, "huge pages", "the kernel does not say whether rings get them", ""}
}

func bytesText(n uint64) string {
	if n > 1<<60 {
		return "unlimited"
	}
	return config.Size(n).String()
}

func openFiles() []Finding {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return one(Warn, "open files", "the limit cannot be read: "+err.Error(), "")
	}
	return []Finding{filesFinding(limit.Max)} // programs in Go raise theirs to the maximum
}

func filesFinding(limit uint64) Finding {
	ranks := uint64(0)
	if limit > filesBeside {
		ranks = (limit - filesBeside) / filesPerRank
	}
	found := fmt.Sprintf("%d allowed, enough for %d ranks", limit, min(ranks, mostRanks))
	do := fmt.Sprintf("raise it with ulimit -n %d or LimitNOFILE=", mostRanks*filesPerRank+filesBeside)
	switch {
	case ranks == 0:
		return Finding{Fail, "open files", found, do}
	case ranks < fewRanks:
		return Finding{Warn, "open files", found, do}
	}
	return Finding{OK, "open files", found, ""}
}

// watch compares the clocks at two moments.
type watch struct{ mono, wall time.Duration }

func readClocks() watch {
	var mono, wall unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono) != nil || unix.ClockGettime(unix.CLOCK_REALTIME, &wall) != nil {
		panic("BUG: a clock of Linux cannot be read")
	}
	return watch{time.Duration(mono.Nano()), time.Duration(wall.Nano())}
}

type clockCheck struct{ start watch }

func startClock() *clockCheck { return &clockCheck{readClocks()} }

// stepped is more than clocks that are only adjusted drift apart in a second or two.
const stepped = 50 * time.Millisecond

const unsynchronised = 0x40 // STA_UNSYNC of adjtimex

func (c *clockCheck) findings() []Finding {
	now := readClocks()
	jump := now.wall - c.start.wall - (now.mono - c.start.mono)
	var t unix.Timex // Modes 0: only asks
	_, err := unix.Adjtimex(&t)
	return []Finding{clockFinding(jump, err, t.Status, time.Duration(t.Maxerror)*time.Microsecond)}
}

func clockFinding(jump time.Duration, err error, status int32, worst time.Duration) Finding {
	switch {
	case jump.Abs() > stepped:
		return Finding{Warn, "clock", fmt.Sprintf("the wall clock jumped by %v while this ran; latencies and expiry of "+
			"aborts are wrong then", jump.Round(time.Millisecond)), "let chrony or systemd-timesyncd slew it, not step it"}
	case err != nil:
		return Finding{OK, "clock", "steady; whether it is synchronised cannot be read: " + err.Error(), ""}
	case status&unsynchronised != 0:
		return Finding{Warn, "clock", "steady, not synchronised; times of several machines do not compare",
			"run chrony or systemd-timesyncd when engine and detector are on different machines"}
	}
	return Finding{OK, "clock", fmt.Sprintf("steady and synchronised, at most %v off", worst), ""}
}

// processName says which process that is, as far as it may be known.
func processName(pid int) string {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(text)))
}
