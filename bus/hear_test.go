package bus_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"sonde/bus"
)

// A hearer gets what is published on its subjects, also after the broker was
// away, and nothing once it has stopped.
func TestAHearerGetsWhatIsPublishedFromThenOn(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		ctx := deadline(t)
		heard := make(chan string, 100)
		filters := []string{"sonde.v1.a.>", "sonde.v1.*.z", "sonde.v1.*.*.0.vectors.>"}
		stop, err := b.Hear(filters, func(subject string, data []byte) {
			heard <- subject + "=" + string(data)
		})
		if err != nil {
			t.Fatal(err)
		}
		say := func(subject, text string) {
			done := make(chan error, 1)
			if err := b.Publish(ctx, bus.Message{Subject: subject, Data: []byte(text)}, func(_ uint64, err error) {
				done <- err
			}); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		// On a slow machine the hearer may begin a moment late.
		awaitHeard(ctx, t, heard, func(n int) { say("sonde.v1.a.begin", fmt.Sprint(n)) })
		say("sonde.v1.a.begin", "end")
		for got := ""; got != "sonde.v1.a.begin=end"; {
			select {
			case got = <-heard:
			case <-ctx.Done():
				t.Fatal("the end of the beginning is never heard")
			}
		}
		say("sonde.v1.b.x", "not for us")
		say("sonde.v1.a.x", "one")
		expect(ctx, t, heard, "sonde.v1.a.x=one")
		say("sonde.v1.b.z", "two")
		expect(ctx, t, heard, "sonde.v1.b.z=two")
		for _, engine := range []string{"one", "two", "three", "four"} { // in all partitions
			say("sonde.v1.b."+engine+".0.vectors.h.1", engine)
			expect(ctx, t, heard, "sonde.v1.b."+engine+".0.vectors.h.1="+engine)
		}
		for range k.restarts(1, true) {
			k.restart(t)
			awaitHeard(ctx, t, heard, func(n int) { say("sonde.v1.a.again", fmt.Sprint(n)) })
		}
		stop()
		for len(heard) > 0 {
			<-heard
		}
		say("sonde.v1.a.x", "after the end")
		if len(heard) > 0 {
			t.Errorf("heard %q after stop", <-heard)
		}
	})
}

func expect(ctx context.Context, t *testing.T, heard <-chan string, want string) {
	t.Helper()
	select {
	case got := <-heard:
		if got != want {
			t.Errorf("heard %q; want %q", got, want)
		}
	case <-ctx.Done():
		t.Fatalf("never heard %q", want)
	}
}

// awaitHeard says something until it is heard: the first words after a lost
// connection may be missed.
func awaitHeard(ctx context.Context, t *testing.T, heard <-chan string, say func(n int)) {
	t.Helper()
	for n := 0; ; n++ {
		say(n)
		select {
		case <-heard:
			return
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("heard nothing after the broker came back")
		}
	}
}
