package commitlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var tables = []string{"vectors", "ledger"}

// open opens a log for writing.
func open(t testing.TB, lake string, check func(step, path string) error) *Log {
	t.Helper()
	l, err := OpenLog(lake, Options{Tables: tables, Check: check})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// claim is the writer of partition 0 of a lake, in a process of its own, which swept.
func claim(t testing.TB, lake string, check func(step, path string) error) *Writer {
	t.Helper()
	w, err := open(t, lake, check).Claim(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.log.Sweep(); err != nil {
		t.Fatal(err)
	}
	return w
}

// addFile writes a data file of one line.
func addFile(w *Writer, first uint64) (File, error) {
	return w.WriteFile(DataFile{Table: "vectors", Incarnation: "i", First: first, Last: first, Rows: 1,
		Epochs: []string{fmt.Sprintf("%016x", first%3)}}, writeAll(fmt.Appendf(nil, "row %d\n", first)))
}

// commit stores message number first.
func commit(w *Writer, first uint64) error {
	f, err := addFile(w, first)
	if err != nil {
		return err
	}
	return w.Commit(commitOf(first, f))
}

func commitOf(first uint64, files ...File) Commit {
	return Commit{Source: Source{"S", "i", first + 1}, Files: files,
		Chains: map[string]string{fmt.Sprintf("%016x.c", first%3): fmt.Sprint(first)},
		Totals: Totals{Rows: map[string]uint64{"vectors": uint64(len(files))}}}
}

// contents reads what the log names, and fails when a file is not as it says.
func contents(t *testing.T, lake string) (string, *State) {
	t.Helper()
	s, err := Load(lake)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range s.Files {
		data, err := os.ReadFile(filepath.Join(lake, f.Path))
		if err != nil || int64(len(data)) != f.Bytes {
			t.Fatalf("%s has %d bytes, %v; the log says %d", f.Path, len(data), err, f.Bytes)
		}
		all.Write(data)
	}
	return all.String(), s
}

func rowsUpTo(n uint64) string {
	var all strings.Builder
	for i := uint64(1); i <= n; i++ {
		fmt.Fprintf(&all, "row %d\n", i)
	}
	return all.String()
}

// unnamed lists the files of the lake that the log does not name.
func unnamed(t *testing.T, lake string, s *State) []string {
	t.Helper()
	named := map[string]bool{}
	for _, f := range s.Files {
		named[f.Path] = true
	}
	var out []string
	err := filepath.WalkDir(lake, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(lake, path)
		if err == nil && !d.IsDir() && !named[rel] && !logFileName.MatchString(d.Name()) &&
			!strings.HasSuffix(rel, ".files.json") {
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCommitsAreReadBackInOrderThroughManyCheckpoints(t *testing.T) {
	lake := t.TempDir()
	w := claim(t, lake, nil)
	const n = checkpointEvery*mergeAt + 70 // enough to merge manifests once
	early := new(State)
	for i := uint64(1); i <= n; i++ {
		if err := commit(w, i); err != nil {
			t.Fatal(err)
		}
		if i == 10 {
			early, _ = Load(lake)
		}
	}
	got, s := contents(t, lake)
	if got != rowsUpTo(n) {
		t.Fatalf("other rows came back than the %d that were stored", n)
	}
	if s.checkpoint == 0 || s.Version-s.checkpoint > checkpointEvery || len(s.manifests) != 2 {
		t.Errorf("version %d, checkpoint %d, %d manifests", s.Version, s.checkpoint, len(s.manifests))
	}
	p := s.Partitions[0]
	if p.Source != (Source{"S", "i", n + 1}) || s.Totals.Rows["vectors"] != n || len(p.Chains) != 3 {
		t.Errorf("source %+v, totals %+v, chains %v", p.Source, s.Totals, p.Chains)
	}
	late, err := early.Refresh(lake)
	if err != nil || len(late.Files) != n || len(early.Files) != 10 {
		t.Errorf("refreshed to %d files (%v), the state before has %d", len(late.Files), err, len(early.Files))
	}
	for _, name := range []uint64{1, 2, n} { // old entries stay readable
		if _, err := readEntry(lake, name); err != nil {
			t.Error(err)
		}
	}
	names, err := filepath.Glob(filepath.Join(lake, Folder, "*.checkpoint.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names { // checkpoints only save time
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := contents(t, lake); got != rowsUpTo(n) {
		t.Error("without checkpoints, other rows came back")
	}
	files, err := w.log.FilesOf(fmt.Sprintf("%016x", 1))
	if err != nil || len(files) != (n+2)/3 {
		t.Errorf("%d files of an epoch, %v; want %d", len(files), err, (n+2)/3)
	}
	if len(w.log.state.Files) > checkpointEvery {
		t.Errorf("the writer remembers %d files", len(w.log.state.Files))
	}
}

func TestOlderWriterIsFencedAndItsFilesAreSwept(t *testing.T) {
	lake := t.TempDir()
	old := claim(t, lake, nil)
	if err := commit(old, 1); err != nil {
		t.Fatal(err)
	}
	orphan, err := addFile(old, 2)
	if err != nil {
		t.Fatal(err)
	}
	if old.Fenced() {
		t.Error("fenced before anybody else came")
	}
	young, err := open(t, lake, nil).Claim(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := young.log.Sweep(); n != 1 || err != nil {
		t.Errorf("%d files swept, %v; want 1", n, err)
	}
	if err := old.Commit(commitOf(2, orphan)); !errors.Is(err, ErrFenced) {
		t.Fatalf("the older writer's commit: %v", err)
	}
	if _, err := addFile(old, 2); err != nil { // it may still write files; nobody sees them
		t.Fatal(err)
	}
	if err := old.Commit(commitOf(2)); !errors.Is(err, ErrFenced) || !old.Fenced() {
		t.Fatalf("the older writer's second commit: %v", err)
	}
	if err := commit(young, 2); err != nil {
		t.Fatal(err)
	}
	if got, _ := contents(t, lake); got != rowsUpTo(2) {
		t.Errorf("the lake holds %q", got)
	}
}

func TestIdleWriterNoticesThatItIsFenced(t *testing.T) {
	lake := t.TempDir()
	old := claim(t, lake, nil)
	claim(t, lake, nil)
	if !old.Fenced() {
		t.Error("not noticed")
	}
}

var errInjected = syscall.ENOSPC

// Each step of each file of a commit fails once; the commit is tried again.
func TestFailureOfAnyStepIsRetriedWithoutATrace(t *testing.T) {
	steps := countSteps(t)
	for failAt := range steps {
		lake := t.TempDir()
		n := 0
		w := claim(t, lake, nil)
		w.log.put.check = func(step, path string) error {
			if n++; n == failAt+1 {
				return fmt.Errorf("%s: %w", step, errInjected)
			}
			return nil
		}
		failed := 0
		for i := uint64(1); i <= 2; i++ {
			f, err := addFile(w, i)
			for err != nil {
				failed++
				f, err = addFile(w, i)
			}
			for err = w.Commit(commitOf(i, f)); err != nil; err = w.Commit(commitOf(i, f)) {
				failed++
				if !errors.Is(err, errInjected) {
					t.Fatal(err)
				}
			}
		}
		got, s := contents(t, lake)
		if got != rowsUpTo(2) || failed != 1 {
			t.Errorf("step %d: the lake holds %q after %d failures", failAt, got, failed)
		}
		if left := unnamed(t, lake, s); len(left) > 1 { // at most the temporary name whose removal failed
			t.Errorf("step %d: left behind: %v", failAt, left)
		}
		claim(t, lake, nil)
		if left := unnamed(t, lake, s); len(left) != 0 {
			t.Errorf("step %d: the sweep left %v", failAt, left)
		}
	}
}

// countSteps is how many steps two commits have.
func countSteps(t *testing.T) int {
	n := 0
	w := claim(t, t.TempDir(), nil)
	w.log.put.check = func(string, string) error { n++; return nil }
	for i := uint64(1); i <= 2; i++ {
		if err := commit(w, i); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// Death before each step: the writer stops there for good, and another goes on
// from the position in the log.
func TestDeathBeforeAnyStepLosesAndRepeatsNothing(t *testing.T) {
	errDead := errors.New("dead")
	for dieAt := range countSteps(t) + 20 {
		lake := t.TempDir()
		n := 0
		check := func(string, string) error {
			if n++; n > dieAt {
				return errDead
			}
			return nil
		}
		var w *Writer
		l, err := OpenLog(lake, Options{Tables: tables, Check: check})
		if err == nil {
			w, err = l.Claim(context.Background(), 0)
		}
		for i := uint64(1); err == nil && i <= 2; i++ {
			err = commit(w, i)
		}
		if _, err := Load(lake); err != nil && !errors.Is(err, ErrNoLake) {
			t.Fatalf("step %d: a reader after the death: %v", dieAt, err)
		}
		w = claim(t, lake, nil)
		for i := max(w.Start().Source.Next, 1); i <= 3; i++ {
			if err := commit(w, i); err != nil {
				t.Fatalf("step %d: %v", dieAt, err)
			}
		}
		got, s := contents(t, lake)
		if got != rowsUpTo(3) {
			t.Errorf("step %d: the lake holds %q", dieAt, got)
		}
		left := slices.DeleteFunc(unnamed(t, lake, s), func(name string) bool {
			return strings.HasPrefix(filepath.Base(name), claimTempPrefix) // too young to be swept
		})
		if len(left) != 0 {
			t.Errorf("step %d: left behind: %v", dieAt, left)
		}
	}
}

func TestCheckpointThatFailsDoesNotFailTheCommit(t *testing.T) {
	lake := t.TempDir()
	w := claim(t, lake, func(step, path string) error {
		if strings.Contains(path, ".checkpoint.") || strings.Contains(path, ".files.") {
			return errInjected
		}
		return nil
	})
	for i := uint64(1); i <= checkpointEvery+5; i++ {
		if err := commit(w, i); err != nil {
			t.Fatal(err)
		}
	}
	w.log.put.check = nil
	for i := uint64(checkpointEvery + 6); i <= 2*checkpointEvery; i++ {
		if err := commit(w, i); err != nil {
			t.Fatal(err)
		}
	}
	got, s := contents(t, lake)
	if got != rowsUpTo(2*checkpointEvery) || s.checkpoint != 2*checkpointEvery {
		t.Errorf("checkpoint %d", s.checkpoint)
	}
}

func TestSweepTouchesOnlyFilesOfDeadWriters(t *testing.T) {
	lake := t.TempDir()
	w := claim(t, lake, nil)
	if err := commit(w, 1); err != nil {
		t.Fatal(err)
	}
	keep := []string{"vectors/notes.txt", "vectors/my.parquet", "vectors/.tmp-mine", "vectors/.tmp-99-x", "README",
		"_log/.tmp-claim-young", "vectors/" + dataName("i", 0, 5, 5, 99),
		"vectors/" + dataName("i", 3, 6, 6, w.log.Version()+1), "_log/00000000000000000000.json.bak"}
	gone := []string{"vectors/.tmp-1-x", "ledger/.tmp-0-y", "_log/.tmp-1-z", "_log/.tmp-claim-old",
		"vectors/" + dataName("i", 0, 1, 1, 0), "ledger/" + dataName("j", 7, 1, 1, 1)}
	for _, name := range append(slices.Clone(keep), gone...) {
		if err := os.WriteFile(filepath.Join(lake, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * claimTempAge)
	if err := os.Chtimes(filepath.Join(lake, "_log/.tmp-claim-old"), old, old); err != nil {
		t.Fatal(err)
	}
	l := open(t, lake, nil)
	if _, err := l.Claim(context.Background(), 0); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Sweep(); n != len(gone) || err != nil {
		t.Errorf("%d files swept, %v; want %d", n, err, len(gone))
	}
	for _, name := range keep {
		if _, err := os.Stat(filepath.Join(lake, name)); err != nil {
			t.Error(err)
		}
	}
	if got, _ := contents(t, lake); got != rowsUpTo(1) {
		t.Errorf("the lake holds %q", got)
	}
}

func TestDamagedLogFilesAreErrorsThatNameThem(t *testing.T) {
	lake := t.TempDir()
	w := claim(t, lake, nil)
	for i := uint64(1); i <= checkpointEvery+3; i++ {
		if err := commit(w, i); err != nil {
			t.Fatal(err)
		}
	}
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	flip := func(b []byte) []byte { b = slices.Clone(b); b[20] ^= 1; return b }
	reseal := func(change func(*Entry)) func([]byte) []byte {
		return func(b []byte) []byte {
			var e Entry
			if err := unseal(b, &e); err != nil {
				t.Fatal(err)
			}
			change(&e)
			return seal(e)
		}
	}
	last := w.log.Version()
	for _, c := range []struct {
		what, name, says string
		damage           func([]byte) []byte
	}{
		{"cut entry", entryName(last), "second line", cut},
		{"flipped bit", entryName(last), "checksum", flip},
		{"empty entry", entryName(last), "second line", func([]byte) []byte { return nil }},
		{"format", entryName(last), "upgrade", reseal(func(e *Entry) { e.Format = 2 })},
		{"version", entryName(last), "version", reseal(func(e *Entry) { e.Version = 7 })},
		{"kind", entryName(last), "kind", reseal(func(e *Entry) { e.Kind = "rumour" })},
		{"path out of the lake", entryName(last), "lie in the lake", reseal(func(e *Entry) { e.Files[0].Path = "../x" })},
		{"foreign writer", entryName(last), "newest claim", reseal(func(e *Entry) { e.Writer = "other" })},
		{"checkpoint", checkpointName(checkpointEvery), "remove the file", cut},
		{"manifest", manifestName(checkpointEvery, 0), "named by", flip},
	} {
		path := filepath.Join(lake, Folder, c.name)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, c.damage(good), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err = Load(lake)
		if err == nil || !strings.Contains(err.Error(), c.name) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want an error with %q and the name of the file", c.what, err, c.says)
		}
		if err := os.WriteFile(path, good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(lake, Folder, entryName(last-1))); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(lake); err == nil || !strings.Contains(err.Error(), entryName(last-1)) {
		t.Errorf("a missing entry: %v", err)
	}
}

func TestFoldersWithoutALakeSayWhatToDo(t *testing.T) {
	lake := t.TempDir()
	if _, err := Load(lake); !errors.Is(err, ErrNoLake) || !strings.Contains(err.Error(), "sonde run") {
		t.Error(err)
	}
	if err := commit(claim(t, lake, nil), 1); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(lake, Folder)); err != nil {
		t.Fatal(err)
	}
	_, err := OpenLog(lake, Options{Tables: tables})
	if err == nil || !strings.Contains(err.Error(), "restore") {
		t.Errorf("a lake whose log is gone was overwritten: %v", err)
	}
}

func TestForgottenEpochsLoseTheirChainsForGood(t *testing.T) {
	lake := t.TempDir()
	w := claim(t, lake, nil)
	c := commitOf(3)
	c.Chains = map[string]string{"000000000000000a.x": "1", "000000000000000a.y": "2", "000000000000000b.x": "3"}
	c.Closed = []string{"000000000000000a"}
	if err := w.Commit(c); err != nil {
		t.Fatal(err)
	}
	if _, s := contents(t, lake); len(s.Partitions[0].Chains) != 3 || s.Partitions[0].Closed["000000000000000a"] == 0 {
		t.Errorf("%+v", s.Partitions[0])
	}
	c = commitOf(4)
	c.Chains, c.Forgotten = nil, []string{"000000000000000a"}
	if err := w.Commit(c); err != nil {
		t.Fatal(err)
	}
	_, s := contents(t, lake)
	p := s.Partitions[0]
	if !maps.Equal(p.Chains, map[string]string{"000000000000000b.x": "3"}) || len(p.Closed) != 0 ||
		!p.Forgotten["000000000000000a"] {
		t.Errorf("%+v", p)
	}
}

func TestWriteErrorsOfTheCallerArePassedOn(t *testing.T) {
	w := claim(t, t.TempDir(), nil)
	own := errors.New("own")
	_, err := w.WriteFile(DataFile{Table: "vectors", First: 1, Last: 1}, func(io.Writer) error { return own })
	if !errors.Is(err, own) {
		t.Error(err)
	}
}
