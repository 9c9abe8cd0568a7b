package ring2

import (
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketPair connects two ends as Listener and Writer do.
func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: socketNetwork}
	l, err := net.ListenUnix(socketNetwork, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if a, err = net.DialUnix(socketNetwork, nil, addr); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, c := range []*net.UnixConn{a, b} {
		t.Cleanup(func() { _ = c.Close() })
		if err := c.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	return a, b
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// pipes gives n descriptors that nobody else uses.
func pipes(t *testing.T, n int) []int {
	t.Helper()
	var out []int
	for len(out) < n {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		out = append(out, p[0], p[1])
	}
	t.Cleanup(func() {
		for _, fd := range out {
			_ = unix.Close(fd)
		}
	})
	return out[:n]
}

var sampleAbort = Abort{ID: 7, Epoch: 0x1122334455667788, Number: 9, Sample: 2, EngineID: "cmpl-1", Position: 41,
	ExpiresWallNS: 1_700_000_000_000_000_000}

// A stranger's peer must be able to rely on these bytes: they stand in ABI.md.
func TestSocketMessagesHaveTheirPublishedBytes(t *testing.T) {
	item, err := snapshotItemMessage(snapshotItem{seq: 3, kind: KindRequestOpen, payload: []byte{0xaa, 0xbb}})
	if err != nil {
		t.Fatal(err)
	}
	const head = "52324753" + "0100" + "0000"
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"HELLO":         {helloMessage("c 1"), head + "0100" + "0300" + "05000000" + "0300" + "632031"},
		"WELCOME":       {welcomeMessage("ag"), head + "0200" + "0000" + "04000000" + "0200" + "6167"},
		"REFUSE":        {refuseMessage("no"), head + "0300" + "0000" + "04000000" + "0200" + "6e6f"},
		"SNAPSHOT_ITEM": {item, head + "0400" + "0000" + "12000000" + "0300000000000000" + "0300" + "000000000000" + "aabb"},
		"SNAPSHOT_END": {snapshotEndMessage(snapshotEnd{releaseSeq: 5, count: 1}),
			head + "0500" + "0000" + "10000000" + "0500000000000000" + "01000000" + "00000000"},
		"ABORT": {abortMessage(sampleAbort), head + "0600" + "0000" + "30000000" + "0700000000000000" + "8877665544332211" +
			"0900000000000000" + "00002a36fe9c9717" + "02000000" + "29000000" + "0600" + "636d706c2d31"},
		"ABORT_ACK": {abortAckMessage(abortAck{id: 7, outcome: AbortStopped, finalLength: 42}),
			head + "0700" + "0000" + "10000000" + "0700000000000000" + "2a000000" + "01" + "000000"},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s is\n%s, want\n%s", name, got, c.want)
		}
	}
}

func TestSocketMessagesSurviveTheSocketWithTheirDescriptors(t *testing.T) {
	engine, agent := socketPair(t)
	before := openDescriptors(t)
	fds := pipes(t, 3)
	if err := sendMessage(engine, helloMessage("go"), fds...); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, abiMessageMaxBytes)
	m, err := receiveMessage(agent, buf)
	if err != nil || m.typ != abiMessageHello || len(m.fds) != helloDescriptors {
		t.Fatalf("received %+v, %v", m, err)
	}
	if library, err := parseHello(m.body); err != nil || library != "go" {
		t.Fatalf("HELLO says %q, %v", library, err)
	}
	for i, fd := range m.fds {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d would leak into a child: flags %#x, %v", i, flags, err)
		}
	}
	m.closeFDs()
	if err := sendMessage(agent, abortMessage(sampleAbort)); err != nil {
		t.Fatal(err)
	}
	if m, err = receiveMessage(engine, buf); err != nil {
		t.Fatal(err)
	}
	if got, err := parseAbort(m.body); err != nil || !reflect.DeepEqual(got, sampleAbort) {
		t.Fatalf("ABORT says %+v, %v", got, err)
	}
	item := snapshotItem{seq: 1 << 40, kind: KindLayout, payload: make([]byte, MaxControlBytes)}
	b, err := snapshotItemMessage(item)
	if err != nil {
		t.Fatal(err)
	}
	if err := sendMessage(engine, b); err != nil {
		t.Fatal(err)
	}
	if m, err = receiveMessage(agent, buf); err != nil {
		t.Fatal(err)
	}
	if got, err := parseSnapshotItem(m.body); err != nil || !reflect.DeepEqual(got, item) {
		t.Fatalf("SNAPSHOT_ITEM of seq %d with %d bytes, %v", got.seq, len(got.payload), err)
	}
	_ = engine.Close()
	if _, err = receiveMessage(agent, buf); !errors.Is(err, io.EOF) {
		t.Fatalf("a dead peer reads as %v, want EOF", err)
	}
	if after := openDescriptors(t); after > before+4 {
		t.Fatalf("%d descriptors are open, %d before", after, before)
	}
}

// Whatever a peer sends, nothing of it may stay open with us.
func TestUnwantedDescriptorsAreClosed(t *testing.T) {
	truncated := helloMessage("x")[:12]
	wrongCount := helloMessage("x")
	wrongCount[abiMessageFdsOff] = 2
	for name, c := range map[string]struct {
		bytes []byte
		fds   int
		want  string
	}{
		"a WELCOME with one":        {welcomeMessage("a"), 1, "1 descriptors came"},
		"a HELLO with none":         {helloMessage("a"), 0, "0 descriptors came"},
		"a HELLO with two":          {helloMessage("a"), 2, "2 descriptors came"},
		"a HELLO with four":         {helloMessage("a"), 4, "4 descriptors came"},
		"a HELLO with five":         {helloMessage("a"), 5, "too many descriptors"},
		"a HELLO with 253":          {helloMessage("a"), 253, "too many descriptors"},
		"a HELLO that announces 2":  {wrongCount, 3, "the header says 2"},
		"half a header":             {truncated, 3, "parse message header"},
		"no Ring² message":          {[]byte("GET / HTTP/1.1\r\n\r\n"), 3, "does not speak"},
		"a message beyond the most": {make([]byte, abiMessageMaxBytes+1), 3, "more than"},
		"a wrong length":            {append(helloMessage("a"), 0), 3, "the header says"},
	} {
		t.Run(name, func(t *testing.T) {
			engine, agent := socketPair(t)
			if err := engine.SetWriteBuffer(2 * abiMessageMaxBytes); err != nil {
				t.Fatal(err)
			}
			fds := pipes(t, c.fds)
			before := openDescriptors(t)
			if err := sendMessage(engine, c.bytes, fds...); err != nil {
				t.Fatal(err)
			}
			m, err := receiveMessage(agent, make([]byte, abiMessageMaxBytes))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("received %+v with error %v; want one that says %q", m, err, c.want)
			}
			if after := openDescriptors(t); after != before || len(m.fds) > 0 {
				t.Errorf("%d descriptors are open, %d before the message", after, before)
			}
		})
	}
}

func TestAnotherVersionGetsASentence(t *testing.T) {
	other := helloMessage("x")
	other[abiMessageABIMajorOff] = abiABIMajor + 1
	if _, err := parseMessage(other, helloDescriptors); !errors.Is(err, ErrVersion) {
		t.Errorf("a HELLO of another major version gives %v, want ErrVersion", err)
	}
	refuse := refuseMessage("too old")
	refuse[abiMessageABIMajorOff] = abiABIMajor + 1
	m, err := parseMessage(refuse, 0)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := parseRefuse(m.body); err != nil || s != "too old" {
		t.Errorf("a REFUSE of another major version says %q, %v", s, err)
	}
	minor := helloMessage("x")
	minor[abiMessageABIMinorOff] = abiABIMinor + 1
	if _, err := parseMessage(minor, helloDescriptors); err != nil {
		t.Errorf("a HELLO of a later minor version gives %v", err)
	}
}

func TestMessagesOfALaterMinorVersionAreSkipped(t *testing.T) {
	engine, agent := socketPair(t)
	for _, b := range [][]byte{sealMessage(newMessage(99, 0)), welcomeMessage("a")} {
		if err := sendMessage(engine, b); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := receiveMessage(agent, make([]byte, abiMessageMaxBytes)); err != nil || m.typ != abiMessageWelcome {
		t.Fatalf("received %+v, %v; want the WELCOME after the unknown message", m, err)
	}
}

func TestHostileBodiesAreErrors(t *testing.T) {
	long := order.AppendUint16(nil, 0xffff)
	for name, parse := range map[string]func() error{
		"a text that is longer than its message": func() error { _, err := parseHello([]byte{5, 0, 'a'}); return err },
		"a text above the bound": func() error {
			_, err := parseRefuse(append(long, make([]byte, 0xffff)...))
			return err
		},
		"bytes behind the end": func() error { _, err := parseWelcome([]byte{0, 0, 1}); return err },
		"a CAPTURE in a snapshot": func() error {
			_, err := parseSnapshotItem([]byte{0, 0, 0, 0, 0, 0, 0, 0, byte(KindCapture), 0, 0, 0, 0, 0, 0, 0})
			return err
		},
		"a snapshot item above the bound": func() error {
			_, err := parseSnapshotItem(append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0},
				make([]byte, MaxControlBytes+1)...))
			return err
		},
		"reserved bytes that are set": func() error { _, err := parseSnapshotEnd(append(make([]byte, 15), 1)); return err },
		"an outcome that no version has": func() error {
			_, err := parseAbortAck(append(make([]byte, 12), 3, 0, 0, 0))
			return err
		},
		"an empty body": func() error { _, err := parseAbort(nil); return err },
	} {
		if err := parse(); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
