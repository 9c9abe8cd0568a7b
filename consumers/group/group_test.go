package group

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
)

const period = 20 * time.Millisecond

// world is what really holds each partition, by what the holds say.
type world struct {
	mu     sync.Mutex
	tokens uint64
	holder map[int]string
	now    map[string]map[int]bool
	fenced int
}

func newWorld() *world { return &world{holder: map[int]string{}, now: map[string]map[int]bool{}} }

// hold is a Hold whose partition is fenced when a later one takes it.
func (w *world) hold(name string) Hold {
	return func(ctx context.Context, partition int, holds func(uint64)) error {
		w.mu.Lock()
		w.tokens++
		token := w.tokens
		w.holder[partition] = fmt.Sprint(name, token)
		if w.now[name] == nil {
			w.now[name] = map[int]bool{}
		}
		w.now[name][partition] = true
		w.mu.Unlock()
		holds(token)
		defer func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			delete(w.now[name], partition)
		}()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(period / 4):
				w.mu.Lock()
				fenced := w.holder[partition] != fmt.Sprint(name, token)
				if fenced {
					w.fenced++
				}
				w.mu.Unlock()
				if fenced {
					return fmt.Errorf("partition %d: %w", partition, ErrFenced)
				}
			}
		}
	}
}

// held is what a member works on now.
func (w *world) held(name string) []int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.now[name]))
}

// joined is a member at work.
type joined struct {
	m    *Member
	stop context.CancelFunc
	done chan error
}

func join(t *testing.T, w *world, b bus.Bus, name string, o Options) *joined {
	t.Helper()
	o.Bus, o.Kind, o.Name, o.Period = b, "materializer", "g"+o.Name, period
	if o.Settle == 0 {
		o.Settle = period
	}
	m, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	j := &joined{m, cancel, make(chan error, 1)}
	go func() { j.done <- m.Run(ctx, w.hold(name)) }()
	t.Cleanup(cancel)
	return j
}

func (j *joined) leave(t *testing.T) {
	t.Helper()
	j.stop()
	if err := <-j.done; err != nil {
		t.Error(err)
	}
}

// until waits for a state that lasts for some periods.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	lasting := 0
	for range 2000 {
		if lasting++; !holds() {
			lasting = 0
		}
		if lasting > 8 {
			return
		}
		time.Sleep(period / 4)
	}
	t.Fatal("never: " + what)
}

// shared reports whether each partition has one holder, and no member two more than
// another.
func (w *world) shared(partitions int, names ...string) func() bool {
	return func() bool {
		var all []int
		least, most := partitions, 0
		for _, name := range names {
			held := w.held(name)
			all = append(all, held...)
			least, most = min(least, len(held)), max(most, len(held))
		}
		slices.Sort(all)
		if len(all) != partitions || most-least > 1 {
			return false
		}
		for i, p := range all {
			if p != i {
				return false
			}
		}
		return true
	}
}

func TestMembersShareJoinAndLeaveWithoutBeingFenced(t *testing.T) {
	b, w := bustest.NewPartitioned(5), newWorld()
	defer b.Close()
	first := join(t, w, b, "a", Options{})
	until(t, "the first has all", w.shared(5, "a"))
	second, third := join(t, w, b, "b", Options{}), join(t, w, b, "c", Options{})
	until(t, "three share", w.shared(5, "a", "b", "c"))
	before := w.held("c")
	first.leave(t)
	until(t, "two share", w.shared(5, "b", "c"))
	if kept := w.held("c"); !slices.Contains(kept, before[0]) {
		t.Errorf("c had %v and has %v", before, kept)
	}
	second.leave(t)
	until(t, "the last has all", w.shared(5, "c"))
	if n := third.m.Held(); n != 5 {
		t.Errorf("it says that it holds %d", n)
	}
	third.leave(t)
	if w.fenced > 0 {
		t.Errorf("%d partitions were taken from living members", w.fenced)
	}
}

func TestMoreMembersThanPartitionsStandBy(t *testing.T) {
	b, w := bustest.NewPartitioned(2), newWorld()
	defer b.Close()
	first := join(t, w, b, "a", Options{})
	until(t, "alone", w.shared(2, "a"))
	for _, name := range []string{"b", "c", "d"} {
		join(t, w, b, name, Options{})
	}
	until(t, "two of four work", w.shared(2, "a", "b", "c", "d"))
	first.leave(t)
	until(t, "two of three work", w.shared(2, "b", "c", "d"))
}

// deaf is a bus that a process does not reach for a while although it goes on: what
// others see of a process that stands still.
type deaf struct {
	bus.Bus
	mu  sync.Mutex
	off bool
}

func (d *deaf) set(off bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = off
}

func (d *deaf) is() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.off
}

func (d *deaf) Connected() bool { return !d.is() }

func (d *deaf) Broadcast(subject string, data []byte) error {
	if d.is() {
		return errors.New("not connected")
	}
	return d.Bus.Broadcast(subject, data)
}

func (d *deaf) Listen(subject string, hear func([]byte)) (func(), error) {
	return d.Bus.Listen(subject, func(data []byte) {
		if !d.is() {
			hear(data)
		}
	})
}

func TestASilentMemberIsReplacedAndItsReturnTakesNothingAway(t *testing.T) {
	b, w := bustest.NewPartitioned(4), newWorld()
	defer b.Close()
	d := &deaf{Bus: b}
	join(t, w, d, "a", Options{})
	until(t, "alone", w.shared(4, "a"))
	other := join(t, w, b, "b", Options{})
	until(t, "two share", w.shared(4, "a", "b"))
	d.set(true)
	until(t, "the other has all", func() bool { return len(w.held("b")) == 4 && len(w.held("a")) == 0 })
	if len(w.held("a")) != 0 {
		t.Error("a member that hears nothing took partitions back")
	}
	d.set(false)
	until(t, "two share again", w.shared(4, "a", "b"))
	if n := len(other.m.peers); n > 1 {
		t.Errorf("%d peers are remembered", n)
	}
}

// A broker that goes away tells nobody anything; nobody must take that for a death.
func TestABrokerThatIsAwayMovesNothing(t *testing.T) {
	b, w := bustest.NewPartitioned(4), newWorld()
	defer b.Close()
	join(t, w, b, "a", Options{})
	join(t, w, b, "b", Options{})
	until(t, "two share", w.shared(4, "a", "b"))
	a := w.held("a")
	b.Stop()
	time.Sleep(3 * deadAfter * period)
	if got := w.held("a"); !slices.Equal(got, a) {
		t.Errorf("a had %v and has %v", a, got)
	}
	b.Start()
	time.Sleep(3 * deadAfter * period)
	if got := w.held("a"); !slices.Equal(got, a) {
		t.Errorf("a had %v and has %v", a, got)
	}
}

// mute is a bus that takes broadcasts and brings none: a right is missing.
type mute struct{ bus.Bus }

func (mute) Broadcast(string, []byte) error { return nil }

func TestWithoutTheRightToBroadcastAMemberWorksAlone(t *testing.T) {
	b, w := bustest.NewPartitioned(2), newWorld()
	defer b.Close()
	j := join(t, w, mute{b}, "a", Options{})
	for j.m.Trouble() == "" {
		time.Sleep(period / 4)
	}
	until(t, "alone", w.shared(2, "a"))
	if what := j.m.Trouble(); what != "" {
		t.Error(what)
	}
}

func TestAPartitionIsTakenFromAHolderThatNeverGivesItUp(t *testing.T) {
	b, w := bustest.NewPartitioned(2), newWorld()
	defer b.Close()
	stop := make(chan struct{})
	var sender sync.WaitGroup
	defer sender.Wait()
	defer close(stop)
	sender.Go(func() { // an older member that holds everything for ever
		data, _ := json.Marshal(heartbeat{Kind: "materializer", Group: "g", Member: "old", Since: 1,
			Held: map[int]uint64{0: 0, 1: 0}})
		for {
			select {
			case <-stop:
				return
			case <-time.After(period):
				_ = b.Broadcast(Subject, data) // lost heartbeats are part of life
			}
		}
	})
	join(t, w, b, "a", Options{Settle: 5 * period})
	until(t, "the younger member works", func() bool { return len(w.held("a")) > 0 })
}

func TestForeignHeartbeatsAreDataAndBounded(t *testing.T) {
	b, w := bustest.NewPartitioned(3), newWorld()
	defer b.Close()
	j := join(t, w, b, "a", Options{})
	until(t, "alone", w.shared(3, "a"))
	for i := range 2000 {
		data, _ := json.Marshal(heartbeat{Kind: "materializer", Group: fmt.Sprint("g", i), Member: fmt.Sprint(i),
			Positions: map[int]uint64{-1: 1, 2: 7, 1 << 20: 1}})
		for _, text := range []string{string(data), "", "{", `{"member":"x"}`, `{"kind":"materializer","group":"g","member":"",}`,
			`{"kind":"detector","group":"g","member":"d","since":1}`, `{"kind":"materializer","group":"g","held":{"a":1}}`} {
			if err := b.Broadcast(Subject, []byte(text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	until(t, "still alone", w.shared(3, "a"))
	if next, known := j.m.Slowest(2); !known || next != 7 {
		t.Errorf("others are at %d, %v", next, known)
	}
	if _, known := j.m.Slowest(1); known {
		t.Error("a position was made up")
	}
	j.m.mu.Lock()
	defer j.m.mu.Unlock()
	if len(j.m.others) > maxMembers {
		t.Errorf("%d groups are remembered", len(j.m.others))
	}
}

func TestTheErrorOfAHoldEndsTheMember(t *testing.T) {
	b := bustest.NewPartitioned(2)
	defer b.Close()
	m, err := New(Options{Bus: b, Kind: "detector", Name: "g", Settle: -1})
	if err != nil {
		t.Fatal(err)
	}
	own := errors.New("own")
	var ended sync.WaitGroup
	ended.Add(1)
	err = m.Run(context.Background(), func(ctx context.Context, partition int, holds func(uint64)) error {
		if partition == 0 {
			return own
		}
		<-ctx.Done()
		ended.Done()
		return nil
	})
	if !errors.Is(err, own) {
		t.Error(err)
	}
	ended.Wait()
	for _, o := range []Options{{}, {Bus: b}, {Bus: b, Name: "x"}, {Bus: b, Kind: "k", Name: string(make([]byte, 300))}} {
		if _, err := New(o); err == nil {
			t.Errorf("taken: %+v", o)
		}
	}
}

// Members join, leave, and fall silent at random; whenever that ends, the living ones
// share all partitions.
func TestRandomMembersAlwaysComeToShare(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	b, w := bustest.NewPartitioned(6), newWorld()
	defer b.Close()
	type one struct {
		name string
		j    *joined
		d    *deaf
	}
	var all []one
	for i := range 24 {
		switch k := r.IntN(4); {
		case len(all) < 2 || k == 0 && len(all) < 8:
			d := &deaf{Bus: b}
			name := fmt.Sprint("m", i)
			all = append(all, one{name, join(t, w, d, name, Options{}), d})
		case k == 1:
			n := r.IntN(len(all))
			all[n].j.leave(t)
			all = slices.Delete(all, n, n+1)
		default:
			d := all[r.IntN(len(all))].d
			d.set(!d.is())
		}
		time.Sleep(time.Duration(r.IntN(int(6 * period))))
	}
	var names []string
	for _, m := range all {
		m.d.set(false)
		names = append(names, m.name)
	}
	until(t, "all share", w.shared(6, names...))
	for _, m := range all {
		m.j.leave(t)
	}
}
