package materializer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/lakehouse"
	"sonde/lakehouse/commitlog"
	"sonde/schema"
)

// newPartitioned is a bus of so many partitions.
func newPartitioned(t testing.TB, partitions int) *bustest.Bus {
	b := bustest.NewPartitioned(partitions)
	t.Cleanup(func() { b.Close() })
	return b
}

// sharing are options of a materializer that has others beside it.
func sharing(b bus.Bus, lake string) Options {
	o := options(b, lake)
	o.Heartbeat, o.Settle = 20*time.Millisecond, 20*time.Millisecond
	return o
}

// drained waits until a lake has everything that is on the bus.
func drained(t testing.TB, b bus.Bus, lake string) {
	t.Helper()
	for range 6000 {
		s, err := commitlog.Load(lake)
		if err != nil && !errors.Is(err, lakehouse.ErrNoLake) {
			t.Fatal(err)
		}
		behind := err != nil
		for n := 0; n < b.Partitions() && !behind; n++ {
			info, err := b.Info(context.Background(), n)
			if err != nil {
				t.Fatal(err)
			}
			at := s.Sources()[n]
			behind = info.Last > 0 && (at.Next <= info.Last || at.Incarnation != info.Incarnation)
		}
		if !behind {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the lake does not come to the end of the stream")
}

// engines makes the chains of many engines, so that each partition gets some.
func engines(t testing.TB, n int, records uint64) (sources []*source, messages [][]byte) {
	r := newRandom(t)
	for i := range n {
		own := newSources(r, 1, records)
		for _, s := range own {
			s.header.Engine, s.header.Epoch = fmt.Sprint("e", i), 0xa00+uint64(i)
		}
		sources = append(sources, own...)
	}
	return sources, shuffled(r, sources, false)
}

func TestOneProcessReadsAllPartitionsWithinItsBounds(t *testing.T) {
	b, lake := newPartitioned(t, 4), t.TempDir()
	sources, messages := engines(t, 6, 30)
	publish(t, b, messages)
	o := options(b, lake)
	o.CommitBytes, o.CommitInterval = 64<<10, 100*time.Millisecond
	run := start(t, o)
	drained(t, b, lake)
	if n := len(run.m.held()); n != 4 {
		t.Errorf("it holds %d partitions", n)
	}
	for n := range 4 {
		info, err := b.Info(context.Background(), n)
		if err != nil {
			t.Fatal(err)
		}
		for run.m.Committed(n).Next <= info.Last {
			time.Sleep(time.Millisecond)
		}
	}
	if err := run.end(); err != nil {
		t.Fatal(err)
	}
	checkStored(t, lake, sources)
	s, err := commitlog.Load(lake)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range s.Files {
		if f.Bytes > 64<<10 {
			t.Errorf("%s has %d bytes", f.Path, f.Bytes)
		}
	}
}

func TestASecondMaterializerOfOnePartitionWaitsForTheFirst(t *testing.T) {
	b, lake := newBus(t), t.TempDir()
	sources, messages := engines(t, 1, 60)
	publish(t, b, messages[:len(messages)/2])
	first := start(t, sharing(b, lake))
	drained(t, b, lake)
	second := start(t, sharing(b, lake))
	time.Sleep(200 * time.Millisecond)
	if len(first.m.held()) != 1 || len(second.m.held()) != 0 {
		t.Errorf("they hold %d and %d", len(first.m.held()), len(second.m.held()))
	}
	if what := second.m.Trouble(); what != "" {
		t.Error(what)
	}
	version := loadVersion(t, lake)
	if err := first.end(); err != nil {
		t.Fatal(err)
	}
	publish(t, b, messages[len(messages)/2:])
	drained(t, b, lake)
	if err := second.end(); err != nil {
		t.Fatal(err)
	}
	checkStored(t, lake, sources)
	if loadVersion(t, lake) == version {
		t.Error("the second one wrote nothing")
	}
}

func loadVersion(t *testing.T, lake string) uint64 {
	t.Helper()
	s, err := commitlog.Load(lake)
	if err != nil {
		t.Fatal(err)
	}
	return s.Version
}

// away is a bus of one process, which falls silent and deaf as a stopped process does;
// its lake does not. Whoever took over must be the only one that commits.
type away struct {
	bus.Bus
	off atomic.Bool
}

func (a *away) Broadcast(subject string, data []byte) error {
	if a.off.Load() {
		return errors.New("away")
	}
	return a.Bus.Broadcast(subject, data)
}

func (a *away) Listen(subject string, hear func([]byte)) (func(), error) {
	return a.Bus.Listen(subject, func(data []byte) {
		if !a.off.Load() {
			hear(data)
		}
	})
}

func (a *away) Connected() bool { return !a.off.Load() }

// The silent one goes on reading and committing all the time, while others claim its
// partitions: it is fenced, drops what it had, and comes back as a member.
func TestAFencedMaterializerGivesUpAndSharesAgain(t *testing.T) {
	b, lake := newPartitioned(t, 3), t.TempDir()
	sources, messages := engines(t, 5, 30)
	zombieBus := &away{Bus: b}
	zombie := start(t, sharing(zombieBus, lake))
	publish(t, b, messages[:len(messages)/3])
	drained(t, b, lake)
	other := start(t, sharing(b, lake))
	zombieBus.off.Store(true)
	for i := len(messages) / 3; i < 2*len(messages)/3; i++ {
		publish(t, b, messages[i:i+1])
		time.Sleep(time.Millisecond)
	}
	for len(other.m.held()) < 3 {
		time.Sleep(time.Millisecond)
	}
	drained(t, b, lake)
	zombieBus.off.Store(false)
	publish(t, b, messages[2*len(messages)/3:])
	drained(t, b, lake)
	for len(zombie.m.held()) == 0 || len(other.m.held()) == 3 {
		time.Sleep(time.Millisecond)
	}
	for _, run := range []*running{zombie, other} {
		if err := run.end(); err != nil {
			t.Fatal(err)
		}
	}
	checkStored(t, lake, sources)
}

// Materializers join, leave and fall silent at random while everything is published
// twice, and each of their commits may fail for a while.
func TestRandomMembersStoreEveryRowOnce(t *testing.T) {
	r := newRandom(t)
	b, lake := newPartitioned(t, 1+r.IntN(4)), t.TempDir()
	sources, messages := engines(t, 6, 24)
	type member struct {
		run *running
		bus *away
	}
	var members []member
	join := func() {
		a := &away{Bus: b}
		o := sharing(a, lake)
		o.CommitBytes = 16 << 10
		members = append(members, member{start(t, o), a})
	}
	join()
	for len(messages) > 0 {
		n := min(1+r.IntN(24), len(messages))
		publish(t, b, messages[:n])
		messages = messages[n:]
		switch k := r.IntN(10); {
		case k < 2 && len(members) < 4:
			join()
		case k == 2 && len(members) > 1:
			i := r.IntN(len(members))
			if err := members[i].run.end(); err != nil {
				t.Fatal(err)
			}
			members = slices.Delete(members, i, i+1)
		case k < 6:
			a := members[r.IntN(len(members))].bus
			a.off.Store(!a.off.Load())
		default:
			time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
		}
	}
	for _, m := range members {
		m.bus.off.Store(false)
	}
	drained(t, b, lake)
	for _, m := range members {
		if err := m.run.end(); err != nil {
			t.Fatal(err)
		}
	}
	checkStored(t, lake, sources)
	t.Logf("%d partitions, %d entries", b.Partitions(), loadVersion(t, lake))
}

func TestAPartitionThatIsMadeAnewIsReadFromItsStartAndNoOther(t *testing.T) {
	b, lake := newPartitioned(t, 3), t.TempDir()
	sources, messages := engines(t, 5, 30)
	run := start(t, options(b, lake))
	publish(t, b, messages)
	drained(t, b, lake)
	target := 0
	for n := range 3 {
		if info, err := b.Info(context.Background(), n); err == nil && info.Messages > 0 {
			target = n
		}
	}
	before, err := commitlog.Load(lake)
	if err != nil {
		t.Fatal(err)
	}
	b.RecreatePartition(target)
	publish(t, b, messages) // everything again
	drained(t, b, lake)
	if err := run.end(); err != nil {
		t.Fatal(err)
	}
	checkStored(t, lake, sources)
	after, err := commitlog.Load(lake)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		same := before.Partitions[n].Claim == after.Partitions[n].Claim
		if same == (n == target) {
			t.Errorf("partition %d, of which %d was made anew: claimed again: %v", n, target, !same)
		}
	}
	if n := valueOf(t, run.m.metrics.recreated); n != 1 {
		t.Errorf("%v streams were made anew", n)
	}
}

// A new stream with another number of partitions has the chains elsewhere; rows that
// the table has must be found there all the same.
func TestAStreamThatIsDividedAnewRepeatsNoRow(t *testing.T) {
	lake := t.TempDir()
	sources, messages := engines(t, 5, 12)
	for _, partitions := range []int{1, 3, 2} {
		b := newPartitioned(t, partitions)
		publish(t, b, messages)
		o := options(b, lake)
		o.CommitInterval = 100 * time.Millisecond // few files: the table itself is asked
		run := start(t, o)
		drained(t, b, lake)
		if err := run.end(); err != nil {
			t.Fatal(err)
		}
		checkStored(t, lake, sources)
		for _, s := range sources { // and rows that are new are stored
			s.rows = append(s.rows, schema.Cursor{Seq: 1000 + uint64(partitions), Row: 1})
			messages = append(messages, s.message(schema.Cursor{}, len(s.rows)-1, len(s.rows)))
		}
	}
	for _, s := range sources {
		s.rows = s.rows[:len(s.rows)-1]
	}
	checkStored(t, lake, sources)
}

// Two lakes of one stream: the faster one must not have the stream forget what the
// slower one has not read.
func TestTheStreamIsTrimmedOnlyBehindTheSlowestLakeThatIsAtWork(t *testing.T) {
	b := newPartitioned(t, 2)
	slow, fast := t.TempDir(), t.TempDir()
	sources, messages := engines(t, 4, 40)
	var stuck atomic.Bool
	o := sharing(b, slow)
	o.check = func(string, string) error {
		if stuck.Load() {
			return errors.New("no space left on device")
		}
		return nil
	}
	o.retry = func(ctx context.Context) error {
		time.Sleep(time.Millisecond)
		return ctx.Err()
	}
	slowRun := start(t, o)
	publish(t, b, messages[:20])
	drained(t, b, slow)
	stuck.Store(true)
	quick := sharing(b, fast)
	quick.RetainBytes = 1
	fastRun := start(t, quick)
	publish(t, b, messages[20:])
	drained(t, b, fast)
	time.Sleep(200 * time.Millisecond)
	for n := range 2 {
		info, err := b.Info(context.Background(), n)
		if err != nil {
			t.Fatal(err)
		}
		if at := slowRun.m.Committed(n).Next; info.First > max(at, 1) {
			t.Errorf("partition %d begins at %d, and a lake is at %d", n, info.First, at)
		}
	}
	stuck.Store(false)
	drained(t, b, slow)
	for _, run := range []*running{slowRun, fastRun} {
		if err := run.end(); err != nil {
			t.Fatal(err)
		}
	}
	checkStored(t, slow, sources)
	checkStored(t, fast, sources)
}
