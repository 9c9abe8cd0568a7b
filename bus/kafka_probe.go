package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	kafka "github.com/segmentio/kafka-go"
)

// ProbeKafka asks a cluster and changes nothing: a topic that is missing is not
// made. It tries again only where a broker says that it is not ready. Errors: nobody
// answers, the login or the certificate is refused, the access rules do not allow to
// look.
func ProbeKafka(ctx context.Context, o KafkaOptions) (Broker, error) {
	o.Logger, o.Registerer = slog.New(slog.DiscardHandler), nil
	k, err := newKafka(o)
	if err != nil {
		return Broker{}, err
	}
	defer k.Close()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		b, err := k.probeOnce(ctx)
		var code kafka.Error
		if !errors.As(err, &code) || !code.Temporary() || ctx.Err() != nil {
			return b, err
		}
		sleep(ctx, 5*firstRedial)
	}
}

func (k *Kafka) probeOnce(ctx context.Context) (Broker, error) {
	b := Broker{Version: "Kafka", MaxPayload: topicMaxMessage}
	t, err := k.describe(ctx, k.o.Stream, 0)
	if errors.Is(err, kafka.UnknownTopicOrPartition) {
		return b, nil
	}
	if err != nil {
		return Broker{}, fmt.Errorf("connect to the brokers: %w", err)
	}
	have, err := k.configOf(ctx, k.o.Stream)
	if err != nil {
		return b, fmt.Errorf("look at the configuration of topic %s: %w", k.o.Stream, err)
	}
	b.Losses, b.Differences = kafkaLosses(t, have, k.o.Partitions), k.differences(t, have)
	if t.partitions != k.o.Partitions { // its sizes cannot be asked for with the wrong number
		b.Stream = &StreamInfo{Name: k.o.Stream, Incarnation: t.id}
		return b, nil
	}
	infos, err := k.lookAll(ctx, t)
	if err != nil {
		return b, fmt.Errorf("look at topic %s: %w", k.o.Stream, err)
	}
	for _, info := range infos {
		b.add(info)
	}
	if n, err := strconv.ParseInt(have["max.message.bytes"], 10, 64); err == nil {
		b.MaxMsgSize = n
	}
	return b, nil
}
