package bus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sonde/bus"
)

// The server of a cluster that reads for us may fall behind the one that leads the
// stream: it then sends heartbeats and no messages, for ever. A paused consumer does
// the same.
func TestAReaderWhoseServerFellBehindIsServedByAnother(t *testing.T) {
	for name, filters := range map[string][]string{"all": nil, "of one": {""}} {
		t.Run(name, func(t *testing.T) {
			e := startEmbedded(t, bus.EmbeddedOptions{StoreDir: t.TempDir(), Logger: quiet()})
			defer e.Close()
			b := openNATS(t, bus.NATSOptions{Embedded: e})
			p := newPublisher(b, "mine", 100)
			if filters != nil {
				filters = []string{p.subject()}
			}
			s := subscribe(t, b, bus.SubscribeOptions{Filters: filters})
			bus.SetIdleCheck(s, 20*time.Millisecond)
			if err := p.publish(deadline(t), 0); err != nil {
				t.Fatal(err)
			}
			next(t, s)
			pauseReaders(t, e)
			for i := 1; i <= 3; i++ {
				if err := p.publish(deadline(t), i); err != nil {
					t.Fatal(err)
				}
			}
			for i := 1; i <= 3; i++ {
				if d := nextInSteps(t, s); string(d.Data) != string(p.payload(i)) {
					t.Fatalf("got position %d instead of message %d", d.Seq, i)
				}
			}
		})
	}
}

// nextInSteps waits for the next message as a materializer does, which commits now and
// then: each wait alone is shorter than the time after which a reader wonders.
func nextInSteps(t *testing.T, s bus.Subscription) bus.Delivery {
	t.Helper()
	for ctx := deadline(t); ctx.Err() == nil; {
		step, cancel := context.WithTimeout(ctx, 8*time.Millisecond)
		d, err := s.Next(step)
		cancel()
		if err == nil {
			return d
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
	}
	t.Fatal("no message came")
	return bus.Delivery{}
}

// pauseReaders keeps the broker from delivering anything to the readers of now.
func pauseReaders(t *testing.T, e *bus.EmbeddedServer) {
	t.Helper()
	nc, err := nats.Connect("", bus.InProcess(e))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(deadline(t), "SONDE")
	if err != nil {
		t.Fatal(err)
	}
	names := stream.ConsumerNames(deadline(t))
	paused := 0
	for name := range names.Name() {
		if _, err := stream.PauseConsumer(deadline(t), name, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		paused++
	}
	if err := names.Err(); err != nil || paused == 0 {
		t.Fatalf("%d readers were paused, %v", paused, err)
	}
}
