package fleet

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrNotHere is what this machine does not let a trial do; errors say what.
var ErrNotHere = errors.New("this machine does not allow it")

// WallClock is the wall clock of one process, which a trial may set without touching
// that of the machine. A program reads the clock by a function that the kernel maps
// into it; in this process alone it is replaced by one that adds an offset.
type WallClock struct {
	mem    *os.File
	offset int64 // address of the seconds that are added
}

// addOffset is for amd64: it asks the kernel for the clock, and adds the number behind
// it to the seconds of CLOCK_REALTIME.
var addOffset = []byte{
	0xb8, 0xe4, 0, 0, 0, // mov eax, clock_gettime
	0x0f, 0x05, // syscall
	0x85, 0xff, // test edi, edi
	0x75, 0x0a, // jne to ret, of any other clock
	0x48, 0x8b, 0x0d, 6, 0, 0, 0, // mov rcx, [offset]
	0x48, 0x01, 0x0e, // add [rsi], rcx
	0xc3,       // ret
	0x90, 0x90, // offset is aligned, so that it changes at once
	0, 0, 0, 0, 0, 0, 0, 0,
}

// OpenWallClock takes the clock of a process, which is stopped for a moment. Its error
// is an ErrNotHere where no clock can be set.
func OpenWallClock(pid int) (*WallClock, error) {
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("%w: the clock of a process can be set on amd64 alone", ErrNotHere)
	}
	from, to, err := mapped(pid, "[vdso]")
	if err != nil {
		return nil, err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: change a child: %w", ErrNotHere, err)
	}
	c := &WallClock{mem: mem}
	if err := c.install(pid, from, to); err != nil {
		return nil, errors.Join(err, mem.Close())
	}
	return c, nil
}

func (c *WallClock) install(pid int, from, to int64) error {
	image := make([]byte, to-from)
	if _, err := c.mem.ReadAt(image, from); err != nil {
		return fmt.Errorf("read the clock of process %d: %w", pid, err)
	}
	at, err := clockFunction(image)
	if err != nil {
		return err
	}
	at += from
	c.offset = at + int64(len(addOffset)) - 8
	if err := stopOutside(pid, from, to); err != nil {
		return err
	}
	_, err = c.mem.WriteAt(addOffset, at)
	if goOn := syscall.Kill(pid, syscall.SIGCONT); goOn != nil {
		return fmt.Errorf("let process %d go on: %w", pid, goOn)
	}
	if err != nil {
		return fmt.Errorf("%w: change a child: %w", ErrNotHere, err)
	}
	return nil
}

// Set makes the clock differ from the machine's by so many whole seconds.
func (c *WallClock) Set(offset time.Duration) error {
	seconds := binary.LittleEndian.AppendUint64(nil, uint64(offset/time.Second))
	if _, err := c.mem.WriteAt(seconds, c.offset); err != nil {
		return fmt.Errorf("set the clock of a process: %w", err)
	}
	return nil
}

// Close leaves the clock as it was set.
func (c *WallClock) Close() error { return c.mem.Close() }

// mapped finds a mapping of a process.
func mapped(pid int, name string) (from, to int64, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(strings.TrimSpace(line), name) {
			_, err := fmt.Sscanf(line, "%x-%x", &from, &to)
			return from, to, err
		}
	}
	return 0, 0, fmt.Errorf("%w: process %d has no %s", ErrNotHere, pid, name)
}

// clockFunction finds where in the image the clock is read.
func clockFunction(image []byte) (int64, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, fmt.Errorf("read what the kernel maps for the clock: %w", err)
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, fmt.Errorf("read what the kernel maps for the clock: %w", err)
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" && s.Size >= uint64(len(addOffset)) {
			return int64(s.Value), nil
		}
	}
	return 0, fmt.Errorf("%w: this kernel maps no clock_gettime into its processes, or a very short one", ErrNotHere)
}

// stopOutside stops a process at a moment when none of its threads is in a range.
func stopOutside(pid int, from, to int64) error {
	for range 1000 {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return fmt.Errorf("stop process %d: %w", pid, err)
		}
		out, err := outside(pid, from, to)
		if out {
			return nil
		}
		if err := errors.Join(err, syscall.Kill(pid, syscall.SIGCONT)); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("process %d never stops outside of its clock", pid)
}

// outside says whether every thread stands, and none in the range.
func outside(pid int, from, to int64) (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil || len(threads) == 0 {
		return false, fmt.Errorf("list the threads of process %d: none, %w", pid, errors.Join(err, os.ErrNotExist))
	}
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if os.IsPermission(err) {
			return false, fmt.Errorf("%w: see where a child stands: %w", ErrNotHere, err)
		}
		fields := strings.Fields(string(text))
		if err != nil || len(fields) < 2 { // it ended, or runs still
			return false, nil
		}
		pc, err := strconv.ParseUint(strings.TrimPrefix(fields[len(fields)-1], "0x"), 16, 64)
		if err != nil || pc >= uint64(from) && pc < uint64(to) {
			return false, nil
		}
	}
	return true, nil
}
