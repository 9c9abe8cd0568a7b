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
	for _, p := range n.pubs {
		p.mu.Lock()
		p.answerTimeout = d
		p.mu.Unlock()
	}
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

// SetPatience changes when the silence of a Kafka broker counts as a failure.
func SetPatience(k *Kafka, d time.Duration) { k.patience.Store(int64(d)) }

// KafkaClient is the client below a Kafka.
func KafkaClient(k *Kafka) *kafka.Client { return k.client }

// ProduceHead is what stands in front of a batch.
func ProduceHead(topic string, batch []byte) []byte { return (&produceQuery{topic, 0, batch}).head() }

// ParseProduced reads the answer to a batch.
func ParseProduced(answer []byte) (code int16, offset int64, err error) {
	a, err := parseProduced(answer)
	if err != nil {
		return 0, 0, err
	}
	return a.code, a.offset, nil
}

// EncodeBatch writes messages as a batch of a topic, at a time in ms since 1970.
func EncodeBatch(now int64, messages []Message) []byte {
	var records []batchRecord
	for _, m := range messages {
		records = append(records, batchRecord{key: m.Subject, value: m.Data, headers: [][2]string{{"id", m.ID}}})
	}
	return encodeBatch(nil, now, records)
}

// ParseTopic reads an answer about a topic.
func ParseTopic(answer []byte, topic string) (id string, partitions, replicas int, err error) {
	t, err := parseTopic(answer, topic)
	if err != nil {
		return "", 0, 0, err
	}
	return t.id, t.partitions, t.replicas, nil
}

// StreamSize adds up the bytes of a topic.
type StreamSize struct{ s streamSize }

// The steps of a StreamSize, as a Kafka takes them.
func (s *StreamSize) Expect(id string, bytes uint64)              { s.s.expect(id, bytes) }
func (s *StreamSize) Saw(id string, start, end int64) uint64      { return s.s.saw(id, start, end) }
func (s *StreamSize) Begin()                                      { s.s.begin() }
func (s *StreamSize) Sent(first int64, n int, bytes uint64)       { s.s.sent(first, n, bytes) }
func (s *StreamSize) Read(id string, first, next int64, n uint64) { s.s.read(id, first, next, n) }
func (s *StreamSize) Runs() int                                   { return len(s.s.runs) }

// MaxSizeRuns bounds them.
const MaxSizeRuns = maxSizeRuns
