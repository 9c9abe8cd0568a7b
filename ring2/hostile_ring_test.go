package ring2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// forge publishes a control record whose descriptor was changed before it was
// sealed.
func (e *fakeEngine) forge(t *testing.T, payload []byte, change func(*abiDesc)) {
	t.Helper()
	at := cursor{e.core.claim, e.core.head}
	pos, why := e.core.place(at, uint64(len(payload)), true)
	if why != ReasonNone {
		t.Fatal(why)
	}
	seq, d := e.core.takeControl(&at, pos, KindModel, 0, payload)
	e.core.advance(at)
	d.Flags = FlagPayloadCRC
	change(d)
	d.CRC32C = d.checksum()
	atomic.StoreUint64(&d.Commit, seq+1)
	if e.core.wake() {
		e.memory.wake()
	}
}

// readToEnd reads until an error.
func readToEnd(t *testing.T, s *Session) ([]Record, error) {
	t.Helper()
	ctx := patience(t)
	var out []Record
	for {
		var err error
		if out, err = s.Next(ctx, out); err != nil {
			return out, err
		}
	}
}

// A descriptor with good checksums and bad contents stops its own ring, for good,
// and nobody else's.
func TestADescriptorThatLiesQuarantinesItsRing(t *testing.T) {
	model := AppendModel(nil, peerModel)
	for name, c := range map[string]struct {
		change func(*abiDesc)
		want   string
	}{
		"position past the end":        {func(d *abiDesc) { d.DataPos = hostileData - 64; d.DataLen = 65 }, "cross the end"},
		"position far past the end":    {func(d *abiDesc) { d.DataPos += hostileData * 3 }, "overlap"},
		"length of 4 GiB":              {func(d *abiDesc) { d.DataLen = math.MaxUint32 }, "bytes"},
		"position that is not aligned": {func(d *abiDesc) { d.DataPos++ }, "cross the end"},
		"position that went back":      {func(d *abiDesc) { d.DataPos -= 64 }, "lies before"},
		"position near 2^64":           {func(d *abiDesc) { d.DataPos = math.MaxUint64 - 63 }, "lies before"},
		"sequence that jumped":         {func(d *abiDesc) { d.Seq++ }, "says record 2"},
		"sequence of the lap before":   {func(d *abiDesc) { d.Seq -= hostileDescs }, "says record"},
		"no payload checksum":          {func(d *abiDesc) { d.Flags = 0 }, "without a payload checksum"},
		"wrong payload checksum":       {func(d *abiDesc) { d.PayloadCRC32C ^= 1 }, "payload has checksum"},
		"payload of other bytes":       {func(d *abiDesc) { d.DataLen-- }, "payload has checksum"},
	} {
		t.Run(name, func(t *testing.T) {
			dumps := t.TempDir()
			l, socket := silentListener(t, ListenerOptions{QuarantineDir: dumps})
			good := newFakeEngine(t, socket)
			goodSession := good.attach(t, l)
			e := newFakeEngine(t, socket)
			s := e.attach(t, l)
			e.control(t, KindModel, model)
			e.forge(t, model, c.change)
			e.control(t, KindModel, model)
			records, err := readToEnd(t, s)
			if len(records) != 1 || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("read %d records, then %v; want 1 and something with %q", len(records), err, c.want)
			}
			if again, second := s.Next(patience(t), nil); len(again) > 0 || !errors.Is(second, err) ||
				!errors.Is(s.Quarantined(), err) {
				t.Errorf("the quarantine does not last: %v, %v", second, s.Quarantined())
			}
			if files, err := os.ReadDir(dumps); err != nil || len(files) != 1 {
				t.Errorf("%d dumps, %v", len(files), err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			_ = e.conn.Close()
			e.dial(t, socket)
			e.hello(t)
			if got := e.answer(t); !strings.Contains(got, "quarantine") {
				t.Errorf("the corrupt ring attaches again: %q", got)
			}
			good.control(t, KindModel, model)
			if got, err := goodSession.Next(patience(t), nil); err != nil || len(got) != 1 {
				t.Errorf("another ring suffers: %d records, %v", len(got), err)
			}
		})
	}
}

// A control record larger than any writer makes would cost a checksum of
// gigabytes under the session's lock.
func TestAControlRecordBeyondItsBoundIsCorrupt(t *testing.T) {
	l, socket := silentListener(t, ListenerOptions{})
	e := newFakeEngineOf(t, socket, hostileDescs, 1<<21)
	s := e.attach(t, l)
	e.forge(t, make([]byte, maxControlRecord), func(d *abiDesc) { d.Kind = uint16(KindStep) })
	if got, err := s.Next(patience(t), nil); err != nil || len(got) != 1 {
		t.Fatalf("a record at the bound gives %d records, %v", len(got), err)
	}
	e.forge(t, make([]byte, maxControlRecord+1), func(d *abiDesc) { d.Kind = uint16(KindStep) })
	if _, err := s.Next(patience(t), nil); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a record above the bound gives %v", err)
	}
}

// What a later minor version adds must not stop this one.
func TestUnknownKindsFlagsAndFeaturesAreNotCorrupt(t *testing.T) {
	l, socket := silentListener(t, ListenerOptions{})
	e := newFakeEngine(t, socket)
	e.core.config.ABIMinor, e.core.config.Features = 9, 1<<40
	e.core.config.CRC32C = e.core.config.checksum()
	s := e.attach(t, l)
	e.forge(t, []byte("new"), func(d *abiDesc) { d.Kind, d.Flags, d.Reserved[7] = 77, 2|1<<9, 1 })
	e.control(t, KindModel, AppendModel(nil, peerModel))
	var got []Record
	for len(got) < 2 {
		var err error
		if got, err = s.Next(patience(t), got); err != nil {
			t.Fatal(err)
		}
	}
	if got[0].Kind != 77 || got[1].Kind != KindModel || s.Config().ABIMinor != 9 {
		t.Errorf("records are %s and %s", got[0].Kind, got[1].Kind)
	}
}

// The engine may write all of its memory at any time. What the agent checked
// once, it never looks at again.
func TestSharedWordsThatChangeAfterTheCheckAreIgnored(t *testing.T) {
	l, socket := silentListener(t, ListenerOptions{})
	e := newFakeEngine(t, socket)
	s := e.attach(t, l)
	before := s.Config()
	e.core.config.DescCount, e.core.config.DataBytes, e.core.config.Epoch = 1<<40, 1<<50, 1
	atomic.StoreUint32(&e.core.config.Magic, 0)
	for i := range uint64(3 * hostileDescs) {
		e.control(t, KindModel, AppendModel(nil, peerModel))
		records, err := s.Next(patience(t), nil)
		if err != nil || len(records) != 1 || records[0].Seq != i {
			t.Fatalf("read %d records, %v", len(records), err)
		}
		s.Release(i + 1)
		if got := atomic.LoadUint64(&e.core.consumer.ReleaseSeq); got != i+1 {
			t.Fatalf("the release word is %d, want %d", got, i+1)
		}
		e.core.refresh()
		// Scribbled over, the word moves nobody: the reader has its own.
		atomic.StoreUint64(&e.core.consumer.ReleaseSeq, i*0x9e3779b97f4a7c15)
		atomic.StoreUint32(&e.core.consumer.NeedWakeup, uint32(i))
		if s.ReleaseSeq() != i+1 {
			t.Fatalf("the session released %d, want %d", s.ReleaseSeq(), i+1)
		}
		atomic.StoreUint64(&e.core.consumer.ReleaseSeq, i+1)
	}
	if s.Config() != before {
		t.Error("the config changed under the session")
	}
}

// A dead engine's claim word may hold anything.
func TestAClaimOfADeadEngineThatLiesEndsTheRing(t *testing.T) {
	for _, claim := range []uint64{0, 1, 3, hostileDescs, hostileDescs + 1, 1 << 40, 1 << 63, math.MaxUint64} {
		t.Run(fmt.Sprint(claim), func(t *testing.T) {
			l, socket := silentListener(t, ListenerOptions{})
			e := newFakeEngine(t, socket)
			s := e.attach(t, l)
			e.control(t, KindModel, AppendModel(nil, peerModel))
			atomic.StoreUint64(&e.core.producer.ClaimSeq, claim)
			_ = e.conn.Close()
			records, err := readToEnd(t, s)
			if len(records) != 1 || !errors.Is(err, io.EOF) || len(s.Lost()) > hostileDescs {
				t.Errorf("read %d records, %v, %d lost", len(records), err, len(s.Lost()))
			}
		})
	}
}

// The descriptor is copied once: what is checked is what is used, also while the
// engine rewrites it. Each of two versions is valid; a mix never shows.
func TestADescriptorRewrittenWhileReadNeverShowsAMix(t *testing.T) {
	m, err := newRingMemory(hostileDescs, hostileData)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	r, err := ringOn(m.ctl, m.ctl[abiConsumerOff:], m.data, hostileDescs)
	if err != nil {
		t.Fatal(err)
	}
	var versions [2]abiDesc
	for i := range versions {
		v := &versions[i]
		*v = abiDesc{Commit: 1, DataPos: uint64(i) * 4096, DataLen: uint32(100 * (i + 1)), Kind: uint16(KindCapture),
			Step: uint64(i), Layout: uint32(i), Rows: uint32(i)}
		v.CRC32C = v.checksum()
	}
	shared := bytesOf(r.desc(0))
	copy(shared, bytesOf(&versions[0]))
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				copy(shared[8:], bytesOf(&versions[i%2])[8:])
			}
		}
	}()
	read, corrupt := 0, 0
	for range 50_000 {
		var rec Record
		ok, err := newReaderCore(r, 0).poll(&rec)
		if err != nil {
			corrupt++
			continue
		}
		if !ok {
			t.Error("a committed record is not there")
			break
		}
		read++
		if v := versions[rec.Step%2]; rec.Layout != v.Layout || rec.Rows != v.Rows || len(rec.Payload) != int(v.DataLen) {
			t.Errorf("a mix shows: %+v", rec)
			break
		}
	}
	close(stop)
	<-done
	t.Logf("read %d times, corrupt %d times", read, corrupt)
}

// Payloads change while they are parsed: nothing leaves its bounds. The memory is
// a mapping, where the race detector does not see what is on purpose.
func TestPayloadsRewrittenWhileParsedDoNoHarm(t *testing.T) {
	m, err := newRingMemory(hostileDescs, hostileData)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	var capture vectorCapture
	payloads := map[Kind][]byte{}
	for i, v := range loadVectors(t) {
		b := v.bytes(t)
		at := m.data[4096*i : 4096*i+len(b)]
		copy(at, b)
		payloads[v.Code] = at
	}
	if l, err := ParseLayout(payloads[KindLayout]); err == nil {
		capture.Layout = l
	}
	if s, err := ParseStep(payloads[KindStep]); err == nil {
		capture.Step = s
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				for _, b := range payloads {
					if len(b) > 0 {
						at := i % len(b)
						b[at] ^= byte(1 << (i / 7 % 8))
						b[at] ^= byte(1 << (i / 7 % 8))
						b[(at*31)%len(b)]++
						b[(at*31)%len(b)]--
					}
				}
			}
		}
	}()
	for range 30_000 {
		for k, b := range payloads {
			parseAnything(k, b)
		}
		entries, err := SplitCapture(&capture.Layout, &capture.Step, 0, payloads[KindCapture])
		if err != nil {
			continue
		}
		for i := range entries {
			for row := range entries[i].Rows {
				if n := len(entries[i].Row(row)); n > len(payloads[KindCapture]) {
					t.Fatalf("a row of %d bytes", n)
				}
			}
		}
	}
	close(stop)
	<-done
}

// Pages that the engine takes out of a sealed memfd read as zeros, not as a
// signal that ends the agent.
func TestPunchedMemoryIsCorruptNotFatal(t *testing.T) {
	l, socket := silentListener(t, ListenerOptions{})
	e := newFakeEngine(t, socket)
	s := e.attach(t, l)
	e.control(t, KindModel, AppendModel(nil, peerModel))
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(e.memory.dataFD, punch, 0, hostileData); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(patience(t), nil); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("punched data gives %v", err)
	}
	if err := unix.Fallocate(e.memory.ctlFD, punch, 0, int64(ctlBytes(hostileDescs))); err != nil {
		t.Fatal(err)
	}
	s.Release(1)
	if p := s.Producer(); p != (ProducerCounters{}) {
		t.Errorf("punched counters are %+v", p)
	}
}

// An eventfd is the engine's: it may be readable for ever, or block.
func TestAWakeDescriptorThatMisbehavesStopsNobody(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T) int{
		"always readable": func(t *testing.T) int {
			fd, err := unix.Eventfd(math.MaxUint32, unix.EFD_CLOEXEC|unix.EFD_SEMAPHORE|unix.EFD_NONBLOCK)
			return mustOpen(t, fd, err)
		},
		"blocking": func(t *testing.T) int {
			fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
			return mustOpen(t, fd, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, socket := silentListener(t, ListenerOptions{Wait: WaitEvent})
			e := newFakeEngine(t, socket)
			wake := prepare(t)
			e.hello(t, e.memory.ctlFD, e.memory.dataFD, wake)
			e.welcomed(t)
			flood(t, e, 1, snapshotEndMessage(snapshotEnd{}))
			s := acceptSession(t, l)
			if err := unix.SetNonblock(wake, false); err != nil { // the description is shared
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if _, err := s.Next(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("an idle ring gives %v", err)
			}
			e.control(t, KindModel, AppendModel(nil, peerModel))
			if got, err := s.Next(patience(t), nil); err != nil || len(got) != 1 {
				t.Errorf("read %d records, %v", len(got), err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Messages out of order after the handshake end the connection and leave no
// descriptor open; what was committed is still read.
func TestMessagesThatNobodyExpectsEndTheConnection(t *testing.T) {
	badAck := abortAckMessage(abortAck{id: 1})
	badAck[abiMessageBytes+12] = 9
	for name, send := range map[string]func(t *testing.T, e *fakeEngine){
		"a HELLO with descriptors": func(t *testing.T, e *fakeEngine) { e.hello(t) },
		"a SNAPSHOT_END":           func(t *testing.T, e *fakeEngine) { flood(t, e, 1, snapshotEndMessage(snapshotEnd{})) },
		"an outcome of no version": func(t *testing.T, e *fakeEngine) { flood(t, e, 1, badAck) },
		"noise":                    func(t *testing.T, e *fakeEngine) { flood(t, e, 1, []byte("noise")) },
	} {
		t.Run(name, func(t *testing.T) {
			l, socket := silentListener(t, ListenerOptions{})
			e := newFakeEngine(t, socket)
			before := openDescriptors(t)
			s := e.attach(t, l)
			e.control(t, KindModel, AppendModel(nil, peerModel))
			flood(t, e, 3, abortAckMessage(abortAck{id: 12345})) // answers to nothing are no fault
			send(t, e)
			records, err := readToEnd(t, s)
			if len(records) != 1 || !errors.Is(err, io.EOF) {
				t.Errorf("read %d records, %v", len(records), err)
			}
			if got := e.answer(t); got != "gone" {
				t.Errorf("the agent says %q", got)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			settles(t, before)
		})
	}
}

// An engine that never answers costs its own aborts their time, and nothing else.
func TestAnEngineThatNeverAnswersBoundsItsAborts(t *testing.T) {
	l, socket := silentListener(t, ListenerOptions{})
	e := newFakeEngine(t, socket)
	s := e.attach(t, l)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	failed := make(chan error, maxAborts+100)
	for range cap(failed) {
		go func() {
			_, _, err := s.Abort(ctx, Abort{Number: 1, EngineID: strings.Repeat("x", MaxTextBytes)})
			failed <- err
		}()
	}
	for range cap(failed) {
		if err := <-failed; err == nil {
			t.Fatal("an abort was answered by nobody")
		}
	}
	e.control(t, KindModel, AppendModel(nil, peerModel))
	if got, err := s.Next(patience(t), nil); err != nil || !reflect.DeepEqual(got[0].Kind, KindModel) {
		t.Errorf("the session suffers: %v", err)
	}
	if n := len(s.aborts.waiting); n != 0 {
		t.Errorf("%d aborts are remembered for ever", n)
	}
}
