package bus_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"

	"sonde/bus"
)

// ownTopic is the name of a topic that no other test uses.
func ownTopic() string { return fmt.Sprintf("T%d", kafkaTopics.Add(1)) }

// foreign is a client that is not ours.
func foreign(t *testing.T) *kafka.Client {
	transport := &kafka.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &kafka.Client{Addr: kafka.TCP(realKafka(t).Address), Transport: transport}
}

func makeTopic(t *testing.T, name string, partitions int, entries ...kafka.ConfigEntry) {
	t.Helper()
	a, err := foreign(t).CreateTopics(deadline(t), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: name,
		NumPartitions: partitions, ReplicationFactor: 1, ConfigEntries: entries}}})
	if err == nil {
		err = a.Errors[name]
	}
	if err != nil {
		t.Fatal(err)
	}
}

func setConfig(t *testing.T, topic, name, value string) {
	t.Helper()
	a, err := foreign(t).IncrementalAlterConfigs(deadline(t), &kafka.IncrementalAlterConfigsRequest{
		Resources: []kafka.IncrementalAlterConfigsRequestResource{{ResourceType: kafka.ResourceTypeTopic, ResourceName: topic,
			Configs: []kafka.IncrementalAlterConfigsRequestConfig{{Name: name, Value: value,
				ConfigOperation: kafka.ConfigOperationSet}}}}})
	if err == nil {
		err = a.Resources[0].Error
	}
	if err != nil {
		t.Fatal(err)
	}
}

// keepForEver is how a topic must be, but for one entry.
func keepForEver(but ...string) []kafka.ConfigEntry {
	c := []kafka.ConfigEntry{{ConfigName: "retention.ms", ConfigValue: "-1"},
		{ConfigName: "retention.bytes", ConfigValue: "-1"}}
	if len(but) == 2 {
		c = append(c, kafka.ConfigEntry{ConfigName: but[0], ConfigValue: but[1]})
	}
	return c
}

func TestKafkaTopicThatForgetsByItselfIsRefused(t *testing.T) {
	server := realKafka(t)
	for want, topic := range map[string]struct {
		partitions int
		entries    []kafka.ConfigEntry
	}{
		"retention.ms is 604800000": {1, nil}, // what a topic has by default
		"retention.bytes is 1000":   {1, keepForEver("retention.bytes", "1000")},
		"cleanup.policy is compact": {1, keepForEver("cleanup.policy", "compact")},
		"unclean.leader.election":   {1, keepForEver("unclean.leader.election.enable", "true")},
		"3 partitions":              {3, keepForEver()},
	} {
		name := ownTopic()
		makeTopic(t, name, topic.partitions, topic.entries...)
		o := bus.KafkaOptions{Brokers: []string{server.Address}, Stream: name, Logger: quiet()}
		if b, err := bus.OpenKafka(deadline(t), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", want, b, err)
		}
		probe, err := bus.ProbeKafka(deadline(t), o)
		if err != nil || !strings.Contains(strings.Join(probe.Losses, "; "), want) {
			t.Errorf("%s: probe says %v, %v", want, probe.Losses, err)
		}
	}
}

// A message that the topic cannot take must be refused alone, also when the broker
// is the first to say so, and the difference is known before the first message.
func TestKafkaRefusesWhatTheTopicCannotTake(t *testing.T) {
	server := realKafka(t)
	name := ownTopic()
	makeTopic(t, name, 1, keepForEver("max.message.bytes", "500000")...)
	var log bytes.Buffer
	b, err := bus.OpenKafka(deadline(t), bus.KafkaOptions{Brokers: []string{server.Address}, Stream: name,
		Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if text := log.String(); !strings.Contains(text, "max.message.bytes is 500000, not 33554432") {
		t.Errorf("log: %s", text)
	}
	refuse := func(size int) {
		t.Helper()
		p := newPublisher(b, fmt.Sprintf("p%d", size), 1000)
		refused := make(chan error, 1)
		for i := range 20 {
			if i == 10 {
				err := b.Publish(deadline(t), bus.Message{Subject: "sonde.v1.large", Data: make([]byte, size)},
					func(_ uint64, err error) { refused <- err })
				if err != nil {
					t.Fatal(err)
				}
			}
			p.publish(deadline(t), i)
		}
		if err := <-refused; !errors.Is(err, bus.ErrRefused) {
			t.Errorf("%d bytes: %v", size, err)
		}
		p.check(t, 20)
	}
	refuse(600_000) // known here
	setConfig(t, name, "max.message.bytes", "100000")
	refuse(200_000) // known to the broker alone
}

// The library's own default is to wait for none.
func TestKafkaWaitsForAllReplicasInSync(t *testing.T) {
	batch := bus.EncodeBatch(1, []bus.Message{{Subject: "sonde.v1.p", Data: []byte("x")}})
	version, _, _, m, err := protocol.ReadRequest(bytes.NewReader(append(bus.ProduceHead("T", batch), batch...)))
	if err != nil {
		t.Fatal(err)
	}
	if r := m.(*produce.Request); r.Acks != -1 || version != 7 || r.Topics[0].Topic != "T" || r.Timeout < 1000 {
		t.Errorf("a batch is sent as version %d of %+v: want acks -1, which is all in sync", version, r)
	}
	name := ownTopic()
	openKafka(t, bus.KafkaOptions{Brokers: []string{realKafka(t).Address}, Stream: name, Replicas: 1, MinInSync: 2})
	a, err := foreign(t).DescribeConfigs(deadline(t), &kafka.DescribeConfigsRequest{
		Resources: []kafka.DescribeConfigRequestResource{{ResourceType: kafka.ResourceTypeTopic, ResourceName: name,
			ConfigNames: []string{"min.insync.replicas"}}}})
	if err != nil || a.Resources[0].ConfigEntries[0].ConfigValue != "2" {
		t.Errorf("the topic was made with %+v, %v", a, err)
	}
}

func TestKafkaProbeAndLookerOnMakeNoTopic(t *testing.T) {
	server := realKafka(t)
	name := ownTopic()
	o := bus.KafkaOptions{Brokers: []string{server.Address}, Stream: name, Logger: quiet(), MustExist: true}
	for range 2 {
		probe, err := bus.ProbeKafka(deadline(t), o)
		if err != nil || probe.Stream != nil || probe.MaxPayload < bus.MaxPayloadBytes {
			t.Fatalf("probe of a broker without the topic: %+v, %v", probe, err)
		}
	}
	if b, err := bus.OpenKafka(deadline(t), o); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Fatalf("open without the topic: %v, %v", b, err)
	}
	owner := openKafka(t, bus.KafkaOptions{Brokers: []string{server.Address}, Stream: name, MaxBytes: 64 << 20})
	p := newPublisher(owner, "p", 1000)
	for i := range 10 {
		p.publish(deadline(t), i)
	}
	p.check(t, 10)
	looker := openKafka(t, o)
	probe, err := bus.ProbeKafka(deadline(t), o)
	if err != nil || probe.Stream == nil || probe.Stream.Messages != 10 || probe.Stream.Bytes == 0 ||
		len(probe.Losses) > 0 || len(probe.Differences) != 1 {
		t.Fatalf("probe: %+v, %v", probe, err)
	}
	s := subscribe(t, looker, bus.SubscribeOptions{From: bus.FromNew})
	if err := bus.DeleteTopic(deadline(t), owner); err != nil {
		t.Fatal(err)
	}
	owner.Close()
	if d, err := s.Next(deadline(t)); !errors.Is(err, bus.ErrIncarnation) {
		t.Fatalf("read a topic that is gone: %+v, %v", d, err)
	}
	if probe, err := bus.ProbeKafka(deadline(t), o); err != nil || probe.Stream != nil {
		t.Fatalf("the looker-on made the topic: %+v, %v", probe, err)
	}
}

// A broker that says nothing for a while may have stored anything of what was sent.
func TestSilentKafkaLosesAndDisordersNothing(t *testing.T) {
	k := kafkaBroker(t, 1)
	b := k.open(t, 0).(*bus.Kafka)
	bus.SetPatience(b, 100*time.Millisecond)
	publishThroughSilence(t, k, b, 2000)
}

// Messages of others in the topic are no reason to stop, nor a loss.
func TestKafkaReaderPassesOverWhatIsNotOurs(t *testing.T) {
	server := realKafka(t)
	name := ownTopic()
	b := openKafka(t, bus.KafkaOptions{Brokers: []string{server.Address}, Stream: name})
	p := newPublisher(b, "p", 100)
	transport := &kafka.Transport{} // the shared one knows a new topic seconds late
	defer transport.CloseIdleConnections()
	w := &kafka.Writer{Addr: kafka.TCP(server.Address), Transport: transport, Topic: name, RequiredAcks: kafka.RequireAll,
		BatchTimeout: time.Millisecond, Compression: kafka.Gzip}
	defer w.Close()
	s := subscribe(t, b, bus.SubscribeOptions{})
	for i := range 5 {
		if err := w.WriteMessages(deadline(t), kafka.Message{Key: []byte("not ours"), Value: []byte("x")},
			kafka.Message{Value: []byte("no key")}, kafka.Message{}); err != nil {
			t.Fatal(err)
		}
		p.publish(deadline(t), i)
		p.waiting.Wait()
		if d := next(t, s); d.Subject != p.subject() || d.Seq != p.seqs[i] {
			t.Fatalf("got %s at %d; want message %d at %d", d.Subject, d.Seq, i, p.seqs[i])
		}
	}
}

func TestKafkaOpenSaysWhatIsWrong(t *testing.T) {
	for want, o := range map[string]bus.KafkaOptions{
		"no Kafka broker": {},
		"not be negative": {Brokers: []string{"127.0.0.1:1"}, MaxBytes: -1},
		"not known":       {Brokers: []string{"127.0.0.1:1"}, Security: bus.KafkaSecurity{Mechanism: "gssapi"}},
		"no such file":    {Brokers: []string{"127.0.0.1:1"}, Security: bus.KafkaSecurity{TLS: true, CAFile: "/nowhere.pem"}},
		"deadline exc":    {Brokers: []string{"127.0.0.1:1"}},
	} {
		o.Logger = quiet()
		ctx, cancel := contextOf(50 * time.Millisecond)
		if b, err := bus.OpenKafka(ctx, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", want, b, err)
		}
		cancel()
	}
}

// A reader whose user is slow asks for nothing meanwhile, and so hears nothing of the
// end of its topic: the next offset exists in the new one too.
func TestKafkaReaderThatSleptReadsNothingOfANewTopic(t *testing.T) {
	server := realKafka(t)
	o := bus.KafkaOptions{Brokers: []string{server.Address}, Stream: ownTopic()}
	b := openKafka(t, o)
	publishLarge(t, b, "sonde.v1.old", 5)
	s := subscribe(t, b, bus.SubscribeOptions{})
	next(t, s)
	time.Sleep(time.Second) // it reads ahead as far as it may
	if err := bus.DeleteTopic(deadline(t), b); err != nil {
		t.Fatal(err)
	}
	publishLarge(t, openKafka(t, o), "sonde.v1.new", 8)
	for {
		d, err := s.Next(deadline(t))
		if errors.Is(err, bus.ErrIncarnation) {
			return
		}
		if err != nil || d.Subject != "sonde.v1.old" {
			t.Fatalf("got %s at %d, %v; want the end of the old topic", d.Subject, d.Seq, err)
		}
	}
}

// publishLarge stores messages that come alone, one with each question.
func publishLarge(t *testing.T, b bus.Bus, subject string, messages int) {
	t.Helper()
	stored := make(chan error, messages)
	data := make([]byte, 9<<20)
	for range messages {
		err := b.Publish(deadline(t), bus.Message{Subject: subject, Data: data}, func(_ uint64, err error) { stored <- err })
		if err != nil {
			t.Fatal(err)
		}
	}
	for range messages {
		if err := <-stored; err != nil {
			t.Fatal(err)
		}
	}
}

// Where the new topic ends exactly where such a reader goes on, the broker has nothing
// for it and nothing against it.
func TestKafkaReaderThatSleptHearsOfANewTopicOfTheSameLength(t *testing.T) {
	server := realKafka(t)
	o := bus.KafkaOptions{Brokers: []string{server.Address}, Stream: ownTopic()}
	b := openKafka(t, o)
	publishLarge(t, b, "sonde.v1.old", 3)
	s := subscribe(t, b, bus.SubscribeOptions{})
	next(t, s)
	time.Sleep(time.Second) // one message waits for its user, the last one for its place
	if err := bus.DeleteTopic(deadline(t), b); err != nil {
		t.Fatal(err)
	}
	publishLarge(t, openKafka(t, o), "sonde.v1.new", 3)
	for range 2 {
		if d := next(t, s); d.Subject != "sonde.v1.old" {
			t.Fatalf("got %s at %d", d.Subject, d.Seq)
		}
	}
	if d, err := s.Next(deadline(t)); !errors.Is(err, bus.ErrIncarnation) {
		t.Errorf("got %s at %d, %v", d.Subject, d.Seq, err)
	}
}
