package bus_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/kafkatest"
	"sonde/internal/notrun"
)

// One broker serves all tests, each with a topic of its own: a start takes seconds.
var (
	kafkaOnce   sync.Once
	kafkaServer *kafkatest.Broker
	kafkaErr    error
	kafkaDir    string
	kafkaTopics atomic.Int64
)

func realKafka(t *testing.T) *kafkatest.Broker {
	t.Helper()
	if why := kafkatest.Missing(); why != "" {
		notrun.Mark(t, why)
	}
	kafkaOnce.Do(func() {
		if kafkaDir, kafkaErr = os.MkdirTemp("", "sonde-kafka-"); kafkaErr != nil {
			return
		}
		var o kafkatest.Options
		if o, kafkaErr = kafkatest.Secured(kafkaDir); kafkaErr == nil {
			kafkaServer, kafkaErr = kafkatest.Start(o)
		}
	})
	if kafkaErr != nil {
		t.Fatal(kafkaErr)
	}
	return kafkaServer
}

// stopKafka is called when all tests are over.
func stopKafka() {
	if kafkaServer != nil {
		kafkaServer.Kill()
	}
	if kafkaDir != "" {
		os.RemoveAll(kafkaDir)
	}
}

func openKafka(t *testing.T, o bus.KafkaOptions) *bus.Kafka {
	t.Helper()
	o.Logger = quiet()
	if testing.Verbose() {
		o.Logger = nil
	}
	b, err := bus.OpenKafka(deadline(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func kafkaBroker(t *testing.T, partitions int) *broker {
	server := realKafka(t)
	topic := fmt.Sprintf("T%d", kafkaTopics.Add(1))
	open := func(t *testing.T, maxBytes int64) bus.Bus {
		return openKafka(t, bus.KafkaOptions{Brokers: []string{server.Address}, Stream: topic, Partitions: partitions,
			MaxBytes: maxBytes * int64(partitions), WindowBytes: 1 << 20})
	}
	return &broker{open: open,
		down: func(*testing.T) { server.Kill() },
		up: func(t *testing.T) {
			t.Helper()
			if err := server.Up(); err != nil {
				t.Fatal(err)
			}
		},
		signal: func(t *testing.T, s os.Signal) {
			if err := server.Signal(s); err != nil {
				t.Error(err)
			}
		},
		recreate: func(t *testing.T) {
			t.Helper()
			k := open(t, 0).(*bus.Kafka)
			if err := bus.DeleteTopic(deadline(t), k); err != nil {
				t.Fatal(err)
			}
			k.Close()
		}}
}

func contextOf(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}
