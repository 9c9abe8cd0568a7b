package bus_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/bus/natstest"
)

// broker is what the suite is run against. The bound of a stream is that of each of
// its partitions here.
type broker struct {
	open     func(t *testing.T, maxBytes int64) bus.Bus // on the same stream, closed with the test
	down     func(t *testing.T)                         // without warning
	up       func(t *testing.T)
	recreate func(t *testing.T)
	signal   func(t *testing.T, s os.Signal) // of a process

	partitions int
	slow       bool // a start takes seconds
}

// restarts is how often a test kills a broker: never one that cannot be killed alone,
// and where a start takes seconds, once. Where the partitions do not matter, a slow one
// of several is spared.
func (k *broker) restarts(times int, partitionsMatter bool) int {
	switch {
	case k.down == nil || k.slow && k.partitions > 1 && !partitionsMatter:
		return 0
	case k.slow:
		return 1
	}
	return times
}

func (k *broker) restart(t *testing.T) {
	t.Helper()
	k.down(t)
	k.up(t)
}

// brokers make a stream of so many partitions. Those that one process serves to all
// tests take turns, because some tests kill it.
var brokers = map[string]func(t *testing.T, partitions int) *broker{
	"memory":   memoryBroker,
	"embedded": embeddedBroker,
	"process":  processBroker,
	"kafka":    kafkaBroker,
	"server":   natsServerBroker,
	"cluster":  clusterBroker,
}

func memoryBroker(t *testing.T, partitions int) *broker {
	b := bustest.NewPartitioned(partitions)
	t.Cleanup(func() { b.Close() })
	return &broker{
		open: func(t *testing.T, maxBytes int64) bus.Bus {
			b.SetMaxBytes(uint64(maxBytes) * uint64(partitions))
			return b
		},
		down: func(*testing.T) { b.Stop() }, up: func(*testing.T) { b.Start() },
		recreate: func(*testing.T) { b.Recreate() },
	}
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func openNATS(t *testing.T, o bus.NATSOptions) bus.Bus {
	t.Helper()
	o.Logger = quiet()
	b, err := bus.OpenNATS(deadline(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func embeddedBroker(t *testing.T, partitions int) *broker {
	o := bus.EmbeddedOptions{StoreDir: t.TempDir(), Logger: quiet()}
	e := startEmbedded(t, o)
	t.Cleanup(func() { e.Close() })
	open := func(t *testing.T, maxBytes int64) bus.Bus {
		return openNATS(t, bus.NATSOptions{Embedded: e, Partitions: partitions,
			MaxBytes: maxBytes * int64(partitions)})
	}
	return &broker{open: open, recreate: func(t *testing.T) {
		nc, err := nats.Connect("", bus.InProcess(e))
		deleteStreams(t, nc, err)
	}}
}

func startEmbedded(t *testing.T, o bus.EmbeddedOptions) *bus.EmbeddedServer {
	t.Helper()
	e, err := bus.StartEmbedded(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// deleteStreams removes all streams of a server, as somebody else could.
func deleteStreams(t *testing.T, nc *nats.Conn, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	names := js.StreamNames(deadline(t))
	for name := range names.Name() {
		if err := js.DeleteStream(deadline(t), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := names.Err(); err != nil {
		t.Fatal(err)
	}
}

// The server process is this test binary.
const (
	serverDir    = "SONDE_BUS_TEST_STORE"
	serverListen = "SONDE_BUS_TEST_LISTEN"
)

func TestMain(m *testing.M) {
	natstest.Enter()
	if dir := os.Getenv(serverDir); dir != "" {
		e, err := bus.StartEmbedded(bus.EmbeddedOptions{StoreDir: dir, Listen: os.Getenv(serverListen), SyncAlways: true,
			Logger: quiet()})
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(e.URL())
		io.Copy(io.Discard, os.Stdin) // until the parent ends, however it does
		os.Exit(0)
	}
	code := m.Run()
	stopKafka()
	stopCluster()
	os.Exit(code)
}

func processBroker(t *testing.T, partitions int) *broker {
	dir, listen, url := t.TempDir(), "127.0.0.1:0", ""
	var server *exec.Cmd
	var stdin io.Closer
	up := func(t *testing.T) {
		t.Helper()
		server = exec.Command(os.Args[0])
		server.Env = append(os.Environ(), serverDir+"="+dir, serverListen+"="+listen)
		in, err1 := server.StdinPipe()
		out, err2 := server.StdoutPipe()
		stdin = in
		if err := errors.Join(err1, err2, server.Start()); err != nil {
			t.Fatal(err)
		}
		line := make([]byte, 200)
		n, err := out.Read(line)
		url = strings.TrimSpace(string(line[:n]))
		if err != nil || !strings.HasPrefix(url, "nats://") {
			t.Fatalf("server process said %q, %v", url, err)
		}
		listen = strings.TrimPrefix(url, "nats://")
	}
	down := func(*testing.T) {
		server.Process.Kill()
		server.Wait()
		stdin.Close()
	}
	up(t)
	t.Cleanup(func() { down(t) })
	return &broker{down: down, up: up,
		signal: func(t *testing.T, s os.Signal) {
			if err := server.Process.Signal(s); err != nil {
				t.Error(err)
			}
		},
		open: func(t *testing.T, maxBytes int64) bus.Bus {
			return openNATS(t, bus.NATSOptions{URL: url, Partitions: partitions,
				MaxBytes: maxBytes * int64(partitions), WindowBytes: 1 << 20})
		},
		recreate: func(t *testing.T) {
			nc, err := nats.Connect(url)
			deleteStreams(t, nc, err)
		}}
}

// deadline ends before the test binary would be killed.
func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// shared are the brokers that all tests use.
var shared = []string{"kafka", "cluster"}

// forEachBroker runs a test on a stream of one partition and of three.
func forEachBroker(t *testing.T, test func(t *testing.T, k *broker)) {
	for name, make := range brokers {
		for _, partitions := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s-%d", name, partitions), func(t *testing.T) {
				if !slices.Contains(shared, name) {
					t.Parallel()
				}
				k := make(t, partitions)
				k.partitions, k.slow = partitions, slices.Contains(shared, name)
				test(t, k)
			})
		}
	}
}

// forEachMortalBroker leaves out those that cannot be killed alone, as the server in
// the own process.
func forEachMortalBroker(t *testing.T, test func(t *testing.T, k *broker)) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		if k.down != nil {
			test(t, k)
		}
	})
}

// publisher publishes numbered messages and keeps what became of them.
type publisher struct {
	b       bus.Bus
	name    string
	size    int
	waiting sync.WaitGroup
	mu      sync.Mutex
	seqs    map[int]uint64
	errs    []error
}

func newPublisher(b bus.Bus, name string, size int) *publisher {
	return &publisher{b: b, name: name, size: size, seqs: map[int]uint64{}}
}

// payload of message i: its number and bytes that follow from it.
func (p *publisher) payload(i int) []byte {
	data := bytes.Repeat([]byte{byte(i)}, max(8, p.size>>(i%4*2))) // sizes differ
	binary.LittleEndian.PutUint64(data, uint64(i))
	return data
}

// subject is that of a rank of its own.
func (p *publisher) subject() string { return "sonde.v1.tenant." + p.name + ".0.x" }

func (p *publisher) partition() int { return bus.PartitionOf(p.subject(), p.b.Partitions()) }

// info is what its partition says of itself.
func (p *publisher) info(t *testing.T) bus.StreamInfo {
	t.Helper()
	info, err := p.b.Info(deadline(t), p.partition())
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// read subscribes to its partition.
func (p *publisher) read(t *testing.T, o bus.SubscribeOptions) bus.Subscription {
	t.Helper()
	o.Partition = p.partition()
	return subscribe(t, p.b, o)
}

func (p *publisher) publish(ctx context.Context, i int) error {
	p.waiting.Add(1)
	called := false
	m := bus.Message{Subject: p.subject(), ID: fmt.Sprint(p.name, "-", i), Data: p.payload(i)}
	err := p.b.Publish(ctx, m, func(seq uint64, err error) {
		defer p.waiting.Done()
		p.mu.Lock()
		defer p.mu.Unlock()
		if called {
			p.errs = append(p.errs, fmt.Errorf("message %d: done is called again", i))
		}
		called = true
		if err != nil {
			p.errs = append(p.errs, fmt.Errorf("message %d: %w", i, err))
			return
		}
		p.seqs[i] = seq
	})
	if err != nil {
		p.waiting.Done()
	}
	return err
}

// check reads the stream and compares it with what was acknowledged.
func (p *publisher) check(t *testing.T, published int) {
	t.Helper()
	p.waiting.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, err := range p.errs {
		t.Error(err)
	}
	at := map[uint64]int{}
	for _, d := range readAll(t, p.b, p.subject()) {
		if d.Partition != p.partition() {
			t.Fatalf("%s stands in partition %d, not %d", d.Subject, d.Partition, p.partition())
		}
		i := int(binary.LittleEndian.Uint64(d.Data))
		if i < 0 || i >= published || !bytes.Equal(d.Data, p.payload(i)) {
			t.Fatalf("position %d holds a message that nobody published", d.Seq)
		}
		at[d.Seq] = i
	}
	p.checkOrder(t, published)
	for i, seq := range p.seqs {
		if got, ok := at[seq]; !ok || got != i {
			t.Fatalf("%s: message %d was acknowledged at position %d, which holds %d, %v", p.name, i, seq, got, ok)
		}
	}
}

// checkOrder checks that all were acknowledged at positions in the order of the calls.
func (p *publisher) checkOrder(t *testing.T, published int) {
	t.Helper()
	last := uint64(0)
	for i := range published {
		seq, ok := p.seqs[i]
		if !ok {
			t.Fatalf("%s: message %d was not acknowledged", p.name, i)
		}
		if seq <= last {
			t.Fatalf("%s: message %d is at position %d, before its predecessor at %d", p.name, i, seq, last)
		}
		last = seq
	}
}

// readAll reads what the stream holds for the filters now.
func readAll(t *testing.T, b bus.Bus, filters ...string) []bus.Delivery {
	t.Helper()
	var out []bus.Delivery
	for i := range b.Partitions() {
		info, err := b.Info(deadline(t), i)
		if err != nil {
			t.Fatal(err)
		}
		// The last message tells where the end is, whatever the filters leave out.
		s := subscribe(t, b, bus.SubscribeOptions{Partition: i})
		for at := info.First; at <= info.Last; {
			d := next(t, s)
			if bus.MatchAny(filters, d.Subject) {
				out = append(out, d)
			}
			at = d.Seq + 1
		}
		s.Close()
	}
	return out
}

func subscribe(t *testing.T, b bus.Bus, o bus.SubscribeOptions) bus.Subscription {
	t.Helper()
	s, err := b.Subscribe(deadline(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func next(t *testing.T, s bus.Subscription) bus.Delivery {
	t.Helper()
	d, err := s.Next(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func random(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
