package bus_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"sonde/bus"
)

func TestEveryAcknowledgedMessageIsReadBackInOrder(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		var all sync.WaitGroup
		publishers := []*publisher{newPublisher(b, "one", 64), newPublisher(b, "two", 4096),
			newPublisher(b, "three", 100_000)}
		for _, p := range publishers {
			all.Go(func() {
				for i := range 200 {
					if err := p.publish(deadline(t), i); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		for _, p := range publishers {
			p.check(t, 200)
		}
	})
}

func TestBrokerThatIsKilledInMidPublishLosesNothing(t *testing.T) {
	forEachMortalBroker(t, func(t *testing.T, k *broker) {
		rng := random(t)
		b := k.open(t, 0)
		one, two := newPublisher(b, "one", 5000), newPublisher(b, "two", 50_000)
		reader := one.read(t, bus.SubscribeOptions{Filters: []string{one.subject()}})
		const messages = 400
		var all sync.WaitGroup
		for _, p := range []*publisher{one, two} {
			all.Go(func() {
				for i := range messages {
					if err := p.publish(deadline(t), i); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for range k.restarts(3, true) {
			time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
			k.restart(t)
		}
		all.Wait()
		one.check(t, messages)
		two.check(t, messages)
		// A reader that lived through all of it has seen the same.
		for i := 0; i < messages; {
			if d := next(t, reader); string(d.Data) == string(one.payload(i)) {
				i++
			}
		}
	})
}

func TestFullStreamMakesPublishWaitUntilTrim(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		const limit, messages = 1 << 20, 200
		b := k.open(t, limit)
		p := newPublisher(b, "p", 100_000)
		var publishing sync.WaitGroup
		publishing.Go(func() {
			for i := range messages {
				if err := p.publish(deadline(t), i); err != nil {
					t.Error(err)
				}
			}
		})
		reader := p.read(t, bus.SubscribeOptions{})
		for got := 0; got < messages; {
			d := next(t, reader)
			info := p.info(t)
			if info.MaxBytes != limit {
				t.Fatalf("the bound of the partition is %d", info.MaxBytes)
			}
			if info.Bytes > limit {
				t.Fatalf("the stream holds %d bytes; its bound is %d", info.Bytes, limit)
			}
			if string(d.Data) == string(p.payload(got)) {
				got++
			}
			if err := b.Trim(deadline(t), d.Partition, d.Seq+1); err != nil {
				t.Fatal(err)
			}
		}
		publishing.Wait()
		p.waiting.Wait()
		for _, err := range p.errs {
			t.Error(err)
		}
		p.checkOrder(t, messages)
	})
}

func TestPositionsSurviveTheReaderAndSayWhenTheyAreGone(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		p := newPublisher(b, "p", 100)
		for i := range 30 {
			p.publish(deadline(t), i)
		}
		p.check(t, 30)
		info := p.info(t)
		if info.First != 1 || info.Last != 30 || info.Messages != 30 || info.Bytes < 1000 {
			t.Fatalf("info %+v", info)
		}
		if d := next(t, p.read(t, bus.SubscribeOptions{From: 17, Incarnation: info.Incarnation})); d.Seq != 17 ||
			d.Subject != p.subject() || d.Stored.IsZero() || d.Partition != p.partition() {
			t.Fatalf("from 17: %d %s %s", d.Seq, d.Subject, d.Stored)
		}
		running, late := p.read(t, bus.SubscribeOptions{}), p.read(t, bus.SubscribeOptions{From: bus.FromNew})
		next(t, running)
		for _, below := range []uint64{11, 5, 0} {
			if err := b.Trim(deadline(t), p.partition(), below); err != nil {
				t.Fatal(err)
			}
		}
		_, err := p.read(t, bus.SubscribeOptions{From: 4}).Next(deadline(t))
		var trimmed *bus.TrimmedError
		if !errors.Is(err, bus.ErrTrimmed) || !errors.As(err, &trimmed) || trimmed.Want != 4 || trimmed.First != 11 {
			t.Fatalf("from 4 after a trim below 11: %v", err)
		}
		if d := next(t, p.read(t, bus.SubscribeOptions{From: 11})); d.Seq != 11 {
			t.Fatalf("from 11: %d", d.Seq)
		}
		if d := next(t, p.read(t, bus.SubscribeOptions{})); d.Seq != 11 {
			t.Fatalf("from the first: %d", d.Seq)
		}
		// Far beyond the end: everything goes, and positions go on where they were.
		if err := b.Trim(deadline(t), p.partition(), 1000); err != nil {
			t.Fatal(err)
		}
		if info = p.info(t); info.First != 31 || info.Last != 30 || info.Messages != 0 {
			t.Fatalf("info of an empty stream %+v", info)
		}
		p.publish(deadline(t), 30)
		p.waiting.Wait()
		if d := next(t, late); d.Seq != 31 {
			t.Fatalf("from new: %d", d.Seq)
		}
		if d := next(t, p.read(t, bus.SubscribeOptions{From: 31})); d.Seq != 31 {
			t.Fatalf("from 31: %d", d.Seq)
		}
	})
}

func TestReaderThatTrimOvertakesHearsOfIt(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		p := newPublisher(b, "p", 2<<20)
		reader := p.read(t, bus.SubscribeOptions{From: 1})
		const messages = 80 // more than a reader takes ahead
		for i := range messages {
			p.publish(deadline(t), i)
		}
		p.waiting.Wait()
		next(t, reader)
		if err := b.Trim(deadline(t), p.partition(), messages); err != nil {
			t.Fatal(err)
		}
		for want := uint64(2); ; want++ {
			d, err := reader.Next(deadline(t))
			if err == nil && d.Seq == want && want < messages {
				continue
			}
			var trimmed *bus.TrimmedError
			if !errors.As(err, &trimmed) || trimmed.Want != want || trimmed.First != messages {
				t.Fatalf("position %d: got %d, %v", want, d.Seq, err)
			}
			return
		}
	})
}

func TestStreamThatIsMadeAnewIsNotReadOnWithOldPositions(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		p := newPublisher(b, "p", 10)
		for i := range 10 {
			p.publish(deadline(t), i)
		}
		p.check(t, 10)
		before := p.info(t)
		running := p.read(t, bus.SubscribeOptions{})
		for range 10 {
			next(t, running)
		}
		k.recreate(t)
		for i := range 20 {
			p.publish(deadline(t), i)
		}
		p.waiting.Wait()
		for name, s := range map[string]bus.Subscription{"running": running,
			"of before":  p.read(t, bus.SubscribeOptions{From: 5, Incarnation: before.Incarnation}),
			"beyond end": p.read(t, bus.SubscribeOptions{From: 22})} {
			if d, err := s.Next(deadline(t)); !errors.Is(err, bus.ErrIncarnation) {
				t.Errorf("%s: got %d, %v", name, d.Seq, err)
			}
			// Until the reader gave up its positions, they must not trim the new stream.
			if err := b.Trim(deadline(t), p.partition(), 10); name != "beyond end" && !errors.Is(err, bus.ErrIncarnation) {
				t.Errorf("trim with positions of a stream that is gone: %v", err)
			}
		}
		after := p.info(t)
		if after.Incarnation == before.Incarnation || after.Messages != 20 {
			t.Fatalf("before %+v, after %+v", before, after)
		}
		if d := next(t, p.read(t, bus.SubscribeOptions{From: 5, Incarnation: after.Incarnation})); d.Seq != 5 {
			t.Fatalf("from 5: %d", d.Seq)
		}
	})
}

func TestFiltersAlsoWhereTheyOverlap(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		subjects := []string{"a.x.1", "a.x.2", "a.y.1", "b.x.1", "b.x.1.more"}
		for _, s := range subjects {
			publishTo(t, b, "sonde.v1.tenant.engine.0."+s)
		}
		publishTo(t, b, "sonde.v1.tenant.engine.0.end")
		for _, test := range []struct{ filters, want string }{
			{"sonde.v1.tenant.engine.0.a.>", "a.x.1 a.x.2 a.y.1"},
			{"sonde.v1.tenant.*.0.*.x.1", "a.x.1 b.x.1"},
			{"sonde.v1.*.*.*.a.x.* sonde.v1.tenant.engine.0.b.x.1", "a.x.1 a.x.2 b.x.1"},
			{"sonde.v1.*.*.*.a.> sonde.v1.*.*.*.*.x.1 sonde.v1.*.*.*.a.x.1", "a.x.1 a.x.2 a.y.1 b.x.1"},
			{"sonde.v1.>", "a.x.1 a.x.2 a.y.1 b.x.1 b.x.1.more"},
			{"sonde.v1.tenant.>", "a.x.1 a.x.2 a.y.1 b.x.1 b.x.1.more"},
			{"sonde.v1.another.>", ""},
		} {
			s := subscribe(t, b, bus.SubscribeOptions{Filters: append(strings.Fields(test.filters), "sonde.v1.*.*.0.end"),
				Partition: bus.PartitionOf("sonde.v1.tenant.engine.0", b.Partitions())})
			var got []string
			for {
				d := next(t, s)
				if d.Subject == "sonde.v1.tenant.engine.0.end" {
					break
				}
				got = append(got, strings.TrimPrefix(d.Subject, "sonde.v1.tenant.engine.0."))
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("filters %s: got %v, want %s", test.filters, got, test.want)
			}
		}
	})
}

// publishTo stores one small message.
func publishTo(t *testing.T, b bus.Bus, subject string) {
	t.Helper()
	stored := make(chan error, 1)
	if err := b.Publish(deadline(t), bus.Message{Subject: subject, Data: []byte("x")}, func(_ uint64, err error) {
		stored <- err
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-stored; err != nil {
		t.Fatal(err)
	}
}

func TestRefusedMessageDoesNotHoldUpTheOthers(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		p := newPublisher(b, "p", 10)
		for _, bad := range []bus.Message{
			{Subject: "sonde.v1.p", Data: make([]byte, bus.MaxPayloadBytes+1)},
			{Subject: "elsewhere", Data: []byte("x")},
			{Subject: "sonde.v1", Data: []byte("x")},
			{Subject: "sonde.v1.*", Data: []byte("x")},
			{Subject: "sonde.v1.a b", Data: []byte("x")},
			{Subject: "sonde.v1.a..b", Data: []byte("x")},
			{Subject: "", Data: []byte("x")},
		} {
			refused := make(chan error, 1)
			if err := b.Publish(deadline(t), bad, func(_ uint64, err error) { refused <- err }); err != nil {
				t.Fatal(err)
			}
			p.publish(deadline(t), len(p.seqs))
			if err := <-refused; !errors.Is(err, bus.ErrRefused) {
				t.Errorf("%d bytes to %q: %v", len(bad.Data), bad.Subject, err)
			}
			p.waiting.Wait()
		}
		p.check(t, 7)
		largest := newPublisher(b, "large", bus.MaxPayloadBytes)
		largest.publish(deadline(t), 0)
		largest.check(t, 1)
	})
}

func TestContextsEndWhatWaits(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 100_000)
		p := newPublisher(b, "p", 60_000)
		p.publish(deadline(t), 0)
		p.waiting.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		for i := range 5 { // the stream is full
			if err := p.publish(ctx, 4+4*i); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		p.waiting.Wait()
		if len(p.seqs) != 1 || len(p.errs) != 5 || !errors.Is(p.errs[4], context.Canceled) {
			t.Fatalf("acknowledged %v, errors %v", p.seqs, p.errs)
		}
		if err := p.publish(ctx, 40); !errors.Is(err, context.Canceled) {
			t.Errorf("publish with an ended context: %v", err)
		}
		s := p.read(t, bus.SubscribeOptions{From: bus.FromNew})
		if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("next with an ended context: %v", err)
		}
		s.Close()
		if _, err := s.Next(deadline(t)); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("next of a closed subscription: %v", err)
		}
		p.errs = nil
		p.publish(deadline(t), 4)
		open := subscribe(t, b, bus.SubscribeOptions{From: bus.FromNew})
		time.AfterFunc(20*time.Millisecond, func() { b.Close() })
		if _, err := open.Next(deadline(t)); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("next of a closed bus: %v", err)
		}
		p.waiting.Wait()
		if len(p.errs) != 1 || !errors.Is(p.errs[0], bus.ErrClosed) {
			t.Errorf("a message that waits when the bus is closed: %v", p.errs)
		}
		if err := p.publish(deadline(t), 8); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("publish to a closed bus: %v", err)
		}
		if _, err := b.Info(deadline(t), 0); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("info of a closed bus: %v", err)
		}
	})
}

func TestCommandsAreAnsweredAlsoAfterARestart(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		const subject = "sonde.cmd.tenant.engine.0.abort"
		if _, err := b.Request(deadline(t), subject, nil); !errors.Is(err, bus.ErrNoReply) {
			t.Fatalf("nobody serves: %v", err)
		}
		stop, err := b.Serve(subject, func(data []byte) []byte { return []byte("re: " + string(data)) })
		if err != nil {
			t.Fatal(err)
		}
		ask := func(what string) {
			t.Helper()
			for {
				reply, err := b.Request(deadline(t), subject, []byte(what))
				if errors.Is(err, bus.ErrNoReply) && k.down != nil && deadline(t).Err() == nil {
					continue // the connection is being made anew
				}
				if err != nil || string(reply) != "re: "+what {
					t.Fatalf("reply %q, %v", reply, err)
				}
				return
			}
		}
		ask("one")
		for i := range k.restarts(2, false) {
			k.restart(t)
			ask(fmt.Sprint("after restart ", i))
		}
		stop()
		stop()
		if _, err := b.Request(deadline(t), subject, nil); !errors.Is(err, bus.ErrNoReply) {
			t.Errorf("after stop: %v", err)
		}
	})
}

func TestConnectedSaysWhetherTheBrokerIsThere(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		if !b.Connected() {
			t.Error("not connected after open")
		}
		if k.restarts(1, false) == 0 {
			return
		}
		k.down(t)
		for b.Connected() && deadline(t).Err() == nil {
			time.Sleep(time.Millisecond)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if _, err := b.Info(ctx, 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("info without a broker: %v", err)
		}
		k.up(t)
		if _, err := b.Info(deadline(t), 0); err != nil || !b.Connected() {
			t.Errorf("after it came back: %v, connected %v", err, b.Connected())
		}
	})
}
