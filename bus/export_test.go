package bus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	kafka "github.com/segmentio/kafka-go"
)

// InProcess lets a test reach an embedded server with a client of its own.
func InProcess(e *EmbeddedServer) nats.Option { return nats.InProcessServer(e) }

// SetAnswerTimeout changes when the broker's silence counts as a failure.
func SetAnswerTimeout(n *NATS, d time.Duration) {
	n.pub.mu.Lock()
	defer n.pub.mu.Unlock()
	n.pub.answerTimeout = d
}

// SetIdleCheck changes when a reader that gets nothing looks at the stream.
func SetIdleCheck(s Subscription, d time.Duration) { s.(*subscription).idle = d }

// SkippedTo is where a reader last moved on over messages of others.
func SkippedTo(s Subscription) uint64 { return s.(*subscription).skippedTo.Load() }

// DeleteTopic removes the topic of a stream, as somebody else could.
func DeleteTopic(ctx context.Context, k *Kafka) error {
	a, err := k.client.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{k.o.Stream}})
	if err == nil {
		err = a.Errors[k.o.Stream]
	}
	return err
}
