package bus_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sonde/bus"
	"sonde/bus/natstest"
)

// natsServerBroker is a nats-server of its own, configured as the how-to says.
func natsServerBroker(t *testing.T, partitions int) *broker {
	s := natstest.Need(t, natstest.Options{})
	return &broker{
		down: func(*testing.T) { s.Kill() },
		up: func(t *testing.T) {
			t.Helper()
			if err := s.Up(); err != nil {
				t.Fatal(err)
			}
		},
		signal: func(t *testing.T, signal os.Signal) {
			if err := s.Signal(signal); err != nil {
				t.Error(err)
			}
		},
		open: func(t *testing.T, maxBytes int64) bus.Bus {
			return openNATS(t, bus.NATSOptions{URL: s.URL, Partitions: partitions, MaxBytes: maxBytes * int64(partitions),
				WindowBytes: 1 << 20})
		},
		recreate: func(t *testing.T) {
			nc, err := nats.Connect(s.URL)
			deleteStreams(t, nc, err)
		}}
}

// One cluster serves all tests, each with an account of its own: a start takes seconds.
var (
	clusterOnce sync.Once
	clusterNow  *natstest.Cluster
	clusterErr  error
	clusterDir  string
	accounts    atomic.Int64
)

// maxAccounts bounds the tests that a run of the suite may give an account.
const maxAccounts = 200

func realCluster(t *testing.T) *natstest.Cluster {
	t.Helper()
	clusterOnce.Do(func() {
		if clusterDir, clusterErr = os.MkdirTemp("", "sonde-cluster-"); clusterErr != nil {
			return
		}
		var lines strings.Builder
		lines.WriteString("accounts {\n")
		for i := 1; i <= maxAccounts; i++ {
			fmt.Fprintf(&lines, "T%d { jetstream: enabled, users: [ { user: t%d, password: %q } ] }\n", i, i, secret)
		}
		lines.WriteString("}\n")
		clusterNow, clusterErr = natstest.StartCluster(natstest.Options{Dir: clusterDir, Lines: []string{lines.String()}})
	})
	if clusterErr != nil {
		t.Fatal(clusterErr)
	}
	return clusterNow
}

// stopCluster is called when all tests are over.
func stopCluster() {
	if clusterNow != nil {
		clusterNow.Kill()
	}
	if clusterDir != "" {
		os.RemoveAll(clusterDir)
	}
}

// clusterStream is a stream of three replicas in an account of its own.
func clusterStream(t *testing.T) (c *natstest.Cluster, o bus.NATSOptions, login nats.Option) {
	c = realCluster(t)
	user := fmt.Sprintf("t%d", accounts.Add(1))
	login = nats.UserInfo(user, secret)
	o = bus.NATSOptions{URL: c.URL(), Replicas: natstest.Nodes, WindowBytes: 1 << 20,
		Security: bus.NATSSecurity{User: user, Password: secret}}
	t.Cleanup(func() {
		nc, err := nats.Connect(c.URL(), login)
		deleteStreams(t, nc, err)
	})
	return c, o, login
}

func clusterBroker(t *testing.T, partitions int) *broker {
	c, o, login := clusterStream(t)
	o.Partitions = partitions
	return &broker{
		down: func(*testing.T) { c.Kill() },
		up: func(t *testing.T) {
			t.Helper()
			if err := c.Up(); err != nil {
				t.Fatal(err)
			}
		},
		open: func(t *testing.T, maxBytes int64) bus.Bus {
			o := o
			o.MaxBytes = maxBytes * int64(partitions)
			return openNATS(t, o)
		},
		recreate: func(t *testing.T) {
			nc, err := nats.Connect(c.URL(), login)
			deleteStreams(t, nc, err)
		}}
}

// The fear: what the leader acknowledged dies with it, because the others did not have
// it yet; or what is published again after it stands in another order.
func TestALeaderThatDiesInMidPublishLosesNothing(t *testing.T) {
	c, o, login := clusterStream(t)
	rng := random(t)
	b := openNATS(t, o)
	p := newPublisher(b, "p", 20_000)
	reader := subscribe(t, b, bus.SubscribeOptions{})
	const messages = 600
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := range messages {
			if err := p.publish(deadline(t), i); err != nil {
				t.Error(err)
			}
		}
	})
	for range 2 {
		time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
		leader, err := c.Leader(deadline(t), "SONDE", login)
		if err != nil {
			t.Fatal(err)
		}
		leader.Kill()
		if _, err := c.Leader(deadline(t), "SONDE", login); err != nil {
			t.Fatal(err)
		}
		if err := leader.Up(); err != nil {
			t.Fatal(err)
		}
	}
	publishing.Wait()
	p.check(t, messages)
	for i := 0; i < messages; {
		if d := next(t, reader); string(d.Data) == string(p.payload(i)) {
			i++
		}
	}
}

// The fear: without most of its servers a cluster takes nothing, and everything that says
// how things are says that all is well; or a message that waited is lost.
func TestLostQuorumIsSaidAndWaitedFor(t *testing.T) {
	c, o, login := clusterStream(t)
	b := openNATS(t, o).(*bus.NATS)
	bus.SetAnswerTimeout(b, time.Second)
	p := newPublisher(b, "p", 1000)
	if err := p.publish(deadline(t), 0); err != nil {
		t.Fatal(err)
	}
	p.waiting.Wait()
	if why := b.Trouble(); why != "" {
		t.Errorf("with all servers it says %q", why)
	}
	leader, err := c.Leader(deadline(t), "SONDE", login)
	if err != nil {
		t.Fatal(err)
	}
	var down []*natstest.Server
	for _, s := range c.Servers {
		if s != leader && len(down) < 2 {
			down = append(down, s)
			s.Kill()
		}
	}
	if err := p.publish(deadline(t), 1); err != nil {
		t.Fatal(err)
	}
	for ctx := deadline(t); b.Trouble() == ""; time.Sleep(10 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatal("it says nothing while two of three servers are down")
		}
	}
	for _, s := range down {
		if err := s.Up(); err != nil {
			t.Fatal(err)
		}
	}
	p.check(t, 2)
	for ctx := deadline(t); b.Trouble() != ""; time.Sleep(10 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("with all servers again it says %q", b.Trouble())
		}
	}
}

// A server that hangs keeps its connections: only its silence tells.
func TestAServerThatHangsDoesNotHoldUpTheCluster(t *testing.T) {
	c, o, login := clusterStream(t)
	b := openNATS(t, o).(*bus.NATS)
	bus.SetAnswerTimeout(b, time.Second)
	p := newPublisher(b, "p", 5000)
	leader, err := c.Leader(deadline(t), "SONDE", login)
	if err != nil {
		t.Fatal(err)
	}
	if err := leader.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := p.publish(deadline(t), i); err != nil {
			t.Fatal(err)
		}
	}
	p.waiting.Wait()
	if err := leader.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	p.check(t, 50)
}

// The fear: a stream on one server where three were asked for, found out when it burns.
func TestReplicasOfTheStreamAreThoseOfTheConfiguration(t *testing.T) {
	c, o, login := clusterStream(t)
	openNATS(t, o)
	nc, err := nats.Connect(c.URL(), login)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(deadline(t), "SONDE")
	if err != nil || s.CachedInfo().Config.Replicas != 3 {
		t.Fatalf("the stream is %+v, %v; want 3 replicas", s.CachedInfo(), err)
	}
	for replicas, want := range map[int]string{0: "", 3: "", 1: "limit=replicas stream_has=3 configured=1"} {
		o.Replicas = replicas
		log := &lines{}
		o.Logger = log.logger()
		again, err := bus.OpenNATS(deadline(t), o)
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
		if got := log.String(); want == "" && strings.Contains(got, "replicas") || !strings.Contains(got, want) {
			t.Errorf("%d replicas wanted of 3: the log says %q", replicas, got)
		}
		probed, err := bus.Probe(deadline(t), bus.NATSOptions{URL: o.URL, Stream: "SONDE", Replicas: replicas,
			Security: o.Security})
		if got := strings.Join(probed.Differences, "; "); err != nil || (got != "") != (want != "") {
			t.Errorf("%d replicas wanted of 3: the probe says %q, %v", replicas, got, err)
		}
	}
	// One server alone cannot have three replicas: no repetition helps.
	alone := natstest.Need(t, natstest.Options{})
	refusesToOpen(t, "replicas > 1 not supported in non-clustered mode", bus.NATSOptions{URL: alone.URL, Replicas: 3})
}
