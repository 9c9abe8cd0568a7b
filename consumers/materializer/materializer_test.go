package materializer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/deadletter"
	"sonde/lakehouse"
	"sonde/schema"
)

func newBus(t testing.TB) *bustest.Bus {
	b := bustest.New()
	t.Cleanup(func() { b.Close() })
	return b
}

// valueOf reads a counter.
func valueOf(t testing.TB, c prometheus.Counter) float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(c)
	got, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return got[0].GetMetric()[0].GetCounter().GetValue()
}

// options commit often, and try again at once.
func options(b bus.Bus, lake string) Options {
	return Options{Bus: b, Lake: lake, CommitInterval: 5 * time.Millisecond, RetainBytes: 1 << 40, Settle: -1,
		retry: func(ctx context.Context) error { return ctx.Err() }}
}

// running is a materializer at work.
type running struct {
	t    testing.TB
	m    *Materializer
	b    bus.Bus
	stop context.CancelFunc
	done chan error
}

func start(t testing.TB, o Options) *running {
	t.Helper()
	m, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t, m, o.Bus, cancel, make(chan error, 1)}
	go func() { r.done <- m.Run(ctx) }()
	t.Cleanup(cancel)
	return r
}

// drain waits until everything on the bus is committed.
func (r *running) drain() {
	r.t.Helper()
	info, err := r.b.Info(context.Background(), 0)
	if err != nil {
		r.t.Fatal(err)
	}
	for r.m.Committed(0).Next <= info.Last || r.m.Committed(0).Incarnation != info.Incarnation {
		select {
		case err := <-r.done:
			r.t.Fatalf("the materializer ended at position %d: %v", r.m.Committed(0).Next, err)
		case <-time.After(time.Millisecond):
		}
	}
}

// end stops it and returns what Run said.
func (r *running) end() error {
	r.stop()
	return <-r.done
}

// materialize runs one until everything is committed.
func materialize(t testing.TB, o Options) *Materializer {
	t.Helper()
	r := start(t, o)
	r.drain()
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	return r.m
}

func TestEveryRowIsStoredOnceWhateverWasPublishedTwice(t *testing.T) {
	for _, disorder := range []bool{false, true} {
		r := newRandom(t)
		b, lake := newBus(t), t.TempDir()
		sources := newSources(r, 2, 60)
		publish(t, b, shuffled(r, sources, disorder))
		m := materialize(t, options(b, lake))
		checkStored(t, lake, sources)
		if valueOf(t, m.metrics.duplicates) == 0 {
			t.Error("no duplicate was counted")
		}
	}
}

func TestRestartsAnywhereStoreEveryRowOnce(t *testing.T) {
	r := newRandom(t)
	b, lake := newBus(t), t.TempDir()
	sources := newSources(r, 2, 80)
	messages := shuffled(r, sources, false)
	for len(messages) > 0 {
		n := min(1+r.IntN(20), len(messages))
		publish(t, b, messages[:n])
		messages = messages[n:]
		run := start(t, options(b, lake))
		if r.IntN(2) == 0 {
			run.drain()
		}
		if err := run.end(); err != nil {
			t.Fatal(err)
		}
	}
	materialize(t, options(b, lake))
	checkStored(t, lake, sources)
}

func TestAStreamMadeAnewRepeatsNoRow(t *testing.T) {
	r := newRandom(t)
	b, lake := newBus(t), t.TempDir()
	sources := newSources(r, 1, 60)
	messages := shuffled(r, sources, false)
	publish(t, b, messages[:len(messages)/2])
	run := start(t, options(b, lake))
	run.drain()
	b.Recreate()
	publish(t, b, messages[len(messages)/3:]) // the agent repeats what it is not sure of
	for valueOf(t, run.m.metrics.recreated) == 0 {
		time.Sleep(time.Millisecond)
	}
	run.drain()
	if err := run.end(); err != nil {
		t.Fatal(err)
	}
	checkStored(t, lake, sources)
	if n := valueOf(t, run.m.metrics.recreated); n != 1 {
		t.Errorf("said %v times that the stream is another one", n)
	}
	b.Recreate() // while nobody runs, and shorter than before
	publish(t, b, messages[:3])
	if m := materialize(t, options(b, lake)); valueOf(t, m.metrics.recreated) != 1 {
		t.Error("did not notice that the stream is another one")
	}
	checkStored(t, lake, sources)
}

func TestUndecodableMessagesAreKeptNamedAndPassedBy(t *testing.T) {
	r := newRandom(t)
	b, lake, dir := newBus(t), t.TempDir(), t.TempDir()
	sources := newSources(r, 1, 30)
	messages := shuffled(r, sources, false)
	e, err := schema.NewVectorEncoder(schema.Header{Tenant: "t", Epoch: 0xbad, Hook: "z", Layer: 5, Shard: 1, DType: "u8"})
	if err != nil {
		t.Fatal(err)
	}
	for row := range uint32(3) {
		if err := e.Append(schema.VectorRow{Seq: 9, Row: row, Vec: []byte{1}}); err != nil {
			t.Fatal(err)
		}
	}
	damaged, _, err := e.Encode(schema.Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	damaged = damaged[:len(damaged)-60] // the header can be read, the rows cannot
	bad := [][]byte{[]byte("nonsense"), {}, damaged, damaged, messages[0][:100]}
	publish(t, b, append(append(messages[:5:5], bad...), messages[5:]...))
	o := options(b, lake)
	o.DeadLetterDir = dir
	m := materialize(t, o)
	checkStored(t, lake, sources)
	if got := valueOf(t, m.metrics.deadLetters); got != 5 {
		t.Errorf("%v dead letters; want 5", got)
	}
	kept, err := deadletter.List(dir)
	if err != nil || len(kept) != 4 { // two of them are the same message
		t.Errorf("%d messages are kept, %v", len(kept), err)
	}
	for _, k := range kept {
		if k.Err != nil || k.From != deadletter.FromMaterializer || k.Position == 0 || k.Reason == "" || k.Subject == "" {
			t.Errorf("letter %+v", k)
		}
	}
	l, err := lakehouse.Open(lake)
	if err != nil {
		t.Fatal(err)
	}
	facts := 0
	err = l.Ledger(context.Background(), lakehouse.Query{}, func(f *lakehouse.Fact) error {
		if f.Fact == schema.FactDeadLetter {
			facts++
			if f.Epoch != 0xbad || f.CaptureSeq != 9 || f.FirstRow != 0 || f.Rows != 3 || f.Hook != "z" || f.Layer != 5 {
				t.Errorf("fact %+v", f)
			}
		}
		return nil
	})
	if err != nil || facts != 1 {
		t.Errorf("%d facts name the damaged message, %v; want 1", facts, err)
	}
	if l.Totals().DeadLetters != 5 {
		t.Errorf("the log counts %d dead letters", l.Totals().DeadLetters)
	}
}

func TestAFullDeadLetterFolderKeepsCountingAndStopsNothing(t *testing.T) {
	b, lake, dir := newBus(t), t.TempDir(), t.TempDir()
	var messages [][]byte
	for i := range 10 {
		messages = append(messages, fmt.Appendf(nil, "nonsense %0100d", i))
	}
	publish(t, b, messages)
	o := options(b, lake)
	o.DeadLetterDir, o.DeadLetterMaxBytes = dir, 2400
	m := materialize(t, o)
	if n := valueOf(t, m.metrics.discarded); n < 5 || n > 9 {
		t.Errorf("%v of 10 messages were not kept", n)
	}
	size := int64(0)
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		info, err := n.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size > 2400 || size == 0 {
		t.Errorf("the folder has %d bytes", size)
	}
	if _, bytes := materialize(t, o).dead.Size(); bytes != size {
		t.Errorf("a restart measures %d bytes; there are %d", bytes, size)
	}
}

func TestAFullDiskDelaysAndHidesEverything(t *testing.T) {
	r := newRandom(t)
	b, lake := newBus(t), t.TempDir()
	sources := newSources(r, 1, 15)
	publish(t, b, shuffled(r, sources, false))
	o := options(b, lake)
	var full atomic.Bool
	full.Store(true)
	var failures atomic.Int64
	o.check = func(step, path string) error { // the entry of the log never fits, data files sometimes do
		if step == "write" && full.Load() && !strings.Contains(path, ".tmp-claim-") &&
			(!strings.Contains(path, ".parquet") || r.IntN(3) > 0) {
			return &os.PathError{Op: "write", Path: path, Err: syscall.ENOSPC}
		}
		return nil
	}
	o.retry = func(ctx context.Context) error {
		if failures.Add(1) == 30 {
			full.Store(false)
		}
		if rows := len(stored(t, lake)); rows > 0 {
			t.Errorf("%d rows of a commit that failed can be seen", rows)
		}
		return ctx.Err()
	}
	o.CommitBytes = 1 // nearly each message is a commit
	m := materialize(t, o)
	if n := valueOf(t, m.metrics.failures); n != 30 {
		t.Errorf("%v failures were counted; want 30", n)
	}
	checkStored(t, lake, sources)
}

func TestReadersSeeWholeCommitsWhileItWrites(t *testing.T) {
	r := newRandom(t)
	b, lake := newBus(t), t.TempDir()
	sources := newSources(r, 1, 60)
	o := options(b, lake)
	o.CommitBytes = 4 << 10
	run := start(t, o)
	publish(t, b, shuffled(r, sources, false))
	var l *lakehouse.Lake
	last := -1
	for done := false; !done; {
		info, err := b.Info(context.Background(), 0)
		if err != nil {
			t.Fatal(err)
		}
		done = run.m.Committed(0).Next > info.Last
		if l == nil {
			if l, err = lakehouse.Open(lake); errors.Is(err, lakehouse.ErrNoLake) {
				continue
			}
		} else {
			err = l.Refresh()
		}
		if err != nil {
			t.Fatal(err)
		}
		rows := 0
		count := func(*lakehouse.Vector) error { rows++; return nil }
		if err := l.Vectors(context.Background(), lakehouse.Query{}, count); err != nil {
			t.Fatal(err)
		}
		if rows < last || uint64(rows) != l.Totals().Rows["vectors"] {
			t.Fatalf("version %d has %d rows, and its log counts %d; the one before had %d", l.Version(), rows,
				l.Totals().Rows["vectors"], last)
		}
		last = rows
	}
	if err := run.end(); err != nil {
		t.Fatal(err)
	}
	checkStored(t, lake, sources)
}

func TestTheStreamIsTrimmedOnlyBehindTheCommit(t *testing.T) {
	r := newRandom(t)
	b, lake := newBus(t), t.TempDir()
	sources := newSources(r, 1, 100)
	messages := shuffled(r, sources, false)
	o := options(b, lake)
	o.RetainBytes = 20 << 10
	run := start(t, o)
	for len(messages) > 0 {
		n := min(10, len(messages))
		publish(t, b, messages[:n])
		messages = messages[n:]
		info, err := b.Info(context.Background(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if info.First > run.m.Committed(0).Next && run.m.Committed(0).Next > 0 {
			t.Fatalf("the stream begins at %d, and the table ends at %d", info.First, run.m.Committed(0).Next)
		}
	}
	run.drain()
	for { // one more commit interval
		info, err := b.Info(context.Background(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if info.Bytes < 40<<10 {
			if info.Bytes < 5<<10 {
				t.Errorf("only %d bytes are left", info.Bytes)
			}
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := run.end(); err != nil {
		t.Fatal(err)
	}
	checkStored(t, lake, sources)
}

func TestNothingIsTrimmedBeforeItIsCommittedEvenWhenNothingIsRetained(t *testing.T) {
	r := newRandom(t)
	b, lake := newBus(t), t.TempDir()
	sources := newSources(r, 1, 40)
	publish(t, b, shuffled(r, sources, false))
	o := options(b, lake)
	o.RetainBytes, o.CommitBytes = 0, 4<<10
	m := materialize(t, o)
	checkStored(t, lake, sources)
	if n := valueOf(t, m.metrics.trimmed); n != 0 {
		t.Errorf("%v messages were trimmed before they were read", n)
	}
}

func TestChainsInOrderAreOneMarkInTheLogWhateverLiesBetweenTheirRows(t *testing.T) {
	b, lake := newBus(t), t.TempDir()
	s := gappy(50)
	prev := schema.Cursor{}
	for i := range s.rows {
		publish(t, b, [][]byte{s.message(prev, i, i+1)})
		prev = schema.Cursor{Seq: s.rows[i].Seq, Row: s.rows[i].Row + 1}
	}
	materialize(t, options(b, lake))
	chains := loadState(t, lake).Chains
	if got := chains[s.header.Chain().String()]; len(chains) != 1 || got != prev.String() {
		t.Errorf("chains in the log: %v; want the mark %s", chains, prev)
	}
}

func TestMessagesThatWereTrimmedBeforeTheyWereReadAreCounted(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b, lake := newBus(t), t.TempDir()
	sources := newSources(r, 1, 40)
	messages := shuffled(r, sources, false)
	publish(t, b, messages[:10])
	materialize(t, options(b, lake))
	publish(t, b, messages[10:])
	if err := b.Trim(context.Background(), 0, 16); err != nil {
		t.Fatal(err)
	}
	m := materialize(t, options(b, lake))
	if n := valueOf(t, m.metrics.trimmed); n != 5 {
		t.Errorf("%v messages counted as lost; want 5", n)
	}
	stored(t, lake) // nothing twice
	l, err := lakehouse.Open(lake)
	if err != nil || l.Totals().Trimmed != 5 {
		t.Errorf("the log counts %d, %v", l.Totals().Trimmed, err)
	}
}
