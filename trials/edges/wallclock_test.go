package edges

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sonde/internal/notrun"
)

// wallClock is the wall clock of one process, which a test may set without touching
// that of the machine. A Go program reads the clock by a function that the kernel maps
// into it; in this process alone it is replaced by one that adds an offset.
type wallClock struct {
	t      *testing.T
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

func newWallClock(t *testing.T, pid int) *wallClock {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		notrun.Mark(t, "the clock of a process can be set on amd64 alone")
	}
	from, to, err := mapped(pid, "[vdso]")
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		notrun.Mark(t, fmt.Sprintf("this machine does not let a process change its child: %v", err))
	}
	t.Cleanup(func() { mem.Close() })
	image := make([]byte, to-from)
	if _, err := mem.ReadAt(image, from); err != nil {
		t.Fatal(err)
	}
	at := from + clockFunction(t, image)
	c := &wallClock{t: t, mem: mem, offset: at + int64(len(addOffset)) - 8}
	stopOutside(t, pid, from, to)
	_, err = mem.WriteAt(addOffset, at)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		notrun.Mark(t, fmt.Sprintf("this machine does not let a process change its child: %v", err))
	}
	return c
}

// set makes the clock differ from the machine's by so much.
func (c *wallClock) set(offset time.Duration) {
	c.t.Helper()
	seconds := binary.LittleEndian.AppendUint64(nil, uint64(offset/time.Second))
	if _, err := c.mem.WriteAt(seconds, c.offset); err != nil {
		c.t.Fatal(err)
	}
}

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
	return 0, 0, fmt.Errorf("process %d has no %s", pid, name)
}

// clockFunction finds where in the image the clock is read.
func clockFunction(t *testing.T, image []byte) int64 {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" && s.Size >= uint64(len(addOffset)) {
			return int64(s.Value)
		}
	}
	notrun.Mark(t, "this kernel maps no clock_gettime into its processes, or a very short one")
	return 0
}

// stopOutside stops a process at a moment when none of its threads is in a range.
func stopOutside(t *testing.T, pid int, from, to int64) {
	t.Helper()
	for range 1000 {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		if outside(t, pid, from, to) {
			return
		}
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("process %d never stops outside of its clock", pid)
}

// outside says whether every thread stands, and none in the range.
func outside(t *testing.T, pid int, from, to int64) bool {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("list the threads of process %d: %v", pid, err)
	}
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if os.IsPermission(err) {
			notrun.Mark(t, fmt.Sprintf("this machine does not say where a child stands: %v", err))
		}
		fields := strings.Fields(string(text))
		if err != nil || len(fields) < 2 { // it ended, or runs still
			return false
		}
		pc, err := strconv.ParseUint(strings.TrimPrefix(fields[len(fields)-1], "0x"), 16, 64)
		if err != nil || pc >= uint64(from) && pc < uint64(to) {
			return false
		}
	}
	return true
}
