package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/apache/arrow-go/v18/arrow/ipc"
	kafka "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"

	"sonde/bus"
	"sonde/schema"
)

// bareBatchBytes is where the bare clients close a batch: one message of 1 MiB with
// its names fits.
const (
	bareBatchBytes = 1<<20 + 64<<10
	bareFetchBytes = 8 << 20
)

// tally counts what is under way, and keeps the first failure.
type tally struct {
	sync.WaitGroup
	mu     sync.Mutex
	failed error
}

func (t *tally) book(n int, err error) {
	t.mu.Lock()
	if t.failed == nil {
		t.failed = err
	}
	t.mu.Unlock()
	t.Add(-n)
}

// kafkaGo is the arm of the bare kafka-go client, which publishes.
func (w *kafkaWire) kafkaGo(ctx context.Context, messages []bus.Delivery) (s sample, err error) {
	if err := w.empty(ctx); err != nil {
		return s, err
	}
	var acks tally
	// A transport of its own: the shared one knows a new topic seconds late.
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	writer := &kafka.Writer{Addr: kafka.TCP(w.address), Transport: transport, Topic: w.topic,
		RequiredAcks: kafka.RequireAll, BatchBytes: bareBatchBytes, BatchSize: 1024, BatchTimeout: time.Millisecond,
		Async: true,
		Balancer: kafka.BalancerFunc(func(m kafka.Message, partitions ...int) int {
			return bus.PartitionOf(string(m.Key), len(partitions))
		}),
		Completion: func(m []kafka.Message, err error) { acks.book(len(m), err) }}
	write := func(d *bus.Delivery) error {
		acks.Add(1)
		return writer.WriteMessages(ctx, kafka.Message{Key: []byte(d.Subject), Value: d.Data})
	}
	if err := write(&messages[0]); err != nil { // connects
		return s, err
	}
	acks.Wait()
	if err := w.empty(ctx); err != nil {
		return s, err
	}
	cpu, began := processCPU(), time.Now()
	for i := range messages {
		if err := write(&messages[i]); err != nil {
			return s, err
		}
	}
	acks.Wait()
	s = sample{time.Since(began).Seconds(), processCPU() - cpu}
	return s, errors.Join(acks.failed, writer.Close())
}

// franz is the arm of franz-go.
func (w *kafkaWire) franz(ctx context.Context, messages []bus.Delivery) (s sample, err error) {
	if err := w.empty(ctx); err != nil {
		return s, err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(w.address), kgo.DefaultProduceTopic(w.topic),
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerBatchMaxBytes(bareBatchBytes),
		kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MaxBufferedBytes(inflightBytes))
	if err != nil {
		return s, err
	}
	defer client.Close()
	var acks tally
	write := func(d *bus.Delivery) {
		acks.Add(1)
		client.Produce(ctx, &kgo.Record{Key: []byte(d.Subject), Value: d.Data,
			Partition: int32(bus.PartitionOf(d.Subject, w.partitions))},
			func(_ *kgo.Record, err error) { acks.book(1, err) })
	}
	write(&messages[0]) // connects
	acks.Wait()
	if err := w.empty(ctx); err != nil {
		return s, err
	}
	cpu, began := processCPU(), time.Now()
	for i := range messages {
		write(&messages[i])
	}
	acks.Wait()
	return sample{time.Since(began).Seconds(), processCPU() - cpu}, acks.failed
}

// readAll reads all partitions at once, each to its last message. read gives the next
// message of a partition and decodes it; the first of each comes before the clock.
func readAll(messages []bus.Delivery, partitions int, read func(partition int) error) (s sample, err error) {
	counts := make([]int, partitions)
	for i := range messages {
		counts[bus.PartitionOf(messages[i].Subject, partitions)]++
	}
	first := make([]error, partitions)
	var connecting sync.WaitGroup
	for i := range partitions {
		connecting.Go(func() { first[i] = read(i) })
	}
	connecting.Wait()
	if err := errors.Join(first...); err != nil {
		return s, err
	}
	cpu, began := processCPU(), time.Now()
	failed := make([]error, partitions)
	var reading sync.WaitGroup
	for i, n := range counts {
		reading.Go(func() {
			for range n - 1 {
				if failed[i] = read(i); failed[i] != nil {
					return
				}
			}
		})
	}
	reading.Wait()
	return sample{time.Since(began).Seconds(), processCPU() - cpu}, errors.Join(failed...)
}

// readOurs is the arm of the bus.
func (w *kafkaWire) readOurs(ctx context.Context, messages []bus.Delivery) (sample, error) {
	readers := make([]bus.Subscription, w.partitions)
	for i := range readers {
		var err error
		if readers[i], err = w.bus.Subscribe(ctx, bus.SubscribeOptions{Partition: i}); err != nil {
			return sample{}, err
		}
		defer readers[i].Close()
	}
	return readAll(messages, w.partitions, func(i int) error {
		d, err := readers[i].Next(ctx)
		if err == nil {
			_, err = schema.Decode(d.Data)
		}
		return err
	})
}

// arrowOf decodes a message as anybody with arrow-go would.
func arrowOf(data []byte) error {
	r, err := ipc.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	defer r.Release()
	if !r.Next() {
		return errors.Join(errors.New("a message holds no record batch"), r.Err())
	}
	return nil
}

// readKafkaGo is the arm of the bare kafka-go client.
func (w *kafkaWire) readKafkaGo(ctx context.Context, messages []bus.Delivery) (s sample, err error) {
	readers := make([]*kafka.Reader, w.partitions)
	for i := range readers {
		info, err := w.bus.Info(ctx, i)
		if err != nil {
			return s, err
		}
		readers[i] = kafka.NewReader(kafka.ReaderConfig{Brokers: []string{w.address}, Topic: w.topic, Partition: i,
			MinBytes: 1, MaxBytes: bareFetchBytes})
		defer readers[i].Close()
		if err := readers[i].SetOffset(int64(info.First) - 1); err != nil {
			return s, err
		}
	}
	return readAll(messages, w.partitions, func(i int) error {
		m, err := readers[i].ReadMessage(ctx)
		if err != nil {
			return fmt.Errorf("partition %d: %w", i, err)
		}
		return arrowOf(m.Value)
	})
}

// readFranz is the arm of franz-go: one client for each partition, as there is one
// goroutine for each.
func (w *kafkaWire) readFranz(ctx context.Context, messages []bus.Delivery) (s sample, err error) {
	clients := make([]*kgo.Client, w.partitions)
	ready := make([][]*kgo.Record, w.partitions)
	for i := range clients {
		clients[i], err = kgo.NewClient(kgo.SeedBrokers(w.address), kgo.FetchMaxBytes(bareFetchBytes),
			kgo.FetchMaxPartitionBytes(bareFetchBytes), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
				w.topic: {int32(i): kgo.NewOffset().AtStart()}}))
		if err != nil {
			return s, err
		}
		defer clients[i].Close()
	}
	return readAll(messages, w.partitions, func(i int) error {
		for len(ready[i]) == 0 {
			fetched := clients[i].PollFetches(ctx)
			if err := fetched.Err(); err != nil {
				return fmt.Errorf("partition %d: %w", i, err)
			}
			ready[i] = fetched.Records()
		}
		r := ready[i][0]
		ready[i] = ready[i][1:]
		return arrowOf(r.Value)
	})
}
