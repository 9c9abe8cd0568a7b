package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
	"github.com/segmentio/kafka-go/protocol/listoffsets"
)

// ask is one question to the cluster.
func ask[T any](ctx context.Context, k *Kafka, q protocol.Message) (T, error) {
	began := k.now()
	a, err := k.transport.RoundTrip(ctx, k.addr, q)
	k.heard(began, err)
	if err == nil {
		return a.(T), nil
	}
	var none T
	if why := refusal(err); why != "" {
		err = errPermanent{fmt.Errorf("%s: %w", why, err)}
	}
	if errors.Is(err, io.EOF) && k.o.Security.TLS && k.answered.Load() == 0 {
		err = fmt.Errorf("%w: the broker ends the connection; perhaps it does not speak TLS there", err)
	}
	return none, err
}

// kafkaError is the error of a code of the protocol, nil for 0.
func kafkaError(code int16) error {
	if code == 0 {
		return nil
	}
	return kafka.Error(code)
}

// isKafkaAnswer says whether a broker said something, even if it was an error.
func isKafkaAnswer(err error) bool {
	var code kafka.Error
	return errors.As(err, &code)
}

// describe asks the leader of a partition for the topic and its id. It fails with UnknownTopicOrPartition
// when there is none.
func (k *Kafka) describe(ctx context.Context, topic string, partition int) (*topicAnswer, error) {
	t, err := ask[*topicAnswer](ctx, k, &topicQuery{topic, partition})
	if err == nil {
		err = kafkaError(t.code)
	}
	if err == nil && t.id == "00000000000000000000000000000000" {
		err = errPermanent{errors.New("the cluster gives its topics no ids; Kafka 2.8 or newer is needed")}
	}
	if why := refusal(err); why != "" {
		err = errPermanent{fmt.Errorf("look at topic %s: %s: %w", topic, why, err)}
	}
	return t, err
}

// The offsets that a broker can be asked for.
const (
	offsetEnd   = -1
	offsetStart = -2
)

// offset asks for an end of a partition: of its first message, or of the next one; or
// for the first message at or after a time in ms since 1970, -1 when there is none.
func (k *Kafka) offset(ctx context.Context, topic string, partition int, which int64) (int64, error) {
	a, err := ask[*listoffsets.Response](ctx, k, &listoffsets.Request{ReplicaID: -1, Topics: []listoffsets.RequestTopic{{
		Topic: topic, Partitions: []listoffsets.RequestPartition{{Partition: int32(partition), CurrentLeaderEpoch: -1,
			Timestamp: which}}}}})
	if err != nil {
		return 0, err
	}
	if len(a.Topics) != 1 || len(a.Topics[0].Partitions) != 1 {
		return 0, fmt.Errorf("the broker gave no offset of topic %s", topic)
	}
	p := a.Topics[0].Partitions[0]
	return p.Offset, kafkaError(p.ErrorCode)
}

// fetched is what one question for messages brought.
type fetched struct {
	records []fetchedRecord
	end     int64 // offset behind the last record of the topic
}

type fetchedRecord struct {
	offset  int64
	time    int64 // ms since 1970
	key     string
	value   []byte
	headers []protocol.Header
}

// fetch asks for the messages from an offset on, and waits a moment for some.
func (k *Kafka) fetch(ctx context.Context, topic string, partition int, offset int64) (fetched, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchWait+time.Duration(k.patience.Load()))
	defer cancel()
	a, err := ask[*fetch.Response](ctx, k, &fetch.Request{ReplicaID: -1, MaxWaitTime: int32(fetchWait.Milliseconds()),
		MinBytes: 1, MaxBytes: fetchBytes, SessionID: -1, SessionEpoch: -1, Topics: []fetch.RequestTopic{{Topic: topic,
			Partitions: []fetch.RequestPartition{{Partition: int32(partition), CurrentLeaderEpoch: -1, FetchOffset: offset,
				LogStartOffset: -1, PartitionMaxBytes: fetchBytes}}}}})
	if err != nil {
		return fetched{}, err
	}
	if err := kafkaError(a.ErrorCode); err != nil {
		return fetched{}, err
	}
	if len(a.Topics) != 1 || len(a.Topics[0].Partitions) != 1 {
		return fetched{}, fmt.Errorf("the broker gave no messages of topic %s", topic)
	}
	p := &a.Topics[0].Partitions[0]
	out := fetched{end: p.HighWatermark}
	if err := kafkaError(p.ErrorCode); err != nil {
		return out, err
	}
	out.records, err = readRecords(p.RecordSet.Records, offset)
	return out, err
}

// readRecords copies what was fetched; a batch may begin before the wanted offset.
func readRecords(records protocol.RecordReader, from int64) (out []fetchedRecord, err error) {
	if records == nil {
		return nil, nil
	}
	for {
		r, err := records.ReadRecord()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, fmt.Errorf("read the messages of the broker: %w", err)
		}
		f := fetchedRecord{offset: r.Offset, time: r.Time.UnixMilli(), headers: r.Headers}
		if r.Offset >= from {
			key, err1 := protocol.ReadAll(r.Key)
			value, err2 := protocol.ReadAll(r.Value)
			if err := errors.Join(err1, err2); err != nil {
				return out, fmt.Errorf("read a message of the broker: %w", err)
			}
			f.key, f.value = string(key), value
			out = append(out, f)
		}
		for _, b := range []protocol.Bytes{r.Key, r.Value} {
			if b != nil {
				b.Close()
			}
		}
	}
}

// header is the value of a header of a message.
func (r *fetchedRecord) header(name string) []byte {
	for _, h := range r.headers {
		if h.Key == name {
			return h.Value
		}
	}
	return nil
}

// produce stores a batch, acknowledged by all replicas in sync, and gives the
// offset of its first message.
func (k *Kafka) produce(ctx context.Context, topic string, partition int, batch []byte) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(k.patience.Load()))
	defer cancel()
	a, err := ask[*produceAnswer](ctx, k, &produceQuery{topic, partition, batch})
	if err != nil {
		return 0, err
	}
	return a.offset, kafkaError(a.code)
}
