package bus_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sonde/bus"
)

func TestProbeMakesNoStream(t *testing.T) {
	e := startEmbedded(t, bus.EmbeddedOptions{StoreDir: t.TempDir(), Listen: "127.0.0.1:0", Logger: quiet()})
	for range 2 {
		b, err := bus.Probe(deadline(t), bus.NATSOptions{URL: e.URL(), Stream: "SONDE"})
		if err != nil || b.Stream != nil || b.MaxPayload != 32<<20 || b.Version == "" {
			t.Fatalf("probe of a broker without streams: %+v, %v", b, err)
		}
	}
	openNATS(t, bus.NATSOptions{Embedded: e, MaxBytes: 64 << 20})
	b, err := bus.Probe(deadline(t), bus.NATSOptions{URL: e.URL(), Stream: "SONDE"})
	if err != nil || b.Stream == nil || b.Stream.MaxBytes != 64<<20 || len(b.Losses) > 0 || b.MaxMsgSize != 0 {
		t.Fatalf("probe: %+v, %v", b, err)
	}
}

func TestProbeNamesAStreamThatForgets(t *testing.T) {
	e := startEmbedded(t, bus.EmbeddedOptions{StoreDir: t.TempDir(), Listen: "127.0.0.1:0", Logger: quiet()})
	nc, err := nats.Connect(e.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(deadline(t), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{bus.Subjects},
		Discard: jetstream.DiscardOld, MaxMsgSize: 1 << 20, MaxMsgs: 7}); err != nil {
		t.Fatal(err)
	}
	b, err := bus.Probe(deadline(t), bus.NATSOptions{URL: e.URL(), Stream: "OTHER"})
	if losses := strings.Join(b.Losses, ";"); err != nil || b.MaxMsgSize != 1<<20 || b.MaxMsgs != 7 ||
		!strings.Contains(losses, "discard is") {
		t.Fatalf("probe: %+v, %v", b, err)
	}
}

func TestProbeDoesNotWaitForABrokerThatIsAway(t *testing.T) {
	if b, err := bus.Probe(deadline(t), bus.NATSOptions{URL: "nats://127.0.0.1:1", Stream: "SONDE"}); err == nil {
		t.Fatalf("a broker answered where none is: %+v", b)
	}
}

// A reader that only looks on must not make the stream, neither at the start nor
// when it disappears under it: it would have other limits than those configured.
func TestALookerOnMakesNoStream(t *testing.T) {
	e := startEmbedded(t, bus.EmbeddedOptions{StoreDir: t.TempDir(), Listen: "127.0.0.1:0", Logger: quiet()})
	o := bus.NATSOptions{URL: e.URL(), MustExist: true, Logger: quiet()}
	if b, err := bus.OpenNATS(deadline(t), o); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Fatalf("open without a stream: %v, %v", b, err)
	}
	openNATS(t, bus.NATSOptions{Embedded: e})
	looker := openNATS(t, o)
	sub, err := looker.Subscribe(deadline(t), bus.SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	nc, err := nats.Connect(e.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(deadline(t), "SONDE"); err != nil {
		t.Fatal(err)
	}
	if d, err := sub.Next(deadline(t)); !errors.Is(err, bus.ErrIncarnation) {
		t.Fatalf("read a stream that is gone: %+v, %v", d, err)
	}
	if b, err := bus.Probe(deadline(t), bus.NATSOptions{URL: e.URL(), Stream: "SONDE"}); err != nil || b.Stream != nil {
		t.Fatalf("the looker-on made the stream: %+v, %v", b, err)
	}
}
