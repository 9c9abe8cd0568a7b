package spool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sonde/bus/bustest"
)

// spooled makes a folder in which a killed agent left n messages of one row.
func spooled(t *testing.T, n uint64) *rig {
	t.Helper()
	r := newRig(t, Options{MaxBytes: 1 << 20})
	r.bus.Stop()
	r.rows(0, n, 1, 1000)
	r.answered(int(n))
	if err := r.s.Close(); err != nil {
		t.Fatal(err)
	}
	r.counted = 0
	return r
}

// restart opens the folder again and lets the bus have what is there.
func (r *rig) restart() {
	r.Helper()
	r.open()
	r.bus.Start()
	r.empty()
}

// change changes the bytes of a segment.
func change(t *testing.T, dir, name string, f func(b []byte) []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, f(b), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestATornTailCostsNothingElse(t *testing.T) {
	for cut := range 40 {
		r := spooled(t, 20)
		names := segmentsIn(t, r.o.Dir)
		change(t, r.o.Dir, names[len(names)-1], func(b []byte) []byte { return b[:len(b)-1-cut*30] })
		r.restart()
		rows, named := r.arrived()
		want := 19 - cut*30/1125
		if len(named) != 0 || len(rows) > 19 || len(rows) < want-1 {
			t.Errorf("cut by %d: %d rows arrived, %d are named", 1+cut*30, len(rows), len(named))
		}
		r.s.Close()
	}
}

// What a killed agent wrote without a sync may be zeros after a power loss.
func TestATailOfZerosIsATornTail(t *testing.T) {
	r := spooled(t, 20)
	names := segmentsIn(t, r.o.Dir)
	change(t, r.o.Dir, names[len(names)-1], func(b []byte) []byte { return append(b, make([]byte, 5000)...) })
	r.restart()
	if rows, _ := r.arrived(); len(rows) != 20 {
		t.Errorf("%d of 20 rows arrived", len(rows))
	}
}

func TestJunkInTheFolderIsLeftAloneAndHoldsNothingUp(t *testing.T) {
	r := spooled(t, 20)
	junk := map[string]string{"notes.txt": "hello", "0000000000000001.spool.bak": "x", "zz.spool": "y",
		"00000000000000ff.spool": strings.Repeat("this is no segment ", 10), "1.spool": "z"}
	for name, text := range junk {
		if err := os.WriteFile(filepath.Join(r.o.Dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(r.o.Dir, "00000000000000fe.spool"), 0o755); err != nil {
		t.Fatal(err)
	}
	temp := filepath.Join(r.o.Dir, "0000000000000000.spool.tmp")
	if err := os.WriteFile(temp, []byte("half a segment"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.restart()
	r.complete(20)
	for name, text := range junk {
		if got, err := os.ReadFile(filepath.Join(r.o.Dir, name)); err != nil || string(got) != text {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := os.Stat(temp); !os.IsNotExist(err) {
		t.Errorf("a segment that was being written anew is still there: %v", err)
	}
	r.bus.Stop() // and it does not write over them
	r.rows(20, 40, 1, 1000)
	r.answered(20)
	r.bus.Start()
	r.empty()
	r.complete(40)
	const last = "00000000000000ff.spool"
	if got, err := os.ReadFile(filepath.Join(r.o.Dir, last)); err != nil || string(got) != junk[last] {
		t.Errorf("the file with the highest number: %q, %v", got, err)
	}
}

func TestASegmentOfAnotherVersionWaitsForItsRelease(t *testing.T) {
	for name, version := range map[string]uint32{"too new": 2, "too old": 0} {
		r := spooled(t, 20)
		first := segmentsIn(t, r.o.Dir)[0]
		var kept []byte
		change(t, r.o.Dir, first, func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[8:], version)
			binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
			kept = slices.Clone(b)
			return b
		})
		r.restart()
		got, err := os.ReadFile(filepath.Join(r.o.Dir, first))
		if err != nil || string(got) != string(kept) {
			t.Errorf("%s: the segment is changed or gone: %v", name, err)
		}
		f, err := os.Open(filepath.Join(r.o.Dir, first))
		if err != nil {
			t.Fatal(err)
		}
		if err := checkSegmentHead(f, 0); err == nil || !strings.Contains(err.Error(), "release") {
			t.Errorf("%s: the log says %v", name, err)
		}
		f.Close()
		r.s.Close()
		change(t, r.o.Dir, first, func(b []byte) []byte { // its release comes
			binary.LittleEndian.PutUint32(b[8:], segmentVersion)
			binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
			return b
		})
		r.restart()
		if rows, _ := r.arrived(); len(rows) != 20 {
			t.Errorf("%s: %d of 20 rows arrived in the end", name, len(rows))
		}
	}
}

func TestEmptySegmentsAreRemoved(t *testing.T) {
	r := spooled(t, 5)
	for i, b := range [][]byte{nil, []byte("SND"), appendSegmentHead(nil, 102)} {
		name := segmentName(uint64(100 + i))
		if err := os.WriteFile(filepath.Join(r.o.Dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r.restart()
	r.complete(5)
	if left := segmentsIn(t, r.o.Dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// One bit of a segment flips, anywhere: at most one message is lost, and where its
// head is whole its rows are counted, and named.
func TestAFlippedBitCostsOneMessageAtMost(t *testing.T) {
	rng := random(t)
	for range 60 {
		r := spooled(t, 20)
		at, where := 0, ""
		names := segmentsIn(t, r.o.Dir)
		change(t, r.o.Dir, names[0], func(b []byte) []byte {
			at = segmentHead + rng.IntN(len(b)-segmentHead)
			b[at] ^= 1 << rng.IntN(8)
			where = fmt.Sprintf("byte %d of %d", at, len(b))
			return b
		})
		r.open()
		found := r.s.Found()["owner"]
		r.bus.Start()
		r.empty()
		rows, named := r.arrived()
		if len(rows) < 19 || found == 20 && len(rows)+len(named) < 20 {
			t.Errorf("%s: %d rows arrived, %d are named, %d were found", where, len(rows), len(named), found)
		}
		if r.settled[Damaged] != found-uint64(len(rows)) {
			t.Errorf("%s: %d rows are counted as damaged", where, r.settled[Damaged])
		}
		r.s.Close()
	}
}

// disk fails steps on demand.
type disk struct {
	mu    sync.Mutex
	fails func(step string) error
	steps int
}

func (d *disk) check(step, _ string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.steps++
	if d.fails == nil {
		return nil
	}
	return d.fails(step)
}

func (d *disk) set(fails func(string) error) {
	d.mu.Lock()
	d.fails = fails
	d.mu.Unlock()
}

// A disk that takes nothing stops nothing else: publishing waits, and goes on without
// the disk when the bus is back, or with it when there is room again.
func TestAFullOrReadOnlyDiskLosesNothingAndIsToldOf(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.EROFS, syscall.EIO} {
		for _, step := range []string{stepCreate, stepWrite, stepSync, stepSyncDir} {
			for _, busFirst := range []bool{true, false} {
				d := &disk{}
				r := newRig(t, Options{WindowBytes: 50_000, check: d.check})
				r.bus.Stop()
				r.rows(0, 20, 1, 1000)
				r.answered(20)
				d.set(func(s string) error {
					if s == step || step == stepCreate {
						return cause
					}
					return nil
				})
				r.rows(20, 40, 1, 1000)
				// An open segment needs neither a new file nor the folder.
				if step == stepWrite || step == stepSync {
					until(t, "the trouble is told", func() bool { return strings.Contains(r.s.Stats().Trouble, cause.Error()) })
				}
				if !busFirst {
					d.set(nil)
					r.answered(40)
				}
				r.bus.Start()
				r.answered(40)
				d.set(nil)
				r.empty()
				r.complete(40)
				until(t, "the trouble is over", func() bool { return r.s.Stats().Trouble == "" })
				r.s.Close()
			}
		}
	}
}

// The agent is killed at each step on the disk, also while a full spool is written
// anew. What was told to be safe arrives, whatever the page cache did not write.
func TestAKillAtAnyStepLosesNothingThatWasToldToBeSafe(t *testing.T) {
	for _, whenFull := range []WhenFull{DropOldest, DropNewest} {
		total := killAt(t, whenFull, 1<<30)
		rng := random(t)
		for kill := 0; kill < total; kill += 1 + rng.IntN(max(1, total/12)) {
			killAt(t, whenFull, kill)
		}
	}
}

// large are few messages that fill a spool more than once.
func large(n uint64) (out []Message) {
	for i := range n {
		out = append(out, dataMessage([]testRow{{i, int32(i % 3)}}, 4000))
	}
	return out
}

var errKilled = errors.New("killed")

func killAt(t *testing.T, whenFull WhenFull, kill int) (steps int) {
	t.Helper()
	d := &disk{}
	o := tiny(whenFull)
	o.check = func(step, path string) error {
		if d.check(step, path); d.steps > kill {
			return errKilled // and nothing more happens on the disk
		}
		return nil
	}
	r := newRig(t, o)
	r.bus.SetWindow(1)
	r.bus.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			d.mu.Lock()
			over := d.steps > kill
			d.mu.Unlock()
			if over {
				cancel()
			}
			time.Sleep(time.Millisecond)
		}
	}()
	for _, m := range large(100) {
		if r.publish(ctx, m) != nil {
			break
		}
	}
	until(t, "all is answered", func() bool { return ctx.Err() != nil || r.s.Stats().Memory == 0 })
	cancel()
	r.s.Close()
	steps = d.steps
	// The next agent, with a bus that never had anything, finds the folder as it is.
	r.bus.Close()
	r.bus, r.o.check = bustest.New(), nil
	r.settled, r.counted, r.refused = map[Outcome]uint64{}, 0, nil
	r.mu.Lock()
	safe := r.of
	r.of = map[uint64]bool{}
	r.mu.Unlock()
	r.open()
	r.empty()
	rows, named := r.arrived()
	there := map[uint64]bool{}
	for i, number := range rows {
		if there[number] = true; i > 0 && number < rows[i-1] {
			t.Errorf("killed at step %d: row %d arrives behind row %d", kill, number, rows[i-1])
		}
	}
	for number := range safe {
		if !there[number] && !named[number] {
			t.Errorf("killed at step %d: row %d was told to be safe, and is neither there nor named", kill, number)
		}
	}
	r.s.Close()
	r.bus.Close()
	return steps
}

// What was published and not forgotten is published once more, as it was.
func TestAReplayOfWhatTheBusHasIsTheSameMessages(t *testing.T) {
	r := spooled(t, 30)
	copied := t.TempDir()
	for _, name := range segmentsIn(t, r.o.Dir) {
		b, err := os.ReadFile(filepath.Join(r.o.Dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(copied, name), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r.restart()
	r.s.Close()
	once := r.bus.Messages()
	r.o.Dir = copied
	r.open()
	r.empty()
	twice := r.bus.Messages()
	if len(once) != 30 || len(twice) != 60 {
		t.Fatalf("%d messages, then %d", len(once), len(twice))
	}
	for i, m := range twice[30:] {
		if m.Subject != once[i].Subject || string(m.Data) != string(once[i].Data) {
			t.Errorf("message %d is another one the second time", i)
		}
	}
}
