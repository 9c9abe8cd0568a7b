package recording

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sonde/ring2"
)

// A recording that changes, drops or reorders anything is worth nothing.
func TestWhatWasRecordedComesBackBitForBit(t *testing.T) {
	for _, end := range []error{io.EOF, nil, errors.New("ring is corrupt at record 99")} {
		dir := t.TempDir()
		s := newSource(50)
		s.batches = append(s.batches, []ring2.Record{s.record(ring2.KindBye, []byte{})})
		s.err = end
		aborted := &s.batches[7][2]
		aborted.Flags, aborted.Payload = ring2.FlagAborted, nil
		if end == nil {
			s.err = ring2.ErrClosed
		}
		if err := record(t, dir, Options{Recorder: "test 1"}, s); err != nil {
			t.Fatal(err)
		}
		session := mustOpen(t, dir).Sessions[0]
		got, r, err := readAll(t, session)
		sameRecords(t, got, s.all())
		sameRecords(t, r.Snapshot(), s.snapshot)
		if r.Config() != s.config {
			t.Errorf("config %+v; want %+v", r.Config(), s.config)
		}
		if session.Total() != 151 || session.Records[ring2.KindCapture] != 100 || session.Start.Recorder != "test 1" {
			t.Errorf("described as %+v", session)
		}
		switch {
		case end == io.EOF && (err != io.EOF || r.Producer().CapturedRows != 5100 || !r.Producer().Closing ||
			r.ClaimSeq() != 1000):
			t.Errorf("an end came back as %v, %+v, claim %d", err, r.Producer(), r.ClaimSeq())
		case end == nil && session.End.Reason != ReasonStopped:
			t.Errorf("a stop came back as %v", session.End.Reason)
		case end != nil && end != io.EOF && (err == nil || !strings.Contains(err.Error(), "corrupt at record 99") ||
			r.Quarantined() == nil):
			t.Errorf("a corrupt ring came back as %v", err)
		}
	}
}

// At the start an agent takes claim and counters as the base that it counts from.
func TestReaderBeginsWithTheCountersOfTheAttachment(t *testing.T) {
	dir := t.TempDir()
	s := newSource(3)
	s.err = io.EOF
	if err := record(t, dir, Options{}, s); err != nil {
		t.Fatal(err)
	}
	r, err := mustOpen(t, dir).Sessions[0].Read(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Producer().CapturedRows != 0 || r.ClaimSeq() != 1000 || r.ReleaseSeq() != 10 {
		t.Errorf("rows %d, claim %d, release %d", r.Producer().CapturedRows, r.ClaimSeq(), r.ReleaseSeq())
	}
}

// A recorder that is stopped inside a step must not leave half a step, which an
// agent would wait for: the next recorder begins with that step.
func TestStopInsideAStepEndsAtTheBoundaryBefore(t *testing.T) {
	dir := t.TempDir()
	s := newSource(4)
	s.batches[3] = s.batches[3][:2]
	s.err = ring2.ErrClosed
	if err := record(t, dir, Options{}, s); err != nil {
		t.Fatal(err)
	}
	session := mustOpen(t, dir).Sessions[0]
	got, _, _ := readAll(t, session)
	sameRecords(t, got, slices.Concat(s.batches[:3]...))
	if session.Left != 2 || session.End.Until != 19 || session.Total() != 9 {
		t.Errorf("described as %+v", session)
	}
}

// Of an engine that died, the captures that it never committed must be known
// before the records behind them.
func TestLostRecordsComeBackAsLost(t *testing.T) {
	dir := t.TempDir()
	s := newSource(3)
	s.lostIn = map[int][]uint64{1: {13, 14}, 2: {18}}
	s.batches[1] = s.batches[1][2:]
	s.batches[2] = s.batches[2][:2]
	s.err = io.EOF
	if err := record(t, dir, Options{}, s); err != nil {
		t.Fatal(err)
	}
	session := mustOpen(t, dir).Sessions[0]
	got, r, err := readAll(t, session)
	sameRecords(t, got, s.all())
	if err != io.EOF || !slices.Equal(r.Lost(), []uint64{13, 14, 18}) || session.End.Until != 19 || session.Left != 0 {
		t.Errorf("%v, lost %v, until %d, left %d", err, r.Lost(), session.End.Until, session.Left)
	}
}

// watched notes what was safe on the disk when.
type watched struct {
	file
	synced *int // frames of steps known to be safe, by size
	size   int
	fail   func(wrote int) error
}

func (w *watched) Write(b []byte) (int, error) {
	if err := w.fail(w.size + len(b)); err != nil {
		n, _ := w.file.Write(b[:len(b)/2])
		w.size += n
		return n, err
	}
	w.size += len(b)
	return w.file.Write(b)
}

func (w *watched) Sync() error {
	*w.synced = w.size
	return w.file.Sync()
}

func (w *watched) Truncate(n int64) error {
	w.size = int(n)
	return w.file.Truncate(n)
}

// Releasing a step that is not on the disk loses it when the machine stops.
func TestNothingIsReleasedBeforeItIsSynced(t *testing.T) {
	dir := t.TempDir()
	s := &orderedSource{source: newSource(20)}
	s.err = io.EOF
	o := Options{create: func(path string) (file, error) {
		f, err := createFile(path)
		s.file = &watched{file: f, synced: &s.synced, fail: func(int) error { return nil }}
		return s.file, err
	}}
	r, err := NewRecorder(dir, o, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Record(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if s.early > 0 || len(s.asked) != 20 {
		t.Errorf("%d of %d releases came before the sync", s.early, len(s.asked))
	}
}

type orderedSource struct {
	*source
	file   *watched
	synced int
	before int
	early  int
}

func (s *orderedSource) Release(seq uint64) {
	if s.synced != s.file.size || s.synced <= s.before {
		s.early++
	}
	s.before = s.synced
	s.source.Release(seq)
}

// A full disk must leave a recording that ends in order, and release nothing that
// is not in it: the next agent gets the rest.
func TestFullDiskEndsTheRecordingAtItsLastSync(t *testing.T) {
	for limit := 700; limit < 8000; limit += 97 {
		dir := t.TempDir()
		s := newSource(20)
		s.err = io.EOF
		var synced int
		full := func(wrote int) error {
			if wrote > limit {
				return fmt.Errorf("write: %w", syscall.ENOSPC)
			}
			return nil
		}
		o := Options{create: func(path string) (file, error) {
			f, err := createFile(path)
			return &watched{file: f, synced: &synced, fail: full}, err
		}}
		err := record(t, dir, o, s)
		folders, globErr := sessionFolders(dir)
		if globErr != nil {
			t.Fatal(globErr)
		}
		if err == nil {
			t.Fatalf("limit %d: a full disk is no error", limit)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("limit %d: %v", limit, err)
		}
		if len(folders) == 0 {
			if s.released != 10 {
				t.Errorf("limit %d: released up to %d without a recording", limit, s.released)
			}
			continue
		}
		session := mustOpen(t, dir).Sessions[0]
		got, _, _ := readAll(t, session)
		sameRecords(t, got, s.all()[:s.released-10])
		if session.End.Reason != ReasonFailed && session.End.Reason != ReasonTorn {
			t.Errorf("limit %d: ended as %s", limit, session.End.Reason)
		}
	}
}

// The totals must be those of the files, also when a part was taken back.
func TestTotalsAreThoseOfTheFiles(t *testing.T) {
	for _, most := range []int64{0, 40 << 10} {
		dir := t.TempDir()
		r, err := NewRecorder(dir, Options{MaxBytes: most}, quiet)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		s := newSource(300)
		s.batches = append(s.batches[:100:100], slices.Concat(s.batches[100:]...))
		s.err = io.EOF
		if err := r.Record(t.Context(), s); (err != nil) != (most > 0) {
			t.Fatal(err)
		}
		session := mustOpen(t, dir).Sessions[0]
		if got := r.Totals(); got.Bytes != session.Bytes || got.Records != int64(session.Total()) || got.Sessions != 1 {
			t.Errorf("totals %+v; the files have %d bytes and %d records", got, session.Bytes, session.Total())
		}
		if left := r.budget.left.Load(); most > 0 && left != most-session.Bytes {
			t.Errorf("%d bytes are left of %d, of which %d are used", left, most, session.Bytes)
		}
	}
}

// The bound is for the folder, over restarts of the recorder.
func TestRecordingStaysWithinItsBound(t *testing.T) {
	dir := t.TempDir()
	const bound = 40 << 10
	for range 3 {
		s := newSource(2000)
		s.err = io.EOF
		if err := record(t, dir, Options{MaxBytes: bound, SegmentBytes: minSegmentBytes}, s); !errors.Is(err, ErrFull) {
			t.Fatalf("full recording: %v", err)
		}
		var size int64
		for _, path := range segmentFiles(t, dir) {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			size += info.Size()
		}
		if size > bound || size < bound/2 {
			t.Errorf("%d bytes; the bound is %d", size, bound)
		}
		session := mustOpen(t, dir).Sessions[0]
		got, _, _ := readAll(t, session)
		sameRecords(t, got, s.all()[:len(got)])
		if session.End.Reason != ReasonFull || len(got) < 100 {
			t.Errorf("ended as %s after %d records", session.End.Reason, len(got))
		}
	}
}

// Two recorders in one folder would each believe that the bound is theirs.
func TestSecondRecorderIsRefused(t *testing.T) {
	dir := t.TempDir()
	r, err := NewRecorder(dir, Options{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := NewRecorder(dir, Options{}, quiet); err == nil || !strings.Contains(err.Error(), "another recorder") {
		t.Errorf("second recorder: %v", err)
	}
	if _, err := NewRecorder(filepath.Join(dir, lockName), Options{}, quiet); err == nil {
		t.Error("a file is no folder")
	}
}
