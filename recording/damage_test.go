package recording

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sonde/ring2"
)

// small is a recording of a few steps, in one segment.
func small(t testing.TB, end error) (dir, segment string, s *source) {
	t.Helper()
	dir = t.TempDir()
	s = newSource(3)
	s.err = end
	if err := record(t, dir, Options{}, s); err != nil {
		t.Fatal(err)
	}
	return dir, segmentFiles(t, dir)[0], s
}

// One bit that flipped on a disk must never come back as another activation.
func TestEveryFlippedBitIsDetected(t *testing.T) {
	dir, segment, _ := small(t, io.EOF)
	good := mustRead(t, segment)
	for i := range good {
		for bit := range 8 {
			if i > segmentHeaderBytes+frameHeaderBytes && bit != i%8 {
				continue // one bit of each byte, and each bit of the headers
			}
			bad := append([]byte(nil), good...)
			bad[i] ^= 1 << bit
			mustWrite(t, segment, bad)
			if _, err := Open(dir); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("bit %d of byte %d of %d: %v", bit, i, len(good), err)
			}
		}
	}
}

// A recorder that is killed leaves a part of its last write. All whole steps before
// it are good, and what is missing is said.
func TestTornTailIsToleratedAndReported(t *testing.T) {
	dir, segment, s := small(t, io.EOF)
	good := mustRead(t, segment)
	whole := map[int]bool{}
	for cut := len(good) - 1; cut >= segmentHeaderBytes; cut-- {
		mustWrite(t, segment, good[:cut])
		r, err := Open(dir)
		if err != nil {
			if len(whole) < 4 || !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%d bytes: %v", cut, err)
			}
			continue // not even the beginning of the session is there
		}
		session := r.Sessions[0]
		got, _, _ := readAll(t, session)
		sameRecords(t, got, s.all()[:len(got)])
		if session.End.Reason != ReasonTorn || len(got)%3 != 0 || uint64(len(got)) != session.Total() {
			t.Fatalf("%d bytes: %d records, described as %+v", cut, len(got), session)
		}
		whole[len(got)] = true
	}
	if len(whole) != 4 {
		t.Errorf("cuts left %v records; want 0, 3, 6 and 9", whole)
	}
}

// After a power loss a file may be as long as promised, with nothing in its end.
func TestTailThatWasNeverWrittenIsTorn(t *testing.T) {
	dir, segment, s := small(t, io.EOF)
	good := mustRead(t, segment)
	mustWrite(t, segment, append(append([]byte(nil), good...), make([]byte, 5000)...))
	if _, err := Open(dir); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "take a whole copy") {
		t.Errorf("bytes behind the end: %v", err)
	}
	end := len(good) - endFrameBytes(t, dir, segment, good)
	mustWrite(t, segment, append(append([]byte(nil), good[:end]...), make([]byte, 5000)...))
	session := mustOpen(t, dir).Sessions[0]
	got, _, _ := readAll(t, session)
	sameRecords(t, got, s.all())
	if session.End.Reason != ReasonTorn || session.Torn != 5000 {
		t.Errorf("described as %+v", session)
	}
	junk := append(append([]byte(nil), good[:end]...), make([]byte, 5000)...)
	junk[len(junk)-1] = 1
	mustWrite(t, segment, junk)
	if _, err := Open(dir); !errors.Is(err, ErrCorrupt) {
		t.Errorf("junk behind zeros: %v", err)
	}
}

// endFrameBytes is the size of the last frame.
func endFrameBytes(t testing.TB, dir, segment string, good []byte) int {
	t.Helper()
	mustWrite(t, segment, good)
	p, err := openPlayback(filepath.Dir(segment))
	if err != nil {
		t.Fatal(err)
	}
	defer p.scan.close()
	last := p.scan.offset
	for {
		if _, err := p.next(); err != nil {
			return len(good) - int(last)
		}
		last = p.scan.offset
	}
}

// In a recording of several segments, one that is missing, doubled, exchanged or
// cut short must not go unnoticed.
func TestSegmentsThatAreMissingOrExchanged(t *testing.T) {
	dir := t.TempDir()
	s := newSource(1000)
	s.err = io.EOF
	if err := record(t, dir, Options{SegmentBytes: minSegmentBytes}, s); err != nil {
		t.Fatal(err)
	}
	files := segmentFiles(t, dir)
	if len(files) < 4 {
		t.Fatalf("%d segments; want at least 4", len(files))
	}
	whole := map[string][]byte{}
	for _, path := range files {
		whole[path] = mustRead(t, path)
	}
	for name, damage := range map[string]func(){
		"first missing":  func() { os.Remove(files[0]) },
		"middle missing": func() { os.Remove(files[1]) },
		"exchanged":      func() { mustWrite(t, files[1], whole[files[2]]); mustWrite(t, files[2], whole[files[1]]) },
		"doubled":        func() { mustWrite(t, files[2], whole[files[1]]) },
		"cut short":      func() { mustWrite(t, files[1], whole[files[1]][:len(whole[files[1]])-5]) },
		"cut at a frame": func() { mustWrite(t, files[1], whole[files[1]][:segmentHeaderBytes]) },
		"empty":          func() { mustWrite(t, files[1], nil) },
	} {
		damage()
		if _, err := Open(dir); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		for path, b := range whole {
			mustWrite(t, path, b)
		}
	}
	os.Remove(files[len(files)-1])
	session := mustOpen(t, dir).Sessions[0]
	got, _, _ := readAll(t, session)
	sameRecords(t, got, s.all()[:len(got)])
	if session.End.Reason != ReasonTorn || len(got) == 0 || len(got) >= 3000 {
		t.Errorf("without its last segment: %d records, ended as %s", len(got), session.End.Reason)
	}
}

// Whoever meets a file of tomorrow must be told to upgrade, not that it is damaged;
// and a folder of something else must be told apart from both.
func TestFilesOfAnotherKindAreClearErrors(t *testing.T) {
	dir, segment, _ := small(t, io.EOF)
	good := mustRead(t, segment)
	newer := append([]byte(nil), good...)
	newer[8] = version + 1
	mustWrite(t, segment, newer)
	if _, err := Open(dir); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "use a newer one") {
		t.Errorf("newer version: %v", err)
	}
	mustWrite(t, segment, []byte(strings.Repeat("PAR1 what is this? ", 100)))
	if _, err := Open(dir); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), magic) {
		t.Errorf("junk: %v", err)
	}
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "sonde record") {
		t.Errorf("empty folder: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

// Files with right checksums may still come from somebody who wants to crash the
// reader.
func TestHostileDescriptionsAreErrors(t *testing.T) {
	for name, change := range map[string]func(*source){
		"no descriptors": func(s *source) { s.config.DescCount = 0 },
		"odd data":       func(s *source) { s.config.DataBytes = 3 },
		"huge":           func(s *source) { s.config.DataBytes = 1 << 60 },
		"rank":           func(s *source) { s.config.RankCount = 0 },
		"gap":            func(s *source) { s.batches[1][1].Seq += 2 },
		"back":           func(s *source) { s.batches[1][1].Seq -= 2 },
		"large record":   func(s *source) { s.config.DataBytes = 32 },
		"lost again":     func(s *source) { s.lostIn = map[int][]uint64{1: {9, 9}} },
	} {
		dir := t.TempDir()
		s := newSource(3)
		s.err = io.EOF
		change(s)
		if err := record(t, dir, Options{}, s); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := Open(dir); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Damage that happens after the check must stop a replay, with an error that stays.
func TestDamageDuringAReplayStopsIt(t *testing.T) {
	dir, segment, s := small(t, io.EOF)
	session := mustOpen(t, dir).Sessions[0]
	b := mustRead(t, segment)
	b[len(b)-endFrameBytes(t, dir, segment, b)-10] ^= 1
	mustWrite(t, segment, b)
	got, r, err := readAll(t, session)
	sameRecords(t, got, s.all()[:8])
	if !errors.Is(err, ErrCorrupt) || r.Quarantined() == nil {
		t.Errorf("%v, quarantined %v", err, r.Quarantined())
	}
	if _, again := r.Next(t.Context(), nil); !errors.Is(again, ErrCorrupt) {
		t.Errorf("asked again: %v", again)
	}
}

func FuzzSegment(f *testing.F) {
	_, segment, _ := small(f, io.EOF)
	good := mustRead(f, segment)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(appendSegmentHeader(nil, segmentHeader{epoch: 1}))
	f.Fuzz(openAndRead)
}

// openAndRead checks that what Open accepts can be read as it was described.
func openAndRead(t *testing.T, b []byte) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "rank0-0000000000000001-0")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, segmentPath(folder, 0), b)
	r, err := Open(dir)
	if err != nil {
		return
	}
	records, _, err := readAll(t, r.Sessions[0])
	if errors.Is(err, ErrCorrupt) {
		t.Fatalf("Open accepted what Next refuses: %v", err)
	}
	if uint64(len(records)) != r.Sessions[0].Total() {
		t.Fatalf("%d records; described as %d", len(records), r.Sessions[0].Total())
	}
}

// FuzzFrames gets past the checksums: it seals frames of any contents.
func FuzzFrames(f *testing.F) {
	dir, segment, _ := small(f, io.EOF)
	scan, err := openScan(filepath.Dir(segment))
	if err != nil {
		f.Fatal(err, dir)
	}
	defer scan.close()
	var script []byte
	for {
		x, err := scan.next()
		if err != nil {
			break
		}
		script = append(order.AppendUint16(append(script, x.typ), uint16(len(x.body))), x.body...)
	}
	f.Add(script)
	header := scan.identity
	f.Fuzz(func(t *testing.T, script []byte) {
		b := appendSegmentHeader(nil, header)
		for ordinal := uint64(0); len(script) >= 3; ordinal++ {
			n := min(int(order.Uint16(script[1:])), len(script)-3)
			h := appendFrameHeader(nil, frameHeader{length: uint32(n), typ: script[0] % 7, ordinal: ordinal})
			h = append(h, script[3:3+n]...)
			b = append(append(b, h...), order.AppendUint32(nil, crc32.Checksum(h, castagnoli))...)
			script = script[3+n:]
		}
		openAndRead(t, b)
	})
}

// A reader must not read a whole recording into memory: it holds what a ring holds.
func TestReaderHoldsNoMoreThanARing(t *testing.T) {
	for _, c := range []struct {
		descs, data uint64
		want        int
	}{{8, 1 << 20, 8}, {64, 256, 3}} {
		dir := t.TempDir()
		s := newSource(30)
		s.err = io.EOF
		s.config.DescCount, s.config.DataBytes = c.descs, c.data
		if err := record(t, dir, Options{}, s); err != nil {
			t.Fatal(err)
		}
		r, err := mustOpen(t, dir).Sessions[0].Read(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		records, err := r.Next(t.Context(), nil)
		if err != nil || len(records) != c.want {
			t.Fatalf("%d records of a ring of %d and %d bytes, %v", len(records), c.descs, c.data, err)
		}
		ctx, stop := context.WithCancel(t.Context())
		freed := make(chan error, 1)
		go func() {
			more, err := r.Next(ctx, nil)
			if err == nil && more[0].Seq != records[len(records)-1].Seq+1 {
				err = fmt.Errorf("record %d came next", more[0].Seq)
			}
			freed <- err
		}()
		r.Release(r.ReleaseSeq() + 1000) // past what was read: refused
		r.Release(records[1].Seq)
		if err := <-freed; err != nil || r.ReleaseSeq() != records[1].Seq {
			t.Errorf("after a release: %v, released %d", err, r.ReleaseSeq())
		}
		stop()
	}
}

// In real time a replay has the distances of the recording, and Close ends a wait.
func TestRealTimeKeepsTheDistancesOfTheRecording(t *testing.T) {
	dir := t.TempDir()
	s := newSource(3)
	s.err = io.EOF
	for i, d := range []uint64{0, 30e6, 3600e9} {
		for j := range s.batches[i] {
			s.batches[i][j].CaptureNS = 5e9 + d
		}
	}
	if err := record(t, dir, Options{}, s); err != nil {
		t.Fatal(err)
	}
	recording := mustOpen(t, dir)
	clock := StartClock(recording)
	r, err := recording.Sessions[0].Read(clock)
	if err != nil {
		t.Fatal(err)
	}
	var got []ring2.Record
	for len(got) < 6 {
		before := len(got)
		if got, err = r.Next(t.Context(), got); err != nil {
			t.Fatal(err)
		}
		if wait := clock.wait(recording.Sessions[0].Wall(got[len(got)-1].CaptureNS)); wait > 0 {
			t.Errorf("records %d to %d came %v early", before, len(got)-1, wait)
		}
	}
	sameRecords(t, got, s.all()[:6])
	ended := make(chan error, 1)
	go func() {
		_, err := r.Next(t.Context(), nil)
		ended <- err
	}()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, ring2.ErrClosed) {
		t.Errorf("Next after Close: %v", err)
	}
}
