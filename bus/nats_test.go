package bus_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"sonde/bus"
)

func TestTwoServersDoNotShareAStoreFolder(t *testing.T) {
	o := bus.EmbeddedOptions{StoreDir: t.TempDir(), Logger: quiet()}
	first := startEmbedded(t, o)
	if second, err := bus.StartEmbedded(o); err == nil || !strings.Contains(err.Error(), "another server uses it") {
		t.Fatalf("second server: %v, %v", second, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	startEmbedded(t, o).Close()
}

func TestServerThatCannotStartSaysWhy(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, o := range map[string]bus.EmbeddedOptions{
		"no store folder": {},
		"host:port":       {StoreDir: t.TempDir(), Listen: "nonsense"},
		"no number":       {StoreDir: t.TempDir(), Listen: "127.0.0.1:http"},
		"in use":          {StoreDir: t.TempDir(), Listen: taken.Addr().String()},
		"not a directory": {StoreDir: "/dev/null/store"},
	} {
		o.Logger = quiet()
		if e, err := bus.StartEmbedded(o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, %v", name, e, err)
		}
	}
}

func TestMessagesSurviveTheServer(t *testing.T) {
	o := bus.EmbeddedOptions{StoreDir: t.TempDir(), Logger: quiet(), SyncAlways: true}
	e := startEmbedded(t, o)
	b := openNATS(t, bus.NATSOptions{Embedded: e})
	p := newPublisher(b, "p", 1000)
	for i := range 20 {
		p.publish(deadline(t), i)
	}
	p.check(t, 20)
	before, err := b.Info(deadline(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	e.Close()
	e = startEmbedded(t, o)
	defer e.Close()
	p.b = openNATS(t, bus.NATSOptions{Embedded: e})
	p.check(t, 20)
	after, err := p.b.Info(deadline(t), 0)
	if err != nil || after != before {
		t.Fatalf("before %+v, after %+v, %v", before, after, err)
	}
}

// A broker that says nothing for a while may have stored anything of what was sent.
func TestSilentBrokerLosesAndDisordersNothing(t *testing.T) {
	k := processBroker(t, 1)
	b := k.open(t, 0).(*bus.NATS)
	bus.SetAnswerTimeout(b, 30*time.Millisecond)
	publishThroughSilence(t, k, b, 300)
}

// publishThroughSilence stops the broker three times while it publishes, and checks
// what is stored.
func publishThroughSilence(t *testing.T, k *broker, b bus.Bus, messages int) {
	t.Helper()
	rng := random(t)
	p := newPublisher(b, "p", 2000)
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := range messages {
			if err := p.publish(deadline(t), i); err != nil {
				t.Error(err)
			}
		}
	})
	for range 3 {
		time.Sleep(time.Duration(rng.IntN(40)) * time.Millisecond)
		k.signal(t, syscall.SIGSTOP)
		time.Sleep(time.Duration(300+rng.IntN(200)) * time.Millisecond)
		k.signal(t, syscall.SIGCONT)
	}
	publishing.Wait()
	p.check(t, messages)
}

// A reader of a quiet hook must not hear that it missed something when messages of
// others were trimmed.
func TestIdleReaderMissesNothingWhenOthersAreTrimmed(t *testing.T) {
	k := processBroker(t, 1)
	b := k.open(t, 0)
	mine, others := newPublisher(b, "mine", 100), newPublisher(b, "others", 100)
	mine.publish(deadline(t), 0)
	s := subscribe(t, b, bus.SubscribeOptions{Filters: []string{mine.subject()}})
	bus.SetIdleCheck(s, 10*time.Millisecond)
	next(t, s)
	got := make(chan bus.Delivery)
	go func() {
		d, err := s.Next(deadline(t))
		if err != nil {
			t.Error(err)
		}
		got <- d
	}()
	for i := range 50 {
		others.publish(deadline(t), i)
	}
	others.waiting.Wait()
	info, err := b.Info(deadline(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	for ctx := deadline(t); bus.SkippedTo(s) <= info.Last && ctx.Err() == nil; {
		time.Sleep(time.Millisecond)
	}
	if err := b.Trim(deadline(t), 0, info.Last+1); err != nil {
		t.Fatal(err)
	}
	k.down(t)
	k.up(t)
	mine.publish(deadline(t), 1)
	if d := <-got; string(d.Data) != string(mine.payload(1)) {
		t.Errorf("got position %d", d.Seq)
	}
}

func TestStreamThatForgetsByItselfIsRefused(t *testing.T) {
	good := jetstream.StreamConfig{Name: "SONDE", Subjects: []string{bus.Subjects}, Discard: jetstream.DiscardNew}
	for want, change := range map[string]func(*jetstream.StreamConfig){
		"discard is":   func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
		"max_age is":   func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"retention is": func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy },
		"subjects are": func(c *jetstream.StreamConfig) { c.Subjects = []string{"sonde.v1.some.>"} },
		"no_ack":       func(c *jetstream.StreamConfig) { c.NoAck = true },
		"overlap": func(c *jetstream.StreamConfig) {
			c.Name = "ANOTHER"
		},
	} {
		t.Run(want, func(t *testing.T) {
			// A server of its own: one deletes the folder of a stream in the background.
			e := startEmbedded(t, bus.EmbeddedOptions{StoreDir: t.TempDir(), Logger: quiet()})
			defer e.Close()
			nc, err := nats.Connect("", bus.InProcess(e))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			config := good
			change(&config)
			if _, err := js.CreateStream(deadline(t), config); err != nil {
				t.Fatal(err)
			}
			b, err := bus.OpenNATS(deadline(t), bus.NATSOptions{Embedded: e, Logger: quiet()})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, %v", b, err)
			}
		})
	}
}

func TestDifferingLimitsAreReported(t *testing.T) {
	e := startEmbedded(t, bus.EmbeddedOptions{StoreDir: t.TempDir(), Listen: "127.0.0.1:0", Logger: quiet()})
	defer e.Close()
	openNATS(t, bus.NATSOptions{URL: e.URL(), MaxBytes: 1 << 20})
	var log bytes.Buffer
	other, err := bus.OpenNATS(deadline(t), bus.NATSOptions{URL: e.URL(), MaxBytes: 2 << 20,
		Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
	if text := log.String(); !strings.Contains(text, "limit=max_bytes stream_has=1048576 configured=2097152") {
		t.Errorf("log of another bound: %s", text)
	}
	// The owner of an embedded server has nobody else to ask.
	b := openNATS(t, bus.NATSOptions{Embedded: e, MaxBytes: 3 << 20})
	if info, err := b.Info(deadline(t), 0); err != nil || info.MaxBytes != 3<<20 {
		t.Errorf("info %+v, %v", info, err)
	}
}

func TestOpenWaitsForTheBrokerAsLongAsItMay(t *testing.T) {
	for name, o := range map[string]bus.NATSOptions{
		"either":       {},
		"not be":       {URL: "nats://127.0.0.1:1", MaxBytes: -1},
		"deadline exc": {URL: "nats://127.0.0.1:1"},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		o.Logger = quiet()
		if b, err := bus.OpenNATS(ctx, o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, %v", name, b, err)
		}
	}
}

func TestMetricsAreOfThisBus(t *testing.T) {
	e := startEmbedded(t, bus.EmbeddedOptions{StoreDir: t.TempDir(), Logger: quiet()})
	defer e.Close()
	reg := prometheus.NewRegistry()
	b := openNATS(t, bus.NATSOptions{Embedded: e, Registerer: reg, MaxBytes: 1 << 20})
	p := newPublisher(b, "p", 8)
	for i := range 5 {
		p.publish(deadline(t), i)
	}
	p.check(t, 5)
	want := map[string]float64{"sonde_bus_published_messages_total": 5, "sonde_bus_published_bytes_total": 40,
		"sonde_bus_acknowledged_messages_total": 5, "sonde_bus_connected": 1, "sonde_bus_window_bytes": 0,
		"sonde_bus_delivered_messages_total": 5, "sonde_bus_stream_messages": 5, "sonde_bus_stream_max_bytes": 1 << 20}
	for ctx := deadline(t); ; { // the size of the stream may be some moments old
		if _, err := b.Info(ctx, 0); err != nil {
			t.Fatal(err)
		}
		wrong := differences(t, reg, want)
		if len(wrong) == 0 {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(wrong)
		}
	}
	if _, err := bus.OpenNATS(deadline(t), bus.NATSOptions{Embedded: e, Registerer: reg}); err == nil {
		t.Error("metrics registered twice")
	}
}

func differences(t *testing.T, reg *prometheus.Registry, want map[string]float64) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	wrong := maps.Clone(want)
	for _, f := range families {
		m := f.Metric[0]
		got := m.GetCounter().GetValue() + m.GetGauge().GetValue()
		if w, ok := want[f.GetName()]; ok && got == w {
			delete(wrong, f.GetName())
		}
	}
	return wrong
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		filter, subject string
		want            bool
	}{{"a.b", "a.b", true}, {"a.b", "a.c", false}, {"a.*", "a.b", true}, {"a.*", "a.b.c", false}, {"a.>", "a.b.c", true},
		{"a.>", "a", false}, {">", "a", true}, {"*.b", "a.b", true}, {"a.b", "a", false}, {"a", "a.b", false},
		{">", "", false},
		{"a.>.b", "a.c.b", false}, {"*", "", false}} {
		if got := bus.Match(c.filter, c.subject); got != c.want {
			t.Errorf("match %q with %q: %v", c.filter, c.subject, got)
		}
	}
	if bus.MatchAny([]string{"a", "b"}, "c") || !bus.MatchAny(nil, "c") || !bus.MatchAny([]string{"a", "c"}, "c") {
		t.Error("MatchAny")
	}
	if !errors.Is(&bus.TrimmedError{}, bus.ErrTrimmed) {
		t.Error("TrimmedError is not ErrTrimmed")
	}
}
