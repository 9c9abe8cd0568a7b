package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sonde/bus"
	"sonde/bus/kafkatest"
	"sonde/trials/fleet"
)

const kafkaConfig = `bus:
  kafka: {brokers: ["%[2]s"], max_bytes: 8GiB}
  stream: %[3]s
  partitions: %[4]d
agent:
  socket: %[5]s
  linger_ms: 50
  batch_bytes: %[6]d
  inflight_bytes: %[7]d
  dead_letter: {dir: %[1]s/dead-letter}
policy:
  rules:
    - {name: every row, hooks: ["*"]}
materializer: {lake: %[1]s/lake}
http: {listen: ""}
`

// kafkaWire is a topic of a real broker, and an agent that publishes to it.
type kafkaWire struct {
	wire
	address    string
	topic      string
	partitions int
	bus        *bus.Kafka // of this process: it reads and trims
}

// ringToKafka is section g.
func (b *bench) ringToKafka(ctx context.Context) (*section, error) {
	s := &section{Title: "ring to Kafka acknowledgement, and Kafka to Arrow, on a real broker of one node",
		header: []string{"way", "message", "partitions", "MB/s", "to the bare kafka-go client", "its CPU", "to franz-go",
			"noise"}}
	if why := kafkatest.Missing(); why != "" {
		b.miss("section g: " + why)
		s.notef("NOT RUN: %s", why)
		return s, nil
	}
	s.notef("The bare clients publish the same messages, ready made, to the same topic: all replicas in sync,")
	s.notef("batches of 1 MiB, no compression; franz-go with its idempotent writer. They read them, and decode")
	s.notef("them with arrow-go's own reader.")
	dir, err := b.folder("kafka")
	if err != nil {
		return nil, err
	}
	b.progress.Show("g: starting a Kafka broker")
	broker, err := kafkatest.Start(kafkatest.Options{Dir: dir, Lines: []string{
		"log.retention.check.interval.ms=2000", "log.segment.delete.delay.ms=1000"}}) // the disk is freed while it runs
	if err != nil {
		return nil, err
	}
	defer broker.Kill()
	for _, size := range b.sizes.messageBytes {
		for _, partitions := range []int{1, 4} {
			if err := b.kafkaOf(ctx, s, broker.Address, size, partitions); err != nil {
				return nil, fmt.Errorf("messages of %s, %d partitions: %w", sizeName(size), partitions, err)
			}
		}
	}
	s.afterf("MB/s are of the rows. The broker, a Java process, shares the cores with it. CPU is")
	s.afterf("ours as a multiple of the bare client's: of the agent, which reads rings and makes Arrow, or the reader.")
	return s, b.kafkaLatency(ctx, s, broker.Address)
}

// newKafkaWire starts an agent on a topic of its own.
func (b *bench) newKafkaWire(ctx context.Context, address string, size, partitions int) (w *kafkaWire, err error) {
	dir, err := b.folder("kafka-agent")
	if err != nil {
		return nil, err
	}
	w = &kafkaWire{address: address, topic: fmt.Sprintf("BENCH-%d-%d", size, partitions), partitions: partitions,
		wire: wire{socket: socketPath()}}
	w.forget = w.empty
	file := filepath.Join(dir, "sonde.yaml")
	text := fmt.Sprintf(kafkaConfig, dir, address, w.topic, partitions, w.socket, size, inflightBytes)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	w.bus, err = bus.OpenKafka(ctx, bus.KafkaOptions{Brokers: []string{address}, Stream: w.topic, Partitions: partitions,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	w.agent = fleet.NewProcess("agent", dir, b.binary, "run", "--config", file, "--role", "agent")
	if err := w.agent.Start(); err != nil {
		w.close()
		return nil, err
	}
	for { // an engine waits for nobody, so the agent must be there first
		text, err := os.ReadFile(filepath.Join(dir, "agent.log"))
		switch {
		case err == nil && strings.Contains(string(text), "running"):
			return w, nil
		case ctx.Err() != nil:
			w.close()
			return nil, fmt.Errorf("wait for the agent: %w; it said: %s", ctx.Err(), w.agent.Tail())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (w *kafkaWire) close() {
	if w.agent != nil && w.agent.Running() {
		_ = w.agent.Kill() // nothing that it holds is wanted
	}
	_ = w.bus.Close() // nothing is under way
}

// empty forgets what the topic holds.
func (w *kafkaWire) empty(ctx context.Context) error {
	for i := range w.partitions {
		info, err := w.bus.Info(ctx, i)
		if err == nil {
			err = w.bus.Trim(ctx, i, info.Last+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// messages reads the vectors that the topic holds.
func (w *kafkaWire) messages(ctx context.Context) (out []bus.Delivery, err error) {
	for i := range w.partitions {
		info, err := w.bus.Info(ctx, i)
		if err != nil {
			return nil, err
		}
		if info.Messages == 0 {
			continue
		}
		s, err := w.bus.Subscribe(ctx, bus.SubscribeOptions{Partition: i, From: info.First})
		if err != nil {
			return nil, err
		}
		for at := uint64(0); at < info.Last; {
			d, err := s.Next(ctx)
			if err != nil {
				s.Close()
				return nil, err
			}
			if at = d.Seq; bus.Match("sonde.v1.*.*.*.vectors.>", d.Subject) {
				out = append(out, d)
			}
		}
		s.Close()
	}
	if len(out) == 0 {
		return nil, errors.New("the topic holds no vectors")
	}
	return out, nil
}

// kafkaOf adds the lines of one size and number of partitions.
func (b *bench) kafkaOf(ctx context.Context, s *section, address string, size, partitions int) error {
	w, err := b.newKafkaWire(ctx, address, size, partitions)
	if err != nil {
		return err
	}
	defer w.close()
	shape := standardShape
	steps := max(b.sizes.kafkaBytes/(partitions*shape.stepBytes()), 1)
	// One run to have messages for the bare clients.
	if _, err := w.ours(ctx, shape, partitions, steps); err != nil {
		return err
	}
	messages, err := w.messages(ctx)
	if err != nil {
		return err
	}
	payload := float64(partitions * steps * shape.stepBytes())
	what := fmt.Sprintf("messages of %s, %d partitions", sizeName(size), partitions)
	bare := arm{"bare", func(ctx context.Context) (sample, error) { return w.kafkaGo(ctx, messages) }}
	r, err := b.compare(ctx, "g: publish, "+what,
		arm{"ours", func(ctx context.Context) (sample, error) { return w.ours(ctx, shape, partitions, steps) }},
		bare, arm{"bare again", bare.run},
		arm{"franz", func(ctx context.Context) (sample, error) { return w.franz(ctx, messages) }})
	if err != nil {
		return err
	}
	s.addKafka("publish", size, partitions, r, payload)
	if _, err := w.kafkaGo(ctx, messages); err != nil { // they are read from now on
		return err
	}
	reads := arm{"bare", func(ctx context.Context) (sample, error) { return w.readKafkaGo(ctx, messages) }}
	r, err = b.compare(ctx, "g: read, "+what,
		arm{"ours", func(ctx context.Context) (sample, error) { return w.readOurs(ctx, messages) }},
		reads, arm{"bare again", reads.run},
		arm{"franz", func(ctx context.Context) (sample, error) { return w.readFranz(ctx, messages) }})
	if err != nil {
		return err
	}
	s.addKafka("read", size, partitions, r, payload)
	return nil
}

func (s *section) addKafka(way string, size, partitions int, r rounds, payload float64) {
	id := fmt.Sprintf("g.%s.%s.%d_partitions.", way, sizeID(size), partitions)
	speed := figure{ID: id + "speed_to_kafka_go", spread: r.speed("ours", "bare"), Unit: "ratio"}.atLeast(0.9)
	cpu := figure{ID: id + "cpu_to_kafka_go", spread: r.cpu("ours", "bare"), Unit: "ratio"}
	franz := figure{ID: id + "speed_to_franz_go", spread: r.speed("ours", "franz"), Unit: "ratio"}
	rate := figure{ID: id + "mb_per_s", spread: r.rate("ours", payload/1e6), Unit: "MB/s"}
	s.keep(speed, cpu, franz, rate)
	s.row(way, sizeName(size), fmt.Sprint(partitions), fmt.Sprintf("%.0f", rate.Median), judged(speed),
		ratio(cpu.spread), ratio(franz.spread), percent(r.noise("bare", "bare again")))
}
