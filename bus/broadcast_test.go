package bus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"sonde/bus"
)

// What is broadcast must reach each listener, in this process and others, also after
// the broker was away, and nobody who stopped or came later.
func TestABroadcastReachesWhoListensNow(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		ctx := deadline(t)
		here, there := k.open(t, 0), k.open(t, 0)
		const subject = "sonde.group.one"
		say := func(text string) {
			if err := here.Broadcast(subject, []byte(text)); err != nil && k.down == nil {
				t.Fatal(err)
			}
		}
		say("before anybody listens")
		if _, err := here.Info(ctx, 0); err != nil { // what was said is at the broker then
			t.Fatal(err)
		}
		var heard [2]chan string
		var stops []func()
		for i, b := range []bus.Bus{here, there} {
			heard[i] = make(chan string, 100)
			stop, err := b.Listen(subject, func(data []byte) { heard[i] <- string(data) })
			if err != nil {
				t.Fatal(err)
			}
			stops = append(stops, stop)
		}
		awaitSpread(ctx, t, heard[:], say, "first")
		for range k.restarts(1, false) {
			k.restart(t)
			awaitSpread(ctx, t, heard[:], say, "after a restart")
		}
		if err := here.Broadcast("sonde.group.other", []byte("not for them")); err != nil {
			t.Error(err)
		}
		stops[1]()
		stops[1]()
		for len(heard[1]) > 0 {
			<-heard[1]
		}
		awaitSpread(ctx, t, heard[:1], say, "the end")
		if len(heard[1]) > 0 {
			t.Errorf("heard %q after stop", <-heard[1])
		}
		stops[0]()
	})
}

// awaitSpread says something until everybody has heard it: who listens on another
// connection may do so a moment later. They hear nothing of before.
func awaitSpread(ctx context.Context, t *testing.T, heard []chan string, say func(string), text string) {
	t.Helper()
	for _, h := range heard {
		for n, done := 0, false; !done; n++ {
			say(text)
			select {
			case got := <-h:
				if got == "before anybody listens" || got == "not for them" {
					t.Fatalf("heard %q", got)
				}
				done = got == text
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				t.Fatalf("never heard %q", text)
			}
		}
	}
}

func TestABroadcastIsBoundedAndNoPartOfTheStream(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		for subject, size := range map[string]int{"sonde.v1.a": 1, "a b": 1, "": 1, "large": bus.MaxBroadcastBytes + 1} {
			if err := b.Broadcast(subject, make([]byte, size)); err == nil {
				t.Errorf("%d bytes on %q are taken", size, subject)
			}
		}
		if stop, err := b.Listen("sonde.v1.a", func([]byte) {}); err == nil {
			stop()
			t.Error("a subject of the stream is listened to as a broadcast")
		}
		largest := bytes.Repeat([]byte("x"), bus.MaxBroadcastBytes)
		heard := make(chan []byte, 10)
		stop, err := b.Listen("large", func(data []byte) { heard <- data })
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		if err := b.Broadcast("large", largest); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-heard:
			if !bytes.Equal(got, largest) {
				t.Errorf("heard %d bytes", len(got))
			}
		case <-deadline(t).Done():
			t.Error("the largest broadcast is not heard")
		}
		if info, err := b.Info(deadline(t), 0); err != nil || info.Messages != 0 {
			t.Errorf("the stream holds %d messages, %v", info.Messages, err)
		}
		b.Close()
		if err := b.Broadcast("large", nil); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("broadcast on a closed bus: %v", err)
		}
	})
}

// A listener that is stuck must not hold up the others, nor fill the memory.
func TestASlowListenerLosesAloneAndHoldsUpNobody(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		stuck, free := make(chan struct{}), make(chan string, 100)
		stopStuck, err := b.Listen("sonde.group.x", func([]byte) { <-stuck })
		if err != nil {
			t.Fatal(err)
		}
		stopFree, err := b.Listen("sonde.group.x", func(data []byte) { free <- string(data) })
		if err != nil {
			t.Fatal(err)
		}
		for i := range 5 {
			if err := b.Broadcast("sonde.group.x", fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
			expect(deadline(t), t, free, fmt.Sprint(i))
		}
		close(stuck)
		stopStuck()
		stopFree()
	})
}
