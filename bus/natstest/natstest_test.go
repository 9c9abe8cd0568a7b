package natstest

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestMain(m *testing.M) {
	Enter()
	os.Exit(m.Run())
}

// The fear: tests against a cluster that is none, so that no leader is ever lost.
func TestAClusterGoesOnWithoutItsLeader(t *testing.T) {
	c := NeedCluster(t, Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	nc, err := nats.Connect(c.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err == nil {
		_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}, Replicas: Nodes})
	}
	if err != nil {
		t.Fatal(err)
	}
	first, err := c.Leader(ctx, "S")
	if err != nil {
		t.Fatal(err)
	}
	first.Kill()
	second, err := c.Leader(ctx, "S")
	if err != nil || second == first {
		t.Fatalf("after %p the leader is %p, %v", first, second, err)
	}
	if first.Healthy() || !second.Healthy() {
		t.Errorf("the killed server is healthy: %v, the other one: %v", first.Healthy(), second.Healthy())
	}
	if err := c.Up(); err != nil {
		t.Error(err)
	}
}

// The fear: a server that cannot start makes a test wait for a minute and say nothing.
func TestAServerThatCannotStartSaysWhy(t *testing.T) {
	s, err := Start(Options{Dir: t.TempDir(), Lines: []string{"nonsense: 1"}})
	if err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("%v, %v", s, err)
	}
}
