package ring2

import (
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hostileDescs and hostileData are the size of a fake engine's ring.
const (
	hostileDescs = 16
	hostileData  = 1 << 16
)

// fakeEngine speaks the protocol by hand, so that it can break it anywhere.
type fakeEngine struct {
	memory *ringMemory
	core   *writerCore
	conn   *net.UnixConn
}

func silentListener(t *testing.T, o ListenerOptions) (*Listener, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	l, err := Listen(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, path
}

var nextEpoch atomic.Uint64

func newFakeEngine(t *testing.T, socket string) *fakeEngine {
	t.Helper()
	return newFakeEngineOf(t, socket, hostileDescs, hostileData)
}

func newFakeEngineOf(t *testing.T, socket string, descs, dataBytes uint64) *fakeEngine {
	t.Helper()
	m, err := newRingMemory(descs, dataBytes)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ringOn(m.ctl, m.ctl[abiConsumerOff:], m.data, descs)
	if err != nil {
		t.Fatal(err)
	}
	c := Config{ABIMajor: abiABIMajor, ABIMinor: abiABIMinor, DescCount: descs, DataBytes: dataBytes,
		Epoch: nextEpoch.Add(1), ReserveDescs: 2, ReserveBytes: 4096, RankCount: 1, EngineInstance: "fake"}
	e := &fakeEngine{memory: m, core: newWriterCore(r, c, monotonicNS, 0, 0)}
	t.Cleanup(func() {
		if e.conn != nil {
			_ = e.conn.Close()
		}
		m.close()
	})
	e.dial(t, socket)
	return e
}

func (e *fakeEngine) dial(t *testing.T, socket string) {
	t.Helper()
	conn, err := net.DialUnix(socketNetwork, nil, &net.UnixAddr{Name: socket, Net: socketNetwork})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	e.conn = conn
}

// hello sends a HELLO with other descriptors than the ring's where they are given.
func (e *fakeEngine) hello(t *testing.T, fds ...int) {
	t.Helper()
	if fds == nil {
		fds = []int{e.memory.ctlFD, e.memory.dataFD, e.memory.wk}
	}
	if err := sendMessage(e.conn, helloMessage("fake"), fds...); err != nil {
		t.Fatal(err)
	}
}

// answer is the next message from the agent: WELCOME, or the sentence of a
// REFUSE, or "gone".
func (e *fakeEngine) answer(t *testing.T) string {
	t.Helper()
	m, err := receiveMessage(e.conn, make([]byte, abiMessageMaxBytes))
	if err != nil {
		return "gone"
	}
	if m.typ == abiMessageRefuse {
		sentence, err := parseRefuse(m.body)
		if err != nil {
			t.Error(err)
		}
		return sentence
	}
	return m.name()
}

// attach does an honest handshake.
func (e *fakeEngine) attach(t *testing.T, l *Listener) *Session {
	t.Helper()
	e.hello(t)
	if got := e.answer(t); got != "WELCOME" {
		t.Fatalf("the agent answers %s", got)
	}
	if err := sendMessage(e.conn, snapshotEndMessage(snapshotEnd{releaseSeq: e.core.release})); err != nil {
		t.Fatal(err)
	}
	return acceptSession(t, l)
}

func acceptSession(t *testing.T, l *Listener) *Session {
	t.Helper()
	ctx := patience(t)
	s, err := l.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// control publishes one control record and wakes the reader.
func (e *fakeEngine) control(t *testing.T, kind Kind, payload []byte) uint64 {
	t.Helper()
	e.core.refresh()
	seq, ok := e.core.putControl(kind, 0, payload)
	if !ok {
		t.Fatal("the fake engine's ring is full")
	}
	if e.core.wake() {
		e.memory.wake()
	}
	return seq
}

// noSession fails when a session came out of an attack.
func noSession(t *testing.T, l *Listener) {
	t.Helper()
	select {
	case s := <-l.ready:
		_ = s.Close()
		t.Error("a session came out of it")
	default:
	}
}

// stillServes proves that an honest engine gets through after an attack.
func stillServes(t *testing.T, l *Listener, socket string) {
	t.Helper()
	e := newFakeEngine(t, socket)
	s := e.attach(t, l)
	e.control(t, KindModel, AppendModel(nil, peerModel))
	records, err := s.Next(patience(t), nil)
	if err != nil || len(records) != 1 || records[0].Kind != KindModel {
		t.Errorf("an honest engine gets %d records, %v", len(records), err)
	}
}

// settles waits until the number of descriptors is what it was.
func settles(t *testing.T, before int) {
	t.Helper()
	now := 0
	for range 2000 {
		if now = openDescriptors(t); now <= before {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%d descriptors are open, %d before the attack", now, before)
}

func mustOpen(t *testing.T, fd int, err error) int {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// memfd makes a memfd of a size with some seals.
func memfd(t *testing.T, size uint64, seals int) int {
	t.Helper()
	made, err := unix.MemfdCreate("hostile", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	fd := mustOpen(t, made, err)
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	return fd
}

// configWord changes a field of the config; seal makes the checksum right again.
func configWord(off, size int, v uint64, seal bool) func(*testing.T, *fakeEngine) []int {
	return func(_ *testing.T, e *fakeEngine) []int {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], v)
		copy(e.memory.ctl[off:off+size], b[:])
		if seal {
			e.core.config.CRC32C = e.core.config.checksum()
		}
		return nil
	}
}

func endlessInstance(_ *testing.T, e *fakeEngine) []int {
	for i := range e.core.config.EngineInstance {
		e.core.config.EngineInstance[i] = 'x'
	}
	e.core.config.CRC32C = e.core.config.checksum()
	return nil
}

// otherCtl, otherData and otherWake pass something else as one of the three.
func otherCtl(size uint64, seals int) func(*testing.T, *fakeEngine) []int {
	return func(t *testing.T, e *fakeEngine) []int {
		return []int{memfd(t, size, seals), e.memory.dataFD, e.memory.wk}
	}
}

func otherData(size uint64, seals int) func(*testing.T, *fakeEngine) []int {
	return func(t *testing.T, e *fakeEngine) []int {
		return []int{e.memory.ctlFD, memfd(t, size, seals), e.memory.wk}
	}
}

func otherWake(open func() (int, error)) func(*testing.T, *fakeEngine) []int {
	return func(t *testing.T, e *fakeEngine) []int {
		fd, err := open()
		return []int{e.memory.ctlFD, e.memory.dataFD, mustOpen(t, fd, err)}
	}
}

func fileAsData(t *testing.T, e *fakeEngine) []int {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return []int{e.memory.ctlFD, int(f.Fd()), e.memory.wk}
}

const bothSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// noRings are things that an engine may pass with HELLO, and what the agent says.
var noRings = map[string]struct {
	tamper func(*testing.T, *fakeEngine) []int // the descriptors, nil: the ring's
	want   string
}{
	"wrong magic":             {configWord(abiConfigMagicOff, 4, 0x32474e53, false), "magic"},
	"zero magic":              {configWord(abiConfigMagicOff, 4, 0, false), "magic"},
	"another major":           {configWord(abiConfigABIMajorOff, 2, 2, true), "ABI 2.0"},
	"a flipped byte":          {configWord(abiConfigRankOff, 1, 1, false), "checksum"},
	"too many descriptors":    {configWord(abiConfigDescCountOff, 8, 1<<20, true), "descriptors in"},
	"2^63 descriptors":        {configWord(abiConfigDescCountOff, 8, 1<<63, true), "descriptors in"},
	"15 descriptors":          {configWord(abiConfigDescCountOff, 8, 15, true), "descriptors in"},
	"no descriptors":          {configWord(abiConfigDescCountOff, 8, 0, true), "descriptors in"},
	"descriptors in zone 1":   {configWord(abiConfigDescOffOff, 8, 65536, true), "offset 65536"},
	"more data than it has":   {configWord(abiConfigDataBytesOff, 8, hostileData*2, true), "bytes of data"},
	"less data than it has":   {configWord(abiConfigDataBytesOff, 8, hostileData/2, true), "bytes of data"},
	"all of it reserve":       {configWord(abiConfigReserveDescsOff, 8, hostileDescs, true), "reserve"},
	"rank 7 of 1":             {configWord(abiConfigRankOff, 4, 7, true), "rank 7"},
	"no epoch":                {configWord(abiConfigEpochOff, 8, 0, true), "epoch 0"},
	"an instance without end": {endlessInstance, "NUL"},
	"ctl that can shrink":     {otherCtl(ctlBytes(hostileDescs), unix.F_SEAL_GROW), "sealed against"},
	"data without seals":      {otherData(hostileData, 0), "sealed against"},
	"an empty ctl":            {otherCtl(0, bothSeals), "want at least"},
	"a ctl of three zones":    {otherCtl(abiDescOff, bothSeals), "want at least"},
	"empty data":              {otherData(0, bothSeals), "want at least"},
	"data of 2^62 bytes":      {otherData(1<<62, bothSeals), "together"},
	"a file as data":          {fileAsData, "data is not a memfd"},
	"an epoll as wake": {otherWake(func() (int, error) { return unix.EpollCreate1(unix.EPOLL_CLOEXEC) }),
		"not an eventfd"},
	"a memfd as wake": {otherWake(func() (int, error) { return unix.MemfdCreate("wake", unix.MFD_CLOEXEC) }),
		"not an eventfd"},
	"pipes": {func(t *testing.T, _ *fakeEngine) []int { return pipes(t, 3) }, "not an eventfd"},
	"ctl and data swapped": {func(_ *testing.T, e *fakeEngine) []int {
		return []int{e.memory.dataFD, e.memory.ctlFD, e.memory.wk}
	}, "want at least"},
}

// Whatever an engine passes with HELLO: it is refused in a sentence, leaves
// nothing open, and others are served.
func TestMemoryThatIsNotARingIsRefused(t *testing.T) {
	for name, c := range noRings {
		t.Run(name, func(t *testing.T) {
			l, socket := silentListener(t, ListenerOptions{})
			e := newFakeEngine(t, socket)
			fds := c.tamper(t, e)
			before := openDescriptors(t)
			e.hello(t, fds...)
			if got := e.answer(t); !strings.Contains(got, c.want) {
				t.Errorf("the agent answers %q, want something with %q", got, c.want)
			}
			if got := e.answer(t); got != "gone" {
				t.Errorf("after refusing, the agent says %q", got)
			}
			settles(t, before)
			noSession(t, l)
			stillServes(t, l, socket)
		})
	}
}

func snapshotItemOf(t *testing.T, payloadBytes int) []byte {
	t.Helper()
	b, err := snapshotItemMessage(snapshotItem{kind: KindRequestOpen, payload: make([]byte, payloadBytes)})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// endOnlyInTime are attacks that only the handshake's timeout ends.
var endOnlyInTime = map[string]bool{"nothing at all": true, "only messages of later versions": true,
	"half a snapshot": true}

// handshakeAttacks misbehave between HELLO and the end of the snapshot.
var handshakeAttacks = map[string]func(t *testing.T, e *fakeEngine) (want string){
	"nothing at all": func(*testing.T, *fakeEngine) string { return "wait for HELLO" },
	"a WELCOME instead": func(t *testing.T, e *fakeEngine) string {
		flood(t, e, 1, welcomeMessage("x"))
		return "got WELCOME"
	},
	"only messages of later versions": func(t *testing.T, e *fakeEngine) string {
		flood(t, e, 1<<30, sealMessage(newMessage(999, 0)))
		return ""
	},
	"a second HELLO": func(t *testing.T, e *fakeEngine) string {
		e.hello(t)
		e.hello(t)
		e.welcomed(t)
		return "got HELLO"
	},
	"an endless snapshot of large records": func(t *testing.T, e *fakeEngine) string {
		e.hello(t)
		e.welcomed(t)
		flood(t, e, 1<<30, snapshotItemOf(t, MaxControlBytes))
		return "more than"
	},
	"an endless snapshot of empty records": func(t *testing.T, e *fakeEngine) string {
		e.hello(t)
		e.welcomed(t)
		flood(t, e, 1<<30, snapshotItemOf(t, 0))
		return "more than"
	},
	"a snapshot that counts wrong": func(t *testing.T, e *fakeEngine) string {
		e.hello(t)
		e.welcomed(t)
		flood(t, e, 1, snapshotItemOf(t, 3), snapshotEndMessage(snapshotEnd{count: 1 << 31}))
		return "its end says"
	},
	"a start far ahead of the claim": func(t *testing.T, e *fakeEngine) string {
		e.hello(t)
		e.welcomed(t)
		flood(t, e, 1, snapshotEndMessage(snapshotEnd{releaseSeq: 1 << 40}))
		return "starts at record"
	},
	"half a snapshot": func(t *testing.T, e *fakeEngine) string {
		e.hello(t)
		e.welcomed(t)
		flood(t, e, 1, snapshotItemOf(t, 3))
		return "receive snapshot"
	},
}

func TestAHandshakeThatGoesWrongEnds(t *testing.T) {
	for name, attack := range handshakeAttacks {
		t.Run(name, func(t *testing.T) {
			timeout := 20 * time.Second
			if endOnlyInTime[name] {
				timeout = 300 * time.Millisecond
			}
			l, socket := silentListener(t, ListenerOptions{HandshakeTimeout: timeout})
			e := newFakeEngine(t, socket)
			before := openDescriptors(t)
			want := attack(t, e)
			if got := e.answer(t); want != "" && !strings.Contains(got, want) {
				t.Errorf("the agent answers %q, want something with %q", got, want)
			}
			settles(t, before)
			noSession(t, l)
			stillServes(t, l, socket)
		})
	}
}

func (e *fakeEngine) welcomed(t *testing.T) {
	t.Helper()
	if got := e.answer(t); got != "WELCOME" {
		t.Fatalf("the agent answers %s", got)
	}
}

// flood sends messages, at most so often, until the agent hangs up.
func flood(t *testing.T, e *fakeEngine, times int, messages ...[]byte) {
	t.Helper()
	for range times {
		for _, b := range messages {
			if err := sendMessage(e.conn, b); err != nil {
				return
			}
		}
	}
}

// Many peers that say nothing must not keep an engine out.
func TestAFloodOfSilentPeersKeepsNobodyOut(t *testing.T) {
	l, socket := silentListener(t, ListenerOptions{HandshakeTimeout: time.Hour})
	for range 3 * maxHandshakes {
		c, err := net.DialUnix(socketNetwork, nil, &net.UnixAddr{Name: socket, Net: socketNetwork})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	stillServes(t, l, socket)
	if l.Stats().Evicted == 0 {
		t.Error("no silent peer made room")
	}
}

// Two connections for one ring would both release.
func TestARingIsReadOnlyOnce(t *testing.T) {
	l, socket := silentListener(t, ListenerOptions{})
	e := newFakeEngine(t, socket)
	s := e.attach(t, l)
	first := e.conn
	e.dial(t, socket)
	e.hello(t)
	if got := e.answer(t); !strings.Contains(got, "attached already") {
		t.Errorf("the agent answers %q", got)
	}
	e.conn = first
	e.control(t, KindModel, AppendModel(nil, peerModel))
	if _, err := s.Next(patience(t), nil); err != nil {
		t.Error(err)
	}
}

// One engine that attaches rings without end must not use up the agent.
func TestRingsBeyondTheirBoundAreRefused(t *testing.T) {
	l, socket := silentListener(t, ListenerOptions{})
	for epoch := range uint64(maxAttached) {
		if err := l.reserve(1<<63 + epoch); err != nil {
			t.Fatal(err)
		}
	}
	e := newFakeEngine(t, socket)
	e.hello(t)
	if got := e.answer(t); !strings.Contains(got, "attached already") {
		t.Errorf("the agent answers %q", got)
	}
	noSession(t, l)
	l.release(1 << 63)
	stillServes(t, l, socket)
}
