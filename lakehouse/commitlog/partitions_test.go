package commitlog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// part is the writer of a partition.
func part(t testing.TB, l *Log, partition int) *Writer {
	t.Helper()
	w, err := l.Claim(context.Background(), partition)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// fileOf makes the file of message number n of the writer's partition.
func fileOf(w *Writer, n uint64) (File, error) {
	return w.WriteFile(DataFile{Table: "vectors", Incarnation: "i", First: n, Last: n, Rows: 1,
		Epochs: []string{fmt.Sprintf("%016x", w.partition)}}, writeAll(fmt.Appendf(nil, "%d/%d\n", w.partition, n)))
}

// commitPart stores message number n of the writer's partition.
func commitPart(w *Writer, n uint64) error {
	f, err := fileOf(w, n)
	if err != nil {
		return err
	}
	return w.Commit(partOf(w, n, f))
}

func partOf(w *Writer, n uint64, f File) Commit {
	c := commitOf(n, f)
	c.Chains = map[string]string{fmt.Sprintf("%016x.c", w.partition): fmt.Sprint(n)}
	c.Totals.Duplicates = 1
	return c
}

// checkParts fails unless each partition holds exactly its messages up to the
// position in the log, and the totals agree.
func checkParts(t *testing.T, lake string, want map[int]uint64) {
	t.Helper()
	all, s := contents(t, lake)
	rows := map[int]uint64{}
	for line := range strings.Lines(all) {
		var partition int
		var n uint64
		if _, err := fmt.Sscanf(line, "%d/%d\n", &partition, &n); err != nil {
			t.Fatal(err)
		}
		if rows[partition]++; n != rows[partition] {
			t.Fatalf("partition %d: message %d is at the place of %d", partition, n, rows[partition])
		}
	}
	total := uint64(0)
	for n, p := range s.Partitions {
		total += rows[n]
		if rows[n] > 0 && (p.Source.Next != rows[n]+1 || p.Chains[fmt.Sprintf("%016x.c", n)] != fmt.Sprint(rows[n])) {
			t.Errorf("partition %d has %d rows, and the log says %+v, %v", n, rows[n], p.Source, p.Chains)
		}
	}
	if s.Totals.Rows["vectors"] != total || s.Totals.Duplicates != total {
		t.Errorf("totals %+v of %d rows", s.Totals, total)
	}
	if !maps.Equal(rows, want) {
		t.Errorf("rows by partition %v; want %v", rows, want)
	}
}

func TestALogOfTheFormatBeforeGoesOn(t *testing.T) {
	lake := t.TempDir()
	if err := os.CopyFS(lake, os.DirFS("testdata/format1")); err != nil {
		t.Fatal(err)
	}
	l := open(t, lake, nil)
	w, other := part(t, l, 0), part(t, l, 1)
	if p := w.Start(); p.Source != (Source{"S", "i", 67}) || len(p.Chains) != 3 || len(p.Closed) != 2 ||
		!p.Forgotten["0000000000000008"] {
		t.Errorf("partition 0 starts with %+v", p)
	}
	for i := uint64(67); i <= 130; i++ {
		if err := commit(w, i); err != nil {
			t.Fatal(err)
		}
	}
	f, err := other.WriteFile(DataFile{Table: "vectors", Incarnation: "i", First: 1, Last: 1}, writeAll([]byte("other\n")))
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Commit(Commit{Source: Source{"S", "i", 2}, Files: []File{f}}); err != nil {
		t.Fatal(err)
	}
	got, s := contents(t, lake)
	want := "row 1\nrow 17\nrow 33\nrow 49\nrow 65\n" + strings.TrimPrefix(rowsUpTo(130), rowsUpTo(66)) + "other\n"
	if got != want || s.checkpoint != 128 || s.Totals.Rows["vectors"] != 5+64 || s.Totals.Trimmed != 3 ||
		s.Lake != "25cce9e2d5cf9d6c" {
		t.Errorf("%d bytes, checkpoint %d, totals %+v, lake %q", len(got), s.checkpoint, s.Totals, s.Lake)
	}
	if !slices.Equal(slices.Sorted(maps.Keys(s.Partitions)), []int{0, 1}) {
		t.Errorf("partitions %v", s.Partitions)
	}
}

// A program of before this format must stop at the first entry that it does not know.
func TestOnlyPartitionsBeyondTheFirstNeedTheNewFormat(t *testing.T) {
	lake := t.TempDir()
	l := open(t, lake, nil)
	w, other := part(t, l, 0), part(t, l, 5)
	for i := uint64(1); i <= checkpointEvery; i++ {
		if err := errors.Join(commitPart(w, i), commitPart(other, i)); err != nil {
			t.Fatal(err)
		}
	}
	for name, format := range map[string]string{entryName(1): "1", entryName(2): "2", entryName(3): "1",
		checkpointName(checkpointEvery): "2"} {
		data, err := os.ReadFile(filepath.Join(lake, Folder, name))
		if err != nil || !strings.HasPrefix(string(data), `{"format":`+format+`,`) {
			t.Errorf("%s: %v, %.60s", name, err, data)
		}
	}
	checkParts(t, lake, map[int]uint64{0: checkpointEvery, 5: checkpointEvery})
}

// Two processes commit in turn, each an entry behind the other's; any step of either
// fails once.
func TestInterleavedWritersSurviveTheFailureOfAnyStep(t *testing.T) {
	for failAt, failed := 0, true; failed; failAt++ {
		lake, n := t.TempDir(), 0
		failed = false
		check := func(step, path string) error {
			if n++; n == failAt+1 {
				failed = true
				return fmt.Errorf("%s: %w", step, errInjected)
			}
			return nil
		}
		a, b := part(t, open(t, lake, nil), 0), part(t, open(t, lake, nil), 1)
		a.log.put.check, b.log.put.check = check, check
		for i := uint64(1); i <= 3; i++ {
			for _, w := range []*Writer{a, b} {
				f, err := fileOf(w, i)
				for err != nil {
					f, err = fileOf(w, i)
				}
				for err = w.Commit(partOf(w, i, f)); err != nil; err = w.Commit(partOf(w, i, f)) {
					if !errors.Is(err, errInjected) {
						t.Fatalf("step %d: %v", failAt, err)
					}
					other := a
					if w == a {
						other = b
					}
					if other.Fenced() { // the other one goes on while the outcome is not known
						t.Fatalf("step %d: fenced", failAt)
					}
				}
			}
		}
		checkParts(t, lake, map[int]uint64{0: 3, 1: 3})
	}
}

// Between the failed attempt of one writer and the next, another one of the same
// process commits: the entry in doubt must be found again, or made anew.
func TestDoubtOutlivesTheCommitOfAnotherPartition(t *testing.T) {
	for failAt, failed := 0, true; failed; failAt++ {
		lake, n := t.TempDir(), 0
		failed = false
		l := open(t, lake, nil)
		a, b := part(t, l, 0), part(t, l, 1)
		f, err := fileOf(a, 1)
		if err != nil {
			t.Fatal(err)
		}
		l.put.check = func(step, path string) error {
			if n++; n == failAt+1 {
				failed = true
				return fmt.Errorf("%s: %w", step, errInjected)
			}
			return nil
		}
		if err := a.Commit(partOf(a, 1, f)); err != nil && !errors.Is(err, errInjected) || (err != nil) != failed {
			t.Fatal(err)
		}
		l.put.check = nil
		if err := commitPart(b, 1); err != nil {
			t.Fatal(err)
		}
		if failed {
			if err := a.Commit(partOf(a, 1, f)); err != nil {
				t.Fatal(err)
			}
		}
		if err := commitPart(a, 2); err != nil {
			t.Fatal(err)
		}
		checkParts(t, lake, map[int]uint64{0: 2, 1: 1})
	}
}

// A stopped process that goes on between any two steps of its commit, after another
// one claimed its partition, must not commit: not at once, and not at the next try.
func TestZombieCommitsNothingAfterAnyStep(t *testing.T) {
	for stopAt, stopped := 0, true; stopped; stopAt++ {
		lake, n := t.TempDir(), 0
		stopped = false
		zombie := part(t, open(t, lake, nil), 1)
		var successor *Writer
		zombie.log.put.check = func(step, path string) error {
			if n++; n != stopAt+1 {
				return nil
			}
			stopped = true
			successor = part(t, open(t, lake, nil), 1)
			if _, err := successor.log.Sweep(); err != nil {
				t.Fatal(err)
			}
			return nil
		}
		err := commitPart(zombie, 1)
		if !stopped {
			break
		}
		next := successor.Start().Source.Next
		if (err == nil) != (next == 2) {
			t.Fatalf("step %d: the zombie's commit: %v, and its successor starts at %d", stopAt, err, next)
		}
		if err := commitPart(successor, max(next, 1)); err != nil {
			t.Fatal(err)
		}
		if f, err := fileOf(zombie, 2); err == nil {
			if err := zombie.Commit(partOf(zombie, 2, f)); !errors.Is(err, ErrFenced) || !zombie.Fenced() {
				t.Errorf("step %d: the zombie commits again: %v", stopAt, err)
			}
		}
		checkParts(t, lake, map[int]uint64{1: max(next, 1)})
	}
}

// A process that has nothing to commit must not remember all that others commit.
func TestIdleProcessForgetsWhatCheckpointsList(t *testing.T) {
	lake := t.TempDir()
	idle, busy := part(t, open(t, lake, nil), 0), part(t, open(t, lake, nil), 1)
	for i := uint64(1); i <= 3*checkpointEvery; i++ {
		if err := commitPart(busy, i); err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 && idle.Fenced() {
			t.Fatal("fenced")
		}
	}
	if n := len(idle.log.state.Files); n > checkpointEvery || idle.log.state.checkpoint != 3*checkpointEvery {
		t.Errorf("it remembers %d files, and checkpoint %d", n, idle.log.state.checkpoint)
	}
	for i := uint64(1); i <= checkpointEvery; i++ { // checkpoints of both in turn
		if err := errors.Join(commitPart(idle, i), commitPart(busy, 3*checkpointEvery+i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(idle.log.state.Files); n > checkpointEvery {
		t.Errorf("it remembers %d files", n)
	}
	if err := idle.log.Refresh(); err != nil {
		t.Fatal(err)
	}
	files, err := idle.log.FilesOf(fmt.Sprintf("%016x", 1))
	if err != nil || len(files) != 4*checkpointEvery {
		t.Errorf("%d files of the other partition, %v", len(files), err)
	}
	checkParts(t, lake, map[int]uint64{0: checkpointEvery, 1: 4 * checkpointEvery})
}

func TestPartitionsThatCannotBeAreRefused(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	for _, n := range []int{-1, MaxPartitions} {
		if _, err := l.Claim(context.Background(), n); err == nil {
			t.Errorf("partition %d was claimed", n)
		}
	}
	if !l.state.partition(0).knows("") && l.KnownElsewhere("000000000000000a", 0) {
		t.Error("an empty lake knows an epoch")
	}
}

func TestEpochsOfOtherPartitionsAreKnown(t *testing.T) {
	l := open(t, t.TempDir(), nil)
	w := part(t, l, 2)
	c := commitOf(1)
	c.Chains = map[string]string{"000000000000000a.x": "1"}
	c.Closed, c.Forgotten = []string{"000000000000000b"}, []string{"000000000000000c"}
	if err := w.Commit(c); err != nil {
		t.Fatal(err)
	}
	for _, epoch := range []string{"000000000000000a", "000000000000000b", "000000000000000c", "000000000000000d"} {
		if want := epoch[15] != 'd'; l.KnownElsewhere(epoch, 0) != want || l.KnownElsewhere(epoch, 2) {
			t.Errorf("epoch %s", epoch)
		}
	}
	own := part(t, l, 0)
	c = commitOf(2)
	c.Chains = map[string]string{"000000000000000a.y": "1", "000000000000000c.y": "1", "000000000000000d.y": "1"}
	if err := own.Commit(c); err != nil {
		t.Fatal(err)
	}
	if got := l.Divided(0); !slices.Equal(got, []string{"000000000000000a", "000000000000000c"}) {
		t.Errorf("divided epochs %v", got)
	}
}

// Processes join, claim, commit, die at any step, stop and go on as zombies; the
// oracle is that each partition holds each of its messages once, in order.
func TestRandomProcessesStoreEveryMessageOnce(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for round := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, round))
		t.Logf("seed %d, round %d", seed, round)
		newModel(t, r).run(250)
	}
}

// model is the world of the random test.
type model struct {
	t          *testing.T
	r          *rand.Rand
	lake       string
	partitions int
	processes  []*process
	fenced     int
}

// process is one Log with the writers that it believes in.
type process struct {
	log     *Log
	writers map[int]*writing
	dieIn   int // steps until it dies; 0: it lives on
	dead    bool
}

// writing is a partition that a process believes to own: the message that it would
// store next, whatever others do.
type writing struct {
	w    *Writer
	next uint64
	file *File // written and not committed
}

var errDead = errors.New("dead")

func newModel(t *testing.T, r *rand.Rand) *model {
	return &model{t: t, r: r, lake: t.TempDir(), partitions: 1 + r.IntN(4)}
}

func (m *model) run(steps int) {
	for range steps {
		if len(m.processes) == 0 || len(m.processes) < 4 && m.r.IntN(30) == 0 {
			m.join()
			continue
		}
		p := m.processes[m.r.IntN(len(m.processes))]
		switch k := m.r.IntN(100); {
		case k < 3:
			p.dieIn = 1 + m.r.IntN(12)
		case k < 5:
			p.dead = true // leaves
		case k < 15:
			m.claim(p)
		case k < 17:
			_, err := p.log.Sweep()
			m.survives(p, err)
		default:
			m.work(p)
		}
		m.processes = slices.DeleteFunc(m.processes, func(p *process) bool { return p.dead })
	}
	m.finish()
}

func (m *model) join() {
	p := &process{writers: map[int]*writing{}}
	p.log = open(m.t, m.lake, nil)
	p.log.put.check = func(string, string) error {
		if p.dieIn > 0 {
			if p.dieIn--; p.dieIn == 0 {
				p.dead = true
			}
		}
		if p.dead {
			return errDead
		}
		return nil
	}
	m.processes = append(m.processes, p)
}

// survives fails the test for an error that is not the death of the process.
func (m *model) survives(p *process, err error) bool {
	if err != nil && !p.dead {
		m.t.Fatal(err)
	}
	return err == nil
}

func (m *model) claim(p *process) {
	n := m.r.IntN(m.partitions)
	w, err := p.log.Claim(context.Background(), n)
	if m.survives(p, err) {
		p.writers[n] = &writing{w: w, next: max(w.Start().Source.Next, 1)}
	}
}

// work writes a file, or commits it.
func (m *model) work(p *process) {
	if len(p.writers) == 0 {
		m.claim(p)
		return
	}
	held := slices.Sorted(maps.Keys(p.writers))
	n := held[m.r.IntN(len(held))]
	at := p.writers[n]
	if at.file == nil {
		f, err := fileOf(at.w, at.next)
		if m.survives(p, err) {
			at.file = &f
		}
		return
	}
	err := at.w.Commit(partOf(at.w, at.next, *at.file))
	if errors.Is(err, ErrFenced) {
		m.fenced++
		delete(p.writers, n)
	} else if m.survives(p, err) {
		at.next, at.file = at.next+1, nil
	}
}

// finish has one process store the rest, and asks the oracle.
func (m *model) finish() {
	l := open(m.t, m.lake, nil)
	want := map[int]uint64{}
	for n := range m.partitions {
		w := part(m.t, l, n)
		next := max(w.Start().Source.Next, 1)
		for i := next; i < next+3; i++ {
			if err := commitPart(w, i); err != nil {
				m.t.Fatal(err)
			}
		}
		want[n] = next + 2
	}
	if _, err := l.Sweep(); err != nil {
		m.t.Fatal(err)
	}
	checkParts(m.t, m.lake, want)
	_, s := contents(m.t, m.lake)
	left := slices.DeleteFunc(unnamed(m.t, m.lake, s), func(name string) bool {
		return strings.HasPrefix(filepath.Base(name), claimTempPrefix) // too young to be swept
	})
	if len(left) > 0 {
		m.t.Errorf("left behind: %v", left)
	}
	m.t.Logf("%d partitions, rows %v, %d commits fenced, version %d", m.partitions, want, m.fenced, s.Version)
}
