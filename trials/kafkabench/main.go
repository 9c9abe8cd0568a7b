// Kafkabench measures publishing to and reading from a real Kafka broker through
// the bus, as ratios to the bare kafka-go client with the same settings, in the same
// run: all replicas in sync, batches of 1 MiB, no compression, one partition.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	kafka "github.com/segmentio/kafka-go"

	"sonde/bus"
	"sonde/bus/kafkatest"
)

const (
	batchBytes = 1<<20 + 64<<10 // of the bare client: one message of 1 MiB with its names
	fetchBytes = 8 << 20
)

func main() {
	mib := flag.Int("mib", 128, "MiB that each arm moves in each round")
	rounds := flag.Int("rounds", 5, "rounds; each runs all arms once")
	flag.Parse()
	if why := kafkatest.Missing(); why != "" {
		fmt.Println("NOT RUN: kafkabench:", why)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *mib<<20, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	address string
	client  *kafka.Client
	topics  int
}

func run(ctx context.Context, bytes, rounds int) error {
	dir, err := os.MkdirTemp("", "sonde-kafka-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	broker, err := kafkatest.Start(kafkatest.Options{Dir: dir})
	if err != nil {
		return err
	}
	defer broker.Kill()
	b := &bench{address: broker.Address, client: &kafka.Client{Addr: kafka.TCP(broker.Address)}}
	fmt.Printf("%-8s %-8s %9s %9s %18s %18s %18s\n", "message", "way", "bus MB/s", "bare MB/s", "bus to bare",
		"bare to bare", "CPU bus to bare")
	for _, size := range []int{64 << 10, 1 << 20} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		n := max(bytes/size, 1)
		if err := b.compare(ctx, data, n, rounds); err != nil {
			return err
		}
	}
	return b.latency(ctx)
}

// compare prints a line for publishing and one for reading. Ratios are medians of
// the ratios of each round, with the least and the largest.
func (b *bench) compare(ctx context.Context, data []byte, n, rounds int) error {
	seconds := map[string][]float64{}
	for round := range rounds + 1 {
		topic, err := b.topic(ctx)
		if err != nil {
			return err
		}
		arms := []arm{{"bus", b.publish}, {"bare", b.bare}, {"again", b.bare}}
		readers := []arm{{"bus", b.read}, {"bare", b.bareRead}, {"again", b.bareRead}}
		rand.Shuffle(len(arms), func(i, j int) { arms[i], arms[j] = arms[j], arms[i] })
		rand.Shuffle(len(readers), func(i, j int) { readers[i], readers[j] = readers[j], readers[i] })
		if err := timed(ctx, seconds, "publish ", arms, round > 0, topic, data, n); err != nil {
			return err
		}
		if err := timed(ctx, seconds, "read ", readers, round > 0, topic, data, n); err != nil {
			return err
		}
		if _, err := b.client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{topic}}); err != nil {
			return err
		}
	}
	for _, way := range []string{"publish ", "read "} {
		moved := float64(len(data)*n) / 1e6
		ours, bare, again := seconds[way+"bus"], seconds[way+"bare"], seconds[way+"again"]
		cpu := ratio(seconds[way+"bus CPU"], seconds[way+"bare CPU"])
		fmt.Printf("%-8s %-8s %9.0f %9.0f %18s %18s %18s\n", fmt.Sprintf("%d KiB", len(data)>>10), way,
			moved/median(ours), moved/median(bare), ratio(bare, ours), ratio(bare, again), cpu)
	}
	return nil
}

// arm is one way to move n messages, and tells how long that took once it was
// connected.
type arm struct {
	name string
	move func(ctx context.Context, topic string, data []byte, n int) (time.Duration, error)
}

// timed runs the arms; the first round only warms up.
func timed(ctx context.Context, seconds map[string][]float64, way string, arms []arm, keep bool, topic string,
	data []byte, n int) error {
	for _, a := range arms {
		before := cpuSeconds()
		took, err := a.move(ctx, topic, data, n)
		if err != nil {
			return fmt.Errorf("%s%s: %w", way, a.name, err)
		}
		if keep {
			seconds[way+a.name] = append(seconds[way+a.name], took.Seconds())
			seconds[way+a.name+" CPU"] = append(seconds[way+a.name+" CPU"], cpuSeconds()-before)
		}
	}
	return nil
}

// cpuSeconds is the time that this process, without the broker, has computed.
func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic("BUG: a process can always ask for its own time: " + err.Error())
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

func ratio(base, v []float64) string {
	var out []float64
	for i := range v {
		out = append(out, base[i]/v[i])
	}
	return fmt.Sprintf("%.2f [%.2f %.2f]", median(out), slices.Min(out), slices.Max(out))
}

// topic makes a topic for one round, as the bus makes it.
func (b *bench) topic(ctx context.Context) (string, error) {
	b.topics++
	name := fmt.Sprintf("BENCH-%d", b.topics)
	k, err := b.open(ctx, name)
	if err != nil {
		return "", err
	}
	return name, k.Close()
}

func (b *bench) open(ctx context.Context, topic string) (*bus.Kafka, error) {
	return bus.OpenKafka(ctx, bus.KafkaOptions{Brokers: []string{b.address}, Stream: topic,
		Logger: slog.New(slog.DiscardHandler)})
}

// tally counts acknowledgements.
type tally struct {
	sync.WaitGroup
	mu     sync.Mutex
	failed error
}

func (t *tally) book(n int, err error) {
	t.mu.Lock()
	t.failed = errors.Join(t.failed, err)
	t.mu.Unlock()
	t.Add(-n)
}

const subject = "sonde.v1.bench"

func (b *bench) publish(ctx context.Context, topic string, data []byte, n int) (time.Duration, error) {
	k, err := b.open(ctx, topic)
	if err != nil {
		return 0, err
	}
	defer k.Close()
	var acks tally
	publish := func(data []byte) error {
		acks.Add(1)
		return k.Publish(ctx, bus.Message{Subject: subject, Data: data}, func(_ uint64, err error) { acks.book(1, err) })
	}
	if err := publish(nil); err != nil { // connects
		return 0, err
	}
	acks.Wait()
	began := time.Now()
	for range n {
		if err := publish(data); err != nil {
			return 0, err
		}
	}
	acks.Wait()
	return time.Since(began), acks.failed
}

func (b *bench) bare(ctx context.Context, topic string, data []byte, n int) (time.Duration, error) {
	var acks tally
	// A transport of its own: the shared one knows a new topic seconds late.
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	w := &kafka.Writer{Addr: kafka.TCP(b.address), Transport: transport, Topic: topic, RequiredAcks: kafka.RequireAll,
		BatchBytes: batchBytes, BatchSize: 1024, BatchTimeout: time.Millisecond, Async: true,
		Completion: func(m []kafka.Message, err error) { acks.book(len(m), err) }}
	write := func(data []byte) error {
		acks.Add(1)
		return w.WriteMessages(ctx, kafka.Message{Key: []byte(subject), Value: data})
	}
	if err := write(nil); err != nil { // connects
		return 0, err
	}
	acks.Wait()
	began := time.Now()
	for range n {
		if err := write(data); err != nil {
			return 0, err
		}
	}
	acks.Wait()
	took := time.Since(began)
	return took, errors.Join(acks.failed, w.Close())
}

func (b *bench) read(ctx context.Context, topic string, _ []byte, n int) (time.Duration, error) {
	k, err := b.open(ctx, topic)
	if err != nil {
		return 0, err
	}
	defer k.Close()
	began := time.Now()
	s, err := k.Subscribe(ctx, bus.SubscribeOptions{})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	for range n {
		if _, err := s.Next(ctx); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

func (b *bench) bareRead(ctx context.Context, topic string, _ []byte, n int) (time.Duration, error) {
	r := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{b.address}, Topic: topic, MinBytes: 1, MaxBytes: fetchBytes})
	if _, err := r.ReadMessage(ctx); err != nil { // connects
		return 0, errors.Join(err, r.Close())
	}
	began := time.Now()
	for range n {
		if _, err := r.ReadMessage(ctx); err != nil {
			return 0, errors.Join(err, r.Close())
		}
	}
	took := time.Since(began)
	return took, r.Close()
}
