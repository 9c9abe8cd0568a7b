package ring2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// die ends a writer as a SIGKILL would: its lock and its memory go, its journal
// stays as it is.
func die(t *testing.T, w *Writer) {
	t.Helper()
	w.stop()
	w.background.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closing, w.closed = true, true
	w.dead.close()
	if err := w.journal.close(false); err != nil {
		t.Error(err)
	}
	w.memory.close()
}

// tell reads a state folder as a successor does, without a ring.
func tell(t *testing.T, state string) []Obituary {
	t.Helper()
	j, q, err := openState(state, 0, 99, silent)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		q.close()
		if err := j.close(true); err != nil {
			t.Error(err)
		}
	}()
	var out []Obituary
	for q.ahead(1) {
		out = append(out, q.next[0])
		q.sent(0)
	}
	return out
}

func describe(list []Obituary) []string {
	var out []string
	for _, o := range list {
		flag := ""
		if o.Flags&ObituaryNeverPut != 0 {
			flag = " never put"
		}
		out = append(out, fmt.Sprintf("%d %s%s", o.Seq, o.Kind, flag))
	}
	return out
}

func TestTheJournalTellsWhatWasInTheRingAndWhatNeverWas(t *testing.T) {
	state := filepath.Join(t.TempDir(), "st[a]te*") // no pattern
	p := quiet(t, WriterOptions{DescCount: 8, DataBytes: minDataBytes, StateDir: state})
	w := p.w
	ranges, layouts := smallStep(t, w) // 0 layout, 1 request
	for range 3 {
		begin(t, w, ranges, layouts).Commit() // 2 STEP, 3 CAPTURE, 4 STEP, 5 CAPTURE, 6 STEP
	}
	for n := range uint64(2) {
		if err := w.OpenRequest(RequestOpen{Number: 5 + n}); err != nil { // 7, and one that waits
			t.Fatal(err)
		}
	}
	begin(t, w, ranges, layouts).Commit()                       // waits
	if err := w.EndRequest(RequestEnd{Number: 5}); err != nil { // waits
		t.Fatal(err)
	}
	die(t, w)
	want := []string{"0 layout", "1 request_open", "2 step", "4 step", "6 step", "7 request_open",
		"8 request_open never put", "8 step never put", "8 request_end never put", "8 end_of_journal"}
	if got := describe(tell(t, state)); !slices.Equal(got, want) {
		t.Errorf("the journal tells %q; want %q", got, want)
	}
}

func TestWhatWaitedAndThenGotItsRoomIsToldOnce(t *testing.T) {
	state := t.TempDir()
	p := quiet(t, WriterOptions{DescCount: 8, DataBytes: minDataBytes, StateDir: state})
	w := p.w
	ranges, layouts := smallStep(t, w)
	for range 3 {
		begin(t, w, ranges, layouts).Commit()
	}
	for n := range uint64(2) {
		if err := w.OpenRequest(RequestOpen{Number: 5 + n}); err != nil {
			t.Fatal(err)
		}
	}
	begin(t, w, ranges, layouts).Commit()
	records := readAll(t, p.s)
	p.s.Release(records[len(records)-1].Seq + 1)
	w.tend(false)
	die(t, w)
	want := []string{"0 layout", "1 request_open", "2 step", "4 step", "6 step", "7 request_open", "8 step never put",
		"8 request_open", "9 missing", "10 end_of_journal"}
	if got := describe(tell(t, state)); !slices.Equal(got, want) {
		t.Errorf("the journal tells %q; want %q", got, want)
	}
}

func TestATornTailEndsASegmentAndNothingElse(t *testing.T) {
	for _, cut := range []int{1, 10, journalRecordHeader, 40} {
		state := t.TempDir()
		p := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes, StateDir: state})
		ranges, layouts := smallStep(t, p.w)
		begin(t, p.w, ranges, layouts).Commit()
		path := p.w.journal.file.Name()
		die(t, p.w)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b[:len(b)-cut], 0o600); err != nil {
			t.Fatal(err)
		}
		want := []string{"0 layout", "1 request_open", "2 end_of_journal"}
		if got := describe(tell(t, state)); !slices.Equal(got, want) {
			t.Errorf("cut by %d bytes: %q", cut, got)
		}
	}
}

func TestJournalsThatMakeNoSenseAreTolerated(t *testing.T) {
	rng := seeded(t)
	state := t.TempDir()
	for _, files := range [][]byte{nil, []byte("R2JL"), []byte("garbage that is long enough to be a header")} {
		dir := filepath.Join(state, journalName(0, rng.Uint64()))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if files != nil {
			if err := os.WriteFile(segmentPath(dir, 1), files, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes, StateDir: state})
	ranges, layouts := smallStep(t, p.w)
	for range 20 {
		begin(t, p.w, ranges, layouts).Commit()
	}
	path := p.w.journal.file.Name()
	die(t, p.w)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := describe(tell(t, state)); len(got) != 23 {
		t.Fatalf("%d obituaries; want 23: %q", len(got), got)
	}
	for range 300 { // every flipped bit ends the journal early, and never in a wrong record
		spoilt := slices.Clone(b)
		spoilt[rng.IntN(len(spoilt))] ^= 1 << rng.IntN(8)
		dir := filepath.Join(state, journalName(0, p.w.config.Epoch))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(segmentPath(dir, 1), spoilt, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := tell(t, state); len(got) > 22 {
			t.Errorf("%d obituaries from a spoilt journal", len(got))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheJournalIsBoundedWhileTheReaderKeepsUp(t *testing.T) {
	state := t.TempDir()
	p := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes, StateDir: state})
	w := p.w
	_, layouts := smallStep(t, w)
	long := RequestOpen{Number: 2, ExternalID: string(make([]byte, MaxTextBytes))}
	if err := w.OpenRequest(long); err != nil {
		t.Fatal(err)
	}
	ranges := make([]StepRange, 2000) // steps of 64 KB
	for i := range ranges {
		ranges[i] = StepRange{Number: 1, Position: uint32(i), Count: 1, LayoutMask: 1}
	}
	segments, most := 0, 0
	for range 1000 {
		begin(t, w, ranges, layouts).Commit()
		records := readAll(t, p.s)
		p.s.Release(records[len(records)-1].Seq + 1)
		w.tend(false)
		files, err := os.ReadDir(w.journal.dir)
		if err != nil {
			t.Fatal(err)
		}
		most, segments = max(most, len(files)), w.journal.number
	}
	if segments < 10 || most > 2 {
		t.Errorf("%d segments began; %d existed at once", segments, most)
	}
	if got := w.Stats(); got.JournalUnnamed != 0 || got.JournalBytes > 3*segmentBytes {
		t.Errorf("%+v", got)
	}
	die(t, w)
	told := tell(t, state)
	var opens []uint64
	for _, o := range told {
		if o.Kind == KindRequestOpen {
			r, err := ParseRequestOpen(o.Payload)
			if err != nil {
				t.Fatal(err)
			}
			opens = append(opens, r.Number)
		}
	}
	if told[0].Kind != KindLayout || !slices.Equal(opens, []uint64{1, 2}) {
		t.Errorf("what was alive is not in the last segments: first %s, requests %v", told[0].Kind, opens)
	}
}

func TestAFullJournalCountsAndGoesOn(t *testing.T) {
	p := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes, StateDir: t.TempDir()})
	ranges, layouts := smallStep(t, p.w)
	p.w.journal.bytes = maxJournalBytes
	begin(t, p.w, ranges, layouts).Commit()
	p.w.journal.bytes = 0
	if err := p.w.journal.file.Close(); err != nil { // as after an error of the disk
		t.Fatal(err)
	}
	begin(t, p.w, ranges, layouts).Commit()
	begin(t, p.w, ranges, layouts).Commit()
	if got := p.w.Stats(); got.JournalUnnamed != 3 || got.Steps != 3 {
		t.Fatalf("%+v", got)
	}
	p.w.tend(false) // begins a new segment
	begin(t, p.w, ranges, layouts).Commit()
	if got := p.w.Stats(); got.JournalUnnamed != 3 {
		t.Errorf("the journal did not recover: %+v", got)
	}
}

func TestTooManyDeadJournalsAreForgottenOldestFirst(t *testing.T) {
	state := t.TempDir()
	for n := range maxDeadJournals + 5 {
		dir := filepath.Join(state, journalName(0, uint64(n+1)))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		header := appendJournalHeader(nil, uint64(n+1), 0)
		if err := os.WriteFile(segmentPath(dir, 1), header, 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1000+n), 0)
		if err := os.Chtimes(dir, at, at); err != nil {
			t.Fatal(err)
		}
	}
	other := filepath.Join(state, journalName(1, 7)) // of another rank
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	told := tell(t, state)
	if len(told) != maxDeadJournals {
		t.Errorf("%d journals told; want %d", len(told), maxDeadJournals)
	}
	if first := told[1].DeadEpoch; first != 7 {
		t.Errorf("the second journal told is of epoch %d; want 7: those before are beyond the bound", first)
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("the journal of another rank was touched: %v", err)
	}
}

func TestTheJournalOfALivingWriterIsLeftAlone(t *testing.T) {
	state := t.TempDir()
	p := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes, StateDir: state})
	smallStep(t, p.w)
	j, q, err := openState(state, 0, 99, silent)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		q.close()
		if err := j.close(true); err != nil {
			t.Error(err)
		}
	}()
	if q.ahead(1) {
		t.Fatalf("the journal of a living writer is told: %v", describe(q.next))
	}
	die(t, p.w)
	if err := q.takeOver(); err != nil {
		t.Fatal(err)
	}
	if !q.ahead(1) {
		t.Error("the writer died, and nobody tells its journal")
	}
}

// A successor that dies before its reader released the obituaries leaves them to
// the next one.
func TestObituariesAreToldAgainUntilTheyAreReleased(t *testing.T) {
	state := t.TempDir()
	o := listen(t, ListenerOptions{})
	first := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes, StateDir: state})
	ranges, layouts := smallStep(t, first.w)
	begin(t, first.w, ranges, layouts).Commit()
	die(t, first.w)
	for range 2 {
		w := newTestWriter(t, WriterOptions{Socket: o.path, StateDir: state})
		s := accept(t, o.l)
		var got []Record
		for len(got) < 4 { // layout, request, step, end
			var err error
			if got, err = s.Next(context.Background(), got); err != nil {
				t.Fatal(err)
			}
		}
		die(t, w)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	w := newTestWriter(t, WriterOptions{Socket: o.path, StateDir: state})
	s := accept(t, o.l)
	want := []string{"0 layout", "1 request_open", "2 step", "4 end_of_journal"}
	if got := describe(obituaries(t, s, first.w.Epoch())); !slices.Equal(got, want) {
		t.Errorf("the third successor tells %q; want %q", got, want)
	}
	eventually(t, "those of the first two are told", func() bool { return w.Stats().ObituariesSent == 4+1+1 })
	go closeSoon(t, w)
	newChecker(t, s).drain(s, true)
	eventually(t, "every journal is removed", func() bool {
		left, err := os.ReadDir(state)
		return err == nil && len(left) == 0
	})
}

// Obituaries wait for room: live captures and control records come first.
func TestObituariesDoNotTakeTheRoomOfTheLiving(t *testing.T) {
	state := t.TempDir()
	first := quiet(t, WriterOptions{DescCount: 1024, DataBytes: 1 << 20, StateDir: state})
	ranges, layouts := smallStep(t, first.w)
	for range 200 {
		begin(t, first.w, ranges, layouts).Commit()
	}
	die(t, first.w)
	p := quiet(t, WriterOptions{DescCount: 64, DataBytes: minDataBytes, StateDir: state})
	p.w.attached.Store(true)
	for p.w.tellObituaries() {
	}
	if got := p.w.Stats(); got.Claim > 32 || got.ObituariesSent == 0 {
		t.Fatalf("obituaries took %d of 64 descriptors", got.Claim)
	}
	ranges, layouts = smallStep(t, p.w)
	s := begin(t, p.w, ranges, layouts)
	if !s.Captured(0) {
		t.Error("a capture was dropped for the sake of obituaries")
	}
	s.Commit()
}

func TestAStateFolderThatCannotBeUsedIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NewWriter(WriterOptions{StateDir: filepath.Join(file, "state")}); err == nil {
		t.Error("a writer has its state in a file")
	}
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(entries) != 1 || errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, %v", entries, err)
	}
}
