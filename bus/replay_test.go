package bus_test

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"sonde/bus"
)

// Replay from a time must not leave out what was stored at it, nor give what was
// stored before.
func TestASubscriptionStartsAtATime(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		p := newPublisher(b, "p", 100)
		for i := range 12 {
			p.publish(deadline(t), i)
			p.waiting.Wait()
			time.Sleep(2 * time.Millisecond) // so that their times differ
		}
		all := p.read(t, bus.SubscribeOptions{})
		var stored []bus.Delivery
		for range 12 {
			stored = append(stored, next(t, all))
		}
		from := func(since time.Time) uint64 {
			t.Helper()
			return next(t, p.read(t, bus.SubscribeOptions{Since: since})).Seq
		}
		for _, i := range []int{0, 1, 7, 11} {
			if got := from(stored[i].Stored); got != stored[i].Seq {
				t.Errorf("since %s: position %d, want %d", stored[i].Stored, got, stored[i].Seq)
			}
		}
		if got := from(stored[3].Stored.Add(time.Millisecond)); got != 5 {
			t.Errorf("a moment after position 4: position %d", got)
		}
		if got := from(time.Unix(1, 0)); got != 1 {
			t.Errorf("since long ago: position %d", got)
		}
		if err := b.Trim(deadline(t), p.partition(), 6); err != nil {
			t.Fatal(err)
		}
		if got := from(stored[2].Stored); got != 6 {
			t.Errorf("since a time that was trimmed: position %d", got)
		}
		if got := next(t, p.read(t, bus.SubscribeOptions{From: 8, Since: stored[10].Stored})).Seq; got != 8 {
			t.Errorf("a position goes before a time: %d", got)
		}
		late := p.read(t, bus.SubscribeOptions{Since: time.Now().Add(time.Hour)})
		p.publish(deadline(t), 12)
		if d := next(t, late); d.Seq != 13 {
			t.Errorf("since a time to come: position %d", d.Seq)
		}
		publishTo(t, b, "sonde.v1.tenant.p.0.other")
		filtered := bus.SubscribeOptions{Since: stored[8].Stored, Filters: []string{"sonde.v1.*.*.*.other"}}
		if got := next(t, p.read(t, filtered)).Seq; got != 14 {
			t.Errorf("since a time with a filter: position %d", got)
		}
	})
}

// A reader that does not keep up is behind, and that is all: publishing goes on, the
// others read on, and it finds everything when it comes.
func TestASlowReaderIsLagAndNeverLoss(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		p := newPublisher(b, "p", 1<<20)
		slow, fast := p.read(t, bus.SubscribeOptions{}), p.read(t, bus.SubscribeOptions{})
		const messages = 120 // more than a reader takes ahead
		p.publish(deadline(t), 0)
		next(t, slow)
		for i := 1; i < messages; i++ {
			p.publish(deadline(t), i)
		}
		p.waiting.Wait()
		for _, s := range []bus.Subscription{fast, slow} {
			want := 0
			if s == slow {
				want = 1
			}
			for ; want < messages; want++ {
				d := next(t, s)
				if d.Seq != uint64(want)+1 || binary.LittleEndian.Uint64(d.Data) != uint64(want) {
					t.Fatalf("message %d: got position %d", want, d.Seq)
				}
			}
		}
	})
}

// Two readers of the same partition must not take anything from each other, whatever
// happens to one of them.
func TestReadersDoNotInfluenceEachOther(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b, other := k.open(t, 0), k.open(t, 0)
		p := newPublisher(b, "p", 100)
		o := bus.SubscribeOptions{Partition: p.partition()}
		one, two, three := subscribe(t, b, o), subscribe(t, b, o), subscribe(t, other, o)
		filtered := p.read(t, bus.SubscribeOptions{Filters: []string{p.subject()}})
		for i := range 20 {
			p.publish(deadline(t), i)
		}
		p.waiting.Wait()
		for i := range uint64(20) {
			if i == 5 {
				one.Close()
			}
			if i < 5 && next(t, one).Seq != i+1 {
				t.Fatalf("the first reader misses position %d", i+1)
			}
			for name, s := range map[string]bus.Subscription{"second": two, "third": three, "filtered": filtered} {
				if d := next(t, s); d.Seq != i+1 {
					t.Fatalf("the %s reader got position %d, not %d", name, d.Seq, i+1)
				}
			}
		}
		// One that is trimmed past does not take the others with it.
		lost := p.read(t, bus.SubscribeOptions{From: 3})
		if err := b.Trim(deadline(t), p.partition(), 21); err != nil {
			t.Fatal(err)
		}
		if d, err := lost.Next(deadline(t)); err == nil && d.Seq != 3 || err != nil && !errors.Is(err, bus.ErrTrimmed) {
			t.Errorf("got position %d, %v", d.Seq, err)
		}
		p.publish(deadline(t), 20)
		for _, s := range []bus.Subscription{two, three, filtered} {
			if d := next(t, s); d.Seq != 21 {
				t.Errorf("after a trim: position %d", d.Seq)
			}
		}
	})
}

// A stream that is made anew and happens to end where the old one did looks, to who
// waits at its end, as if nothing had happened.
func TestAWaitingReaderHearsThatItsStreamWasMadeAnew(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		p := newPublisher(b, "p", 10)
		s := p.read(t, bus.SubscribeOptions{})
		for i := range 5 {
			p.publish(deadline(t), i)
		}
		for range 5 {
			next(t, s)
		}
		told := make(chan error, 1)
		go func() {
			d, err := s.Next(deadline(t))
			if err == nil {
				err = errors.New("got " + d.Subject)
			}
			told <- err
		}()
		p.waiting.Wait()
		k.recreate(t)
		for i := range 5 {
			p.publish(deadline(t), i)
		}
		p.waiting.Wait()
		if err := <-told; !errors.Is(err, bus.ErrIncarnation) {
			t.Errorf("the reader was told %v", err)
		}
	})
}
