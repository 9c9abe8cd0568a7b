package ring2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

var silent = slog.New(slog.NewTextHandler(io.Discard, nil))

// eventually waits for a condition that other goroutines bring about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestASocketFileOfADeadAgentIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	stale, err := net.ListenUnix(socketNetwork, &net.UnixAddr{Name: path, Net: socketNetwork})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(path, ListenerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, ListenerOptions{}); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("a second agent on the same path: %v", err)
	}
	newTestWriter(t, WriterOptions{Socket: path})
	s := accept(t, l)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != socketMode {
		t.Errorf("socket has mode %v (%v)", info.Mode(), err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays after Close: %v", err)
	}
	if _, err := l.Accept(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if s.isGone() {
		t.Error("a session ended with its listener")
	}
	again, err := Listen(path, ListenerOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestPathsThatCannotBeASocketAreErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, []byte("keep me"), 0o600); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(dir, strings.Repeat("x", 110))
	for _, path := range []string{"", file, filepath.Join(dir, "no", "folder"), long} {
		if l, err := Listen(path, ListenerOptions{}); err == nil {
			t.Errorf("listens on %q", path)
			_ = l.Close()
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "keep me" {
		t.Errorf("a file that is not a socket was touched: %q, %v", b, err)
	}
}

func TestManyRanksAttachAtOnce(t *testing.T) {
	o := listen(t, ListenerOptions{})
	const ranks = 16
	for rank := range ranks {
		w := newTestWriter(t, WriterOptions{Socket: o.path, Rank: rank, RankCount: ranks})
		if err := w.OpenRequest(RequestOpen{Number: uint64(rank)}); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[uint32]bool{}
	for range ranks {
		s := accept(t, o.l)
		records, err := s.Next(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		open, err := ParseRequestOpen(records[0].Payload)
		if err != nil || uint32(open.Number) != s.Config().Rank || seen[s.Config().Rank] {
			t.Errorf("rank %d says request %d: %v", s.Config().Rank, open.Number, err)
		}
		seen[s.Config().Rank] = true
	}
}

func TestThousandsOfConnectsCostNoGoroutinesAndKeepNobodyOut(t *testing.T) {
	o := listen(t, ListenerOptions{HandshakeTimeout: time.Minute})
	before := runtime.NumGoroutine()
	peak := 0
	for n := range 3000 {
		c, err := net.DialUnix(socketNetwork, nil, &net.UnixAddr{Name: o.path, Net: socketNetwork})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		if n%100 == 0 {
			peak = max(peak, runtime.NumGoroutine())
		}
		if n == 1500 {
			newTestWriter(t, WriterOptions{Socket: o.path})
		}
	}
	accept(t, o.l)
	if peak > before+2*maxHandshakes+8 {
		t.Errorf("%d goroutines during the flood, %d before", peak, before)
	}
	eventually(t, "the oldest silent peers make room", func() bool { return o.l.Stats().Evicted >= 3000-2*maxHandshakes })
}

func TestClosingLeavesNoGoroutineAndNoDescriptor(t *testing.T) {
	dir := t.TempDir()
	cycle := func(n int) {
		path := filepath.Join(dir, "agent.sock")
		l, err := Listen(path, ListenerOptions{Logger: silent, Wait: WaitMode(n % 2)})
		if err != nil {
			t.Fatal(err)
		}
		w, err := NewWriter(WriterOptions{Socket: path, DescCount: 16, DataBytes: minDataBytes, Logger: silent,
			StateDir: filepath.Join(dir, "state")})
		if err != nil {
			t.Fatal(err)
		}
		if n%3 > 0 { // else the listener closes with the session waiting
			s := accept(t, l)
			if err := w.OpenRequest(RequestOpen{Number: 1}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Next(context.Background(), nil); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := w.Close(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("closed with unreleased records: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	cycle(1)
	goroutines, descriptors, mappings := runtime.NumGoroutine(), openDescriptors(t), ringMappings(t)
	for n := range 12 {
		cycle(n)
	}
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines })
	eventually(t, "descriptors close", func() bool { return openDescriptors(t) <= descriptors })
	eventually(t, "memory is unmapped", func() bool { return ringMappings(t) <= mappings })
}

func ringMappings(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "sonde-ring")
}

// mapping is one line of /proc/self/maps about the memory of a ring.
type mapping struct {
	inode, mode, place string
}

func mappingsOfRings(t *testing.T) []mapping {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	var out []mapping
	for line := range strings.Lines(string(b)) {
		var from, to, offset uint64
		var mode, device, inode, name string
		n, err := fmt.Sscanf(line, "%x-%x %s %x %s %s %s", &from, &to, &mode, &offset, &device, &inode, &name)
		if err == nil && n == 7 && strings.Contains(name, "sonde-ring") {
			out = append(out, mapping{inode, mode, fmt.Sprintf("%s %d+%d", name, offset, to-from)})
		}
	}
	return out
}

func TestTheReaderCannotWriteWhatIsTheEngines(t *testing.T) {
	others := map[string]bool{} // rings of earlier tests, whose sessions may still be ending
	for _, m := range mappingsOfRings(t) {
		others[m.inode] = true
	}
	o := listen(t, ListenerOptions{})
	newTestWriter(t, WriterOptions{Socket: o.path, DescCount: 16, DataBytes: minDataBytes})
	accept(t, o.l)
	// The writer maps ctl and data as a whole, for writing. The agent's writable
	// part is the consumer zone alone.
	writable := map[string]int{}
	for _, m := range mappingsOfRings(t) {
		if m.mode[1] == 'w' && !others[m.inode] {
			writable[m.place]++
		}
	}
	ctl := pageUp(ctlBytes(16))
	want := map[string]int{fmt.Sprintf("/memfd:sonde-ring-ctl 0+%d", ctl): 1,
		fmt.Sprintf("/memfd:sonde-ring-data 0+%d", minDataBytes):                 1,
		fmt.Sprintf("/memfd:sonde-ring-ctl %d+%d", abiConsumerOff, abiZoneBytes): 1}
	if fmt.Sprint(writable) != fmt.Sprint(want) {
		t.Errorf("writable are %v; want %v", writable, want)
	}
}
