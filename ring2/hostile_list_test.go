package ring2

import (
	"bytes"
	"log/slog"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// warnings keeps the lines of a log that ask for attention.
type warnings struct {
	mu    sync.Mutex
	lines []string
}

func (w *warnings) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, string(bytes.TrimSpace(p)))
	return len(p), nil
}

func (w *warnings) all() []string { w.mu.Lock(); defer w.mu.Unlock(); return slices.Clone(w.lines) }

// refused is a handshake of a fake engine that must not become a session.
func refused(tamper func(*testing.T, *fakeEngine) []int) func(*testing.T, *Listener, *fakeEngine) {
	return func(t *testing.T, l *Listener, e *fakeEngine) {
		e.hello(t, tamper(t, e)...)
		for e.answer(t) != "gone" {
			continue
		}
		noSession(t, l)
	}
}

// floods sends without end what must not become a session.
func floods(messages func(t *testing.T, e *fakeEngine) [][]byte) func(*testing.T, *Listener, *fakeEngine) {
	return func(t *testing.T, l *Listener, e *fakeEngine) {
		flood(t, e, 1<<30, messages(t, e)...)
		noSession(t, l)
	}
}

// corrupts attaches a sound ring, does something to it, and reads to its quarantine.
func corrupts(harm func(*testing.T, *fakeEngine)) func(*testing.T, *Listener, *fakeEngine) {
	return func(t *testing.T, l *Listener, e *fakeEngine) {
		s := e.attach(t, l)
		harm(t, e)
		if _, err := readToEnd(t, s); s.Quarantined() == nil {
			t.Errorf("the ring is not in quarantine: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// lies forges a record.
func lies(change func(*abiDesc)) func(*testing.T, *Listener, *fakeEngine) {
	return corrupts(func(t *testing.T, e *fakeEngine) { e.forge(t, AppendModel(nil, peerModel), change) })
}

// hostilePeers are those that every agent must outlive. each says how many lines
// one of them may cost: a ring that is put into quarantine costs its own.
var hostilePeers = map[string]struct {
	attack func(*testing.T, *Listener, *fakeEngine)
	each   int
}{
	"wrong magic":        {attack: refused(configWord(abiConfigMagicOff, 4, 0x32474e53, false))},
	"an unsealed memfd":  {attack: refused(otherData(hostileData, 0))},
	"a shrunk memfd":     {attack: refused(otherData(hostileData/2, bothSeals))},
	"a memfd of nothing": {attack: refused(otherCtl(0, bothSeals))},
	"thousands of fds":   {attack: thousandsOfDescriptors},
	"bytes that say naught": {attack: floods(func(*testing.T, *fakeEngine) [][]byte {
		return [][]byte{bytes.Repeat([]byte{0xff}, abiMessageMaxBytes)}
	})},
	"an endless hello": {attack: floods(func(t *testing.T, e *fakeEngine) [][]byte {
		e.hello(t)
		return [][]byte{helloMessage(strings.Repeat("x", 64))}
	})},
	"an endless snapshot": {attack: floods(func(t *testing.T, e *fakeEngine) [][]byte {
		e.hello(t)
		e.welcomed(t)
		return [][]byte{snapshotItemOf(t, MaxControlBytes)}
	})},
	"a position past the end": {lies(func(d *abiDesc) { d.DataPos, d.DataLen = hostileData-64, 65 }), 1},
	"a position near 2^64":    {lies(func(d *abiDesc) { d.DataPos = math.MaxUint64 - 63 }), 1},
	"a sequence that jumps":   {lies(func(d *abiDesc) { d.Seq += 1 << 40 }), 1},
	"a commit word of 2^60": {corrupts(func(t *testing.T, e *fakeEngine) {
		seq := e.control(t, KindModel, AppendModel(nil, peerModel))
		atomic.StoreUint64(&e.core.desc(seq).Commit, 1<<60)
	}), 1},
	"a start at the end of 2^64": {attack: wrapped},
	"a scribbled release word":   {attack: scribbles},
}

// thousandsOfDescriptors sends 253 at a time, the most that the kernel takes.
func thousandsOfDescriptors(t *testing.T, l *Listener, e *fakeEngine) {
	const atOnce, times = 253, 8
	fds := slices.Repeat([]int{e.memory.wk}, atOnce)
	for range times {
		if err := sendMessage(e.conn, helloMessage("fake"), fds...); err != nil {
			break // The agent has hung up.
		}
	}
	for e.answer(t) != "gone" {
		continue
	}
	noSession(t, l)
}

// wrapped is a ring whose numbers are about to wrap around: that is sound, and a
// record that follows is read.
func wrapped(t *testing.T, l *Listener, e *fakeEngine) {
	const start = math.MaxUint64
	c, err := parseConfig(e.memory.ctl, hostileData)
	if err != nil {
		t.Fatal(err)
	}
	e.core = newWriterCore(e.core.ring, c, monotonicNS, start, 0)
	s := e.attach(t, l)
	for range 3 {
		e.control(t, KindModel, AppendModel(nil, peerModel))
	}
	var got []Record
	for len(got) < 3 {
		if got, err = s.Next(patience(t), got); err != nil {
			t.Fatal(err)
		}
	}
	if got[0].Seq != start || got[2].Seq != 1 {
		t.Errorf("records %d to %d, want %d to 1", got[0].Seq, got[2].Seq, uint64(start))
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// scribbles writes anything where only the agent may write: the agent goes by what
// it knows.
func scribbles(t *testing.T, l *Listener, e *fakeEngine) {
	s := e.attach(t, l)
	for i := range uint64(3 * hostileDescs) {
		seq := e.control(t, KindModel, AppendModel(nil, peerModel))
		atomic.StoreUint64(&e.core.consumer.ReleaseSeq, math.MaxUint64-i*i)
		got, err := s.Next(patience(t), nil)
		if err != nil || len(got) != 1 || got[0].Seq != seq {
			t.Fatalf("record %d: read %+v, %v", seq, got, err)
		}
		s.Release(seq + 1)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// One engine works while a hostile peer dials again and again: it must notice
// nothing, nothing may pile up, and the log must stay readable.
func TestOthersGoOnBesideAHostilePeerAndItCostsOneLogLine(t *testing.T) {
	for name, peer := range hostilePeers {
		t.Run(name, func(t *testing.T) {
			var log warnings
			l, err := Listen(filepath.Join(t.TempDir(), "s"), ListenerOptions{
				Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			good := newFakeEngine(t, l.path)
			session := good.attach(t, l)
			const times = 20
			began, before := time.Now(), heapBytes()
			for range times {
				e := newFakeEngine(t, l.path)
				peer.attack(t, l, e)
				_ = e.conn.Close()
				good.core.release = good.core.claim
				good.control(t, KindModel, AppendModel(nil, peerModel))
				if got, err := session.Next(patience(t), nil); err != nil || len(got) != 1 {
					t.Fatalf("the other rank suffers: %d records, %v", len(got), err)
				}
				session.Release(session.ReleaseSeq() + 1)
			}
			if grown := int64(heapBytes()) - int64(before); grown > 4<<20 {
				t.Errorf("%d bytes more are in use after %d attacks", grown, times)
			}
			// One line at once, and one for each second that this takes here.
			most := times*peer.each + 1 + int(time.Since(began)/time.Second)
			if lines := log.all(); len(lines) > most {
				t.Errorf("%d lines in the log, want at most %d:\n%s", len(lines), most, strings.Join(lines, "\n"))
			}
		})
	}
}

// heapBytes is what is in use after a collection.
func heapBytes() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
