package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

const (
	// topicMaxMessage is max.message.bytes of a topic that is made: the largest
	// message with what a batch adds. The broker's own limit does not hold for it.
	topicMaxMessage = 32 << 20
	// topicSegment is segment.bytes of it: what Trim left is freed by whole segments.
	topicSegment = 64 << 20
	// commandRetention is how long commands stay in their topic, in ms.
	commandRetention = 3_600_000
	neverExpires     = "-1"
)

// topicConfig is what this program sets, and then looks at.
func topicConfig(topic string, o *KafkaOptions) []kafka.ConfigEntry {
	c := []kafka.ConfigEntry{{ConfigName: "cleanup.policy", ConfigValue: "delete"},
		{ConfigName: "unclean.leader.election.enable", ConfigValue: "false"}}
	if topic == o.Stream {
		c = append(c, kafka.ConfigEntry{ConfigName: "retention.ms", ConfigValue: neverExpires},
			kafka.ConfigEntry{ConfigName: "retention.bytes", ConfigValue: neverExpires},
			kafka.ConfigEntry{ConfigName: "max.message.bytes", ConfigValue: strconv.Itoa(topicMaxMessage)},
			kafka.ConfigEntry{ConfigName: "segment.bytes", ConfigValue: strconv.Itoa(topicSegment)})
	} else {
		c = append(c, kafka.ConfigEntry{ConfigName: "retention.ms", ConfigValue: strconv.Itoa(commandRetention)})
	}
	if o.MinInSync > 0 {
		c = append(c, kafka.ConfigEntry{ConfigName: "min.insync.replicas", ConfigValue: strconv.Itoa(o.MinInSync)})
	}
	return c
}

// ensure makes a topic when it is missing and may be made, and describes it as the
// leader of a partition knows it. Another number of partitions is a permanent error.
func (k *Kafka) ensure(ctx context.Context, topic string, partition int) (*topicAnswer, error) {
	t, err := k.describe(ctx, topic, partition)
	if err == nil && topic == k.o.Stream && t.partitions != k.o.Partitions {
		return nil, errPermanent{fmt.Errorf("topic %s has %d partitions, and bus.partitions is %d; set that to %[2]d, or "+
			"name another topic", topic, t.partitions, k.o.Partitions)}
	}
	if !errors.Is(err, kafka.UnknownTopicOrPartition) {
		return t, err
	}
	if k.o.MustExist && topic == k.o.Stream {
		// A broker that just started may not have heard of it yet.
		sleep(ctx, lastRedial)
		if t, err = k.describe(ctx, topic, partition); errors.Is(err, kafka.UnknownTopicOrPartition) {
			err = errPermanent{fmt.Errorf("topic %s does not exist; start sonde run, which makes it: %w", topic,
				ErrIncarnation)}
		}
		return t, err
	}
	partitions, replicas := 1, k.o.Replicas
	if topic == k.o.Stream {
		partitions = k.o.Partitions
	}
	if replicas == 0 {
		replicas = -1 // as the broker does by default
	}
	a, err := k.client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: topic,
		NumPartitions: partitions, ReplicationFactor: replicas, ConfigEntries: topicConfig(topic, &k.o)}}})
	if err == nil {
		err = a.Errors[topic]
	}
	switch why := refusal(err); {
	case why != "":
		return nil, errPermanent{fmt.Errorf("make topic %s: %s: %w", topic, why, err)}
	case errors.Is(err, kafka.InvalidConfiguration), errors.Is(err, kafka.PolicyViolation),
		errors.Is(err, kafka.InvalidTopic): // but not too few brokers: more of them may be starting
		return nil, errPermanent{fmt.Errorf("make topic %s: %w", topic, err)}
	case errors.Is(err, kafka.TopicAlreadyExists): // somebody else made it this moment
	case err != nil:
		return nil, fmt.Errorf("make topic %s: %w", topic, err)
	default:
		k.log.Info("made the topic", "topic", topic)
	}
	return k.describe(ctx, topic, partition)
}

// configOf asks for what a topic and its broker's defaults say.
func (k *Kafka) configOf(ctx context.Context, topic string) (map[string]string, error) {
	a, err := k.client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{
		Resources: []kafka.DescribeConfigRequestResource{{ResourceType: kafka.ResourceTypeTopic, ResourceName: topic}}})
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, r := range a.Resources {
		if r.Error != nil {
			return nil, r.Error
		}
		for _, e := range r.ConfigEntries {
			out[e.ConfigName] = e.ConfigValue
		}
	}
	return out, nil
}

// kafkaLosses lists why a topic would lose messages or order by itself.
func kafkaLosses(t *topicAnswer, have map[string]string, partitions int) []string {
	var wrong []string
	if t.partitions != partitions {
		wrong = append(wrong, fmt.Sprintf("it has %d partitions, and bus.partitions is %d", t.partitions, partitions))
	}
	if have == nil {
		return wrong
	}
	if p := have["cleanup.policy"]; p != "delete" {
		wrong = append(wrong, "cleanup.policy is "+p+", not delete")
	}
	for _, c := range []string{"retention.ms", "retention.bytes"} {
		if v := have[c]; v != neverExpires {
			wrong = append(wrong, c+" is "+v+", not -1")
		}
	}
	if have["unclean.leader.election.enable"] == "true" {
		wrong = append(wrong, "unclean.leader.election.enable is true, not false")
	}
	return wrong
}

// checkTopic compares a topic with what this program would have made. It refuses
// one that loses messages by itself, and reports other differences.
func (k *Kafka) checkTopic(ctx context.Context) error {
	t, err := k.ensure(ctx, k.o.Stream, 0)
	if err != nil {
		return err
	}
	have, err := k.configOf(ctx, k.o.Stream)
	if refusal(err) != "" {
		k.log.Warn("the configuration of the topic cannot be looked at; whether it keeps its messages is not checked",
			"topic", k.o.Stream, "error", err)
	} else if err != nil {
		return err
	}
	if wrong := kafkaLosses(t, have, k.o.Partitions); len(wrong) > 0 {
		return errPermanent{fmt.Errorf("topic %s would lose messages or order: %s; change the topic, or name another one",
			k.o.Stream, strings.Join(wrong, "; "))}
	}
	if n, err := strconv.ParseInt(have["max.message.bytes"], 10, 64); err == nil && n < topicMaxMessage {
		k.limit.Store(max(1, n-batchOverhead-recordOverhead-maxSubjectBytes))
	}
	for _, d := range k.differences(t, have) {
		k.log.Warn("the topic differs from what this program would make; it is left as it is", "topic", k.o.Stream,
			"difference", d)
	}
	_, err = k.lookAll(ctx, t)
	return err
}

// differences lists what a topic has and this program would have made otherwise.
func (k *Kafka) differences(t *topicAnswer, have map[string]string) (out []string) {
	add := func(what string, has, want int64) {
		out = append(out, fmt.Sprintf("%s is %d, not %d", what, has, want))
	}
	if n, err := strconv.ParseInt(have["max.message.bytes"], 10, 64); err == nil && n < topicMaxMessage {
		add("max.message.bytes", n, topicMaxMessage)
	}
	if k.o.Replicas > 0 && t.replicas != k.o.Replicas {
		add("the number of replicas", int64(t.replicas), int64(k.o.Replicas))
	}
	sync, err := strconv.Atoi(have["min.insync.replicas"])
	switch {
	case err == nil && k.o.MinInSync > 0 && sync != k.o.MinInSync:
		add("min.insync.replicas", int64(sync), int64(k.o.MinInSync))
	case t.replicas == 1:
		out = append(out, "it has one replica: what was acknowledged can be lost with its broker's disk or power")
	case err == nil && sync == 1:
		out = append(out, "min.insync.replicas is 1: an acknowledgement may mean one broker alone")
	}
	return out
}

// lookAll looks at each partition for the first time.
func (k *Kafka) lookAll(ctx context.Context, t *topicAnswer) (infos []StreamInfo, err error) {
	told := false
	for i := range k.o.Partitions {
		if err := k.estimate(ctx, t, i); err != nil && !told {
			told = true
			k.log.Warn("the size of the topic is not known: its bound counts what comes from now on", "topic", k.o.Stream,
				"error", err)
		}
		info, err := k.look(ctx, i)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// estimate takes the size of a partition on its leader's disk for its size now.
func (k *Kafka) estimate(ctx context.Context, t *topicAnswer, partition int) error {
	a, err := ask[*logDirsResponse](ctx, k, &logDirsRequest{Topics: []logDirsTopic{{Topic: k.o.Stream,
		Partitions: []int32{int32(partition)}}}})
	if err != nil {
		return err
	}
	var bytes int64
	for _, d := range a.Dirs {
		for _, l := range d.Topics {
			for _, p := range l.Partitions {
				bytes += p.Size
			}
		}
	}
	k.pubs[partition].size.expect(t.id, uint64(max(bytes, 0)))
	return nil
}

// Info implements Bus.
func (k *Kafka) Info(ctx context.Context, partition int) (info StreamInfo, err error) {
	if err := checkPartition(k.o.Stream, partition, k.Partitions()); err != nil {
		return info, err
	}
	err = k.call(ctx, func(ctx context.Context) error {
		info, err = k.look(ctx, partition)
		return err
	})
	return info, err
}

// look asks once for the ends of a partition, and whether the topic is the same one
// before and after that.
func (k *Kafka) look(ctx context.Context, partition int) (StreamInfo, error) {
	before, err := k.ensure(ctx, k.o.Stream, partition)
	if err != nil {
		return StreamInfo{}, err
	}
	// The start first: it never overtakes an end that is asked for later.
	start, err := k.offset(ctx, k.o.Stream, partition, offsetStart)
	if err != nil {
		return StreamInfo{}, fmt.Errorf("ask for the start of topic %s: %w", k.o.Stream, err)
	}
	end, err := k.offset(ctx, k.o.Stream, partition, offsetEnd)
	if err != nil {
		return StreamInfo{}, fmt.Errorf("ask for the end of topic %s: %w", k.o.Stream, err)
	}
	after, err := k.describe(ctx, k.o.Stream, partition)
	if err != nil {
		return StreamInfo{}, err
	}
	if after.id != before.id {
		return StreamInfo{}, fmt.Errorf("topic %s was made anew this moment", k.o.Stream)
	}
	if old, _ := k.lastID.Swap(after.id).(string); old != "" && old != after.id {
		k.log.Warn("the topic was made anew", "topic", k.o.Stream, "incarnation", after.id)
	}
	info := StreamInfo{Name: k.o.Stream, Partition: partition, Incarnation: after.id, First: uint64(start) + 1,
		Last: uint64(end), Messages: uint64(end - min(start, end)), MaxBytes: k.share()}
	info.Bytes = k.pubs[partition].size.saw(after.id, start, end)
	k.metrics.saw(info)
	return info, nil
}

// Trim implements Bus.
func (k *Kafka) Trim(ctx context.Context, partition int, below uint64) error {
	if err := checkPartition(k.o.Stream, partition, k.Partitions()); err != nil {
		return err
	}
	return k.call(ctx, func(ctx context.Context) error {
		info, err := k.look(ctx, partition)
		if err != nil {
			return err
		}
		k.mu.Lock()
		for s := range k.subscriptions {
			if s.partition == partition && !s.belongs(info.Incarnation) {
				err = errPermanent{k.recreated(info)}
			}
		}
		k.mu.Unlock()
		if err != nil {
			return err
		}
		below := min(below, info.Last+1)
		if below <= info.First {
			return nil
		}
		a, err := ask[*deleteRecordsResponse](ctx, k, &deleteRecordsRequest{TimeoutMs: int32(callTimeout.Milliseconds()),
			Topics: []deleteRecordsTopic{{Name: k.o.Stream, Partitions: []deleteRecordsPartition{{
				Partition: int32(partition), Offset: int64(below) - 1}}}}})
		if err == nil {
			err = deletedRecordsError(a)
		}
		if err != nil {
			return fmt.Errorf("trim partition %d of topic %s below %d: %w", partition, k.o.Stream, below, err)
		}
		p := k.pubs[partition]
		p.size.saw(info.Incarnation, int64(below)-1, int64(info.Last))
		wake(p.trimmed)
		return nil
	})
}

func deletedRecordsError(a *deleteRecordsResponse) error {
	if len(a.Topics) != 1 || len(a.Topics[0].Partitions) != 1 {
		return protocol.Error("the broker did not say what it removed")
	}
	return kafkaError(a.Topics[0].Partitions[0].ErrorCode)
}

func (k *Kafka) recreated(info StreamInfo) error {
	return fmt.Errorf("topic %s was made anew as %s: read it from its start: %w", info.Name, info.Incarnation,
		ErrIncarnation)
}
