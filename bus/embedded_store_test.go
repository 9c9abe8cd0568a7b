package bus

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A server whose store failed stays so for ever; clients in this process and in others
// must find everything again, at the same address, once it was opened anew.
func TestAStoreThatFailedIsOpenedAnewWithAllThatWasAcknowledged(t *testing.T) {
	quiet, registry := slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	e, err := StartEmbedded(EmbeddedOptions{StoreDir: t.TempDir(), Listen: "127.0.0.1:0", SyncAlways: true, Logger: quiet,
		Registerer: registry})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var clients []*NATS
	for _, o := range []NATSOptions{{Embedded: e, Logger: quiet}, {URL: e.URL(), Logger: quiet}} {
		n, err := OpenNATS(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		clients = append(clients, n)
	}
	publish := func(from, to int) {
		acks := make(chan error, to-from)
		for i := from; i < to; i++ {
			m := Message{Subject: "sonde.v1.t.e.0.vectors.h.1", ID: fmt.Sprint(i), Data: fmt.Append(nil, i)}
			if err := clients[i%2].Publish(ctx, m, func(_ uint64, err error) { acks <- err }); err != nil {
				t.Fatal(err)
			}
		}
		for i := from; i < to; i++ {
			if err := <-acks; err != nil {
				t.Fatal(err)
			}
		}
	}
	publish(0, 50)
	if e.Trouble() != "" {
		t.Errorf("a store that works is in trouble: %s", e.Trouble())
	}
	url := e.URL()
	e.mu.Lock()
	s := e.s
	e.mu.Unlock()
	if err := s.ShutdownJetStream(); err != nil {
		t.Fatal(err)
	}
	publish(50, 100)
	if e.URL() != url || e.Trouble() != "" {
		t.Errorf("it listens at %s, before at %s; trouble %q", e.URL(), url, e.Trouble())
	}
	sub, err := clients[0].Subscribe(ctx, SubscribeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	seen := map[string]bool{}
	for len(seen) < 100 {
		d, err := sub.Next(ctx)
		if err != nil {
			t.Fatalf("after %d of 100 messages: %v", len(seen), err)
		}
		seen[string(d.Data)] = true
	}
}
