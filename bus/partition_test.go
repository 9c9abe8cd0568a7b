package bus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sonde/bus"
	"sonde/bus/bustest"
)

// A writer and a reader that count differently would look for a chain in a partition
// where it is not.
func TestPartitionsAreThoseOfThePage(t *testing.T) {
	page, err := os.ReadFile("../schema/SCHEMA.md")
	if err != nil {
		t.Fatal(err)
	}
	numbers, vectors := []int{1, 2, 3, 4, 16, 100, 256}, 0
	for line := range strings.SplitSeq(string(page), "\n") {
		cells := strings.Split(line, " | ")
		subject := strings.Trim(cells[0], "| `")
		if !strings.HasPrefix(subject, "sonde.v1") || len(cells) != len(numbers)+1 {
			continue
		}
		vectors++
		for i, n := range numbers {
			want, err := strconv.Atoi(strings.Trim(cells[i+1], "| "))
			if got := bus.PartitionOf(subject, n); err != nil || got != want {
				t.Errorf("%s of %d: partition %d, want %d, %v", subject, n, got, want, err)
			}
		}
	}
	if vectors < 10 {
		t.Errorf("the page has %d vectors", vectors)
	}
	for _, subject := range []string{"", ".", "sonde.v1", "a.b.c.d.e.f", "....."} {
		if got := bus.PartitionOf(subject, 7); got < 0 || got > 6 {
			t.Errorf("%q is in partition %d of 7", subject, got)
		}
	}
}

// ranksOf finds, for each partition, a rank whose messages it stores.
func ranksOf(partitions int) []string {
	out := make([]string, partitions)
	for i := 0; slices.Contains(out, ""); i++ {
		name := fmt.Sprint("engine", i)
		out[bus.PartitionOf("sonde.v1.tenant."+name+".0.x", partitions)] = name
	}
	return out
}

// A partition whose bound is reached must wait alone.
func TestAFullPartitionDoesNotHoldUpTheOthers(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 200_000)
		if b.Partitions() == 1 {
			return
		}
		ranks := ranksOf(b.Partitions())
		full := newPublisher(b, ranks[0], 100_000)
		ctx, cancel := context.WithCancel(context.Background())
		for i := range 5 {
			if err := full.publish(ctx, 4*i); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range ranks[1:] {
			other := newPublisher(b, name, 100)
			for i := range 10 {
				other.publish(deadline(t), i)
			}
			other.check(t, 10)
		}
		if info := full.info(t); info.Bytes > 200_000 || info.MaxBytes != 200_000 {
			t.Errorf("the full partition: %+v", info)
		}
		cancel()
		full.waiting.Wait()
		if len(full.errs) == 0 {
			t.Error("everything was taken: the partition was never full")
		}
	})
}

// Where a writer believed in another number, messages of one rank would stand in two
// partitions.
func TestAnotherNumberOfPartitionsIsRefused(t *testing.T) {
	embedded := func(t *testing.T) func(partitions int) (bus.Bus, error) {
		e := startEmbedded(t, bus.EmbeddedOptions{StoreDir: t.TempDir(), Logger: quiet()})
		t.Cleanup(func() { e.Close() })
		return func(partitions int) (bus.Bus, error) {
			return bus.OpenNATS(deadline(t), bus.NATSOptions{Embedded: e, Partitions: partitions, Logger: quiet()})
		}
	}
	real := func(t *testing.T) func(partitions int) (bus.Bus, error) {
		server, topic := realKafka(t), ownTopic()
		return func(partitions int) (bus.Bus, error) {
			return bus.OpenKafka(deadline(t), bus.KafkaOptions{Brokers: []string{server.Address}, Stream: topic,
				Partitions: partitions, Logger: quiet()})
		}
	}
	for name, start := range map[string]func(*testing.T) func(int) (bus.Bus, error){"embedded": embedded, "kafka": real} {
		for _, c := range [][2]int{{3, 1}, {1, 3}, {3, 2}, {2, 3}} {
			t.Run(fmt.Sprint(name, " ", c), func(t *testing.T) {
				open := start(t)
				b, err := open(c[0])
				if err != nil {
					t.Fatal(err)
				}
				defer b.Close()
				want := fmt.Sprintf("%d partitions, and bus.partitions is %d", c[0], c[1])
				if other, err := open(c[1]); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v, %v; want %s", other, err, want)
				}
				again, err := open(c[0])
				if err != nil {
					t.Fatal(err)
				}
				again.Close()
			})
		}
	}
}

func TestPartitionsThatDoNotExistAreRefused(t *testing.T) {
	forEachBroker(t, func(t *testing.T, k *broker) {
		b := k.open(t, 0)
		for _, p := range []int{-1, b.Partitions()} {
			_, err1 := b.Info(deadline(t), p)
			_, err2 := b.Subscribe(deadline(t), bus.SubscribeOptions{Partition: p})
			err3 := b.Trim(deadline(t), p, 1)
			for i, err := range []error{err1, err2, err3} {
				if err == nil || !strings.Contains(err.Error(), "no partition") {
					t.Errorf("call %d on partition %d: %v", i, p, err)
				}
			}
		}
	})
	for _, n := range []int{-1, bus.MaxPartitions + 1} {
		if b, err := bus.OpenNATS(deadline(t), bus.NATSOptions{URL: "nats://127.0.0.1:1", Partitions: n}); err == nil {
			t.Errorf("%d partitions: %v", n, b)
		}
		o := bus.KafkaOptions{Brokers: []string{"127.0.0.1:1"}, Partitions: n}
		if b, err := bus.OpenKafka(deadline(t), o); err == nil {
			t.Errorf("%d partitions: %v", n, b)
		}
	}
}

// The positions of the other partitions stay what they are.
func TestOnePartitionThatIsMadeAnewIsNoticedThere(t *testing.T) {
	memory := bustest.NewPartitioned(3)
	t.Cleanup(func() { memory.Close() })
	e := startEmbedded(t, bus.EmbeddedOptions{StoreDir: t.TempDir(), Logger: quiet()})
	t.Cleanup(func() { e.Close() })
	embedded := openNATS(t, bus.NATSOptions{Embedded: e, Partitions: 3})
	remove := func() {
		nc, err := nats.Connect("", bus.InProcess(e))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err == nil {
			err = js.DeleteStream(deadline(t), "SONDE-1")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		b    bus.Bus
		anew func()
	}{"memory": {memory, func() { memory.RecreatePartition(1) }}, "embedded": {embedded, remove}} {
		ranks := ranksOf(3)
		var publishers []*publisher
		var readers []bus.Subscription
		for _, rank := range ranks {
			p := newPublisher(c.b, rank, 10)
			p.publish(deadline(t), 0)
			p.waiting.Wait()
			r := p.read(t, bus.SubscribeOptions{})
			next(t, r)
			publishers, readers = append(publishers, p), append(readers, r)
		}
		c.anew()
		for i, p := range publishers {
			p.publish(deadline(t), 1)
			p.waiting.Wait()
			d, err := readers[i].Next(deadline(t))
			if i == 1 && !errors.Is(err, bus.ErrIncarnation) || i != 1 && (err != nil || d.Seq != 2) {
				t.Errorf("%s, partition %d: position %d, %v", name, i, d.Seq, err)
			}
			if err := c.b.Trim(deadline(t), i, 2); (i == 1) != errors.Is(err, bus.ErrIncarnation) {
				t.Errorf("%s: trim partition %d: %v", name, i, err)
			}
		}
	}
}

// Where the rights of a tenant are a prefix of its subjects, they must be that for
// each partition.
func TestATenantIsAPrefixOnTheWireOfEachPartition(t *testing.T) {
	e := startEmbedded(t, bus.EmbeddedOptions{StoreDir: t.TempDir(), Logger: quiet()})
	t.Cleanup(func() { e.Close() })
	for partitions, want := range map[int]string{1: "sonde.v1.acme.llm.0.x", 3: "sonde.v1.acme.0of3.llm.0.x"} {
		nc, err := nats.Connect("", bus.InProcess(e))
		if err != nil {
			t.Fatal(err)
		}
		heard := make(chan *nats.Msg, 10)
		sub, err := nc.ChanSubscribe("sonde.v1.acme.>", heard)
		if err == nil {
			err = nc.Flush()
		}
		if err != nil {
			t.Fatal(err)
		}
		b := openNATS(t, bus.NATSOptions{Embedded: e, Partitions: partitions})
		publishTo(t, b, "sonde.v1.other.llm.0.x")
		publishTo(t, b, "sonde.v1.acme.llm.0.x")
		publishTo(t, b, "sonde.v1.acme")
		select {
		case m := <-heard:
			if m.Subject != want {
				t.Errorf("%d partitions: %s on the wire, want %s", partitions, m.Subject, want)
			}
		case <-time.After(time.Minute):
			t.Error("nothing on the wire")
		}
		if err := sub.Unsubscribe(); err != nil {
			t.Error(err)
		}
		var subjects []string
		for _, d := range readAll(t, b) {
			subjects = append(subjects, d.Subject)
		}
		slices.Sort(subjects)
		if got := strings.Join(subjects, " "); got != "sonde.v1.acme sonde.v1.acme.llm.0.x sonde.v1.other.llm.0.x" {
			t.Errorf("%d partitions hold %s", partitions, got)
		}
		nc.Close()
		b.Close()
		nc, err = nats.Connect("", bus.InProcess(e))
		deleteStreams(t, nc, err)
	}
}
