package bus_test

import (
	"bytes"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	kafka "github.com/segmentio/kafka-go"

	"sonde/bus"
	"sonde/bus/kafkatest"
)

// allow lets a user do what a role does with topics of a prefix, or some of that.
func allow(t *testing.T, user, prefix string, operations ...kafka.ACLOperationType) {
	t.Helper()
	if len(operations) == 0 {
		operations = kafkatest.Everything
	}
	if err := realKafka(t).Allow(deadline(t), user, prefix, operations...); err != nil {
		t.Fatal(err)
	}
}

func login(server *kafkatest.Broker, topic, mechanism string) bus.KafkaOptions {
	return bus.KafkaOptions{Brokers: []string{server.Secured}, Stream: topic, Logger: quiet(), Security: bus.KafkaSecurity{
		TLS: true, CAFile: filepath.Join(kafkaDir, "ca.pem"), CertFile: filepath.Join(kafkaDir, "client.pem"),
		KeyFile: filepath.Join(kafkaDir, "client.key"), Mechanism: mechanism, User: "sonde", Password: kafkatest.Password}}
}

func TestKafkaWithTLSAndPasswords(t *testing.T) {
	server := realKafka(t)
	allow(t, "sonde", "tenant-a.")
	for _, mechanism := range []string{"scram-sha-512", "scram-sha-256", "plain"} {
		b := openKafka(t, login(server, "tenant-a."+mechanism, mechanism))
		p := newPublisher(b, "p", 50_000)
		for i := range 50 {
			p.publish(deadline(t), i)
		}
		p.check(t, 50)
		if err := b.Trim(deadline(t), 0, 20); err != nil {
			t.Error(err)
		}
		stop, err := b.Serve("sonde.cmd.a", func(data []byte) []byte { return data })
		if err != nil {
			t.Fatal(err)
		}
		reply, err := b.Request(deadline(t), "sonde.cmd.a", []byte("x"))
		for ctx := deadline(t); errors.Is(err, bus.ErrNoReply) && ctx.Err() == nil; { // the topic is being made
			reply, err = b.Request(ctx, "sonde.cmd.a", []byte("x"))
		}
		if err != nil || string(reply) != "x" {
			t.Errorf("request: %q, %v", reply, err)
		}
		stop()
		b.Close()
	}
}

// Each is one clear sentence, and at once where no repetition can help: only a broker
// without TLS ends a connection just as one does that is not ready.
func TestKafkaRefusalsAreSaidOnceAndClearly(t *testing.T) {
	server := realKafka(t)
	allow(t, "sonde", "tenant-a.")
	for want, change := range map[string]func(*bus.KafkaOptions){
		"refuses the user or its password": func(o *bus.KafkaOptions) { o.Security.Password = "wrong-" + kafkatest.Password },
		"signed by nobody that is trusted": func(o *bus.KafkaOptions) {
			o.Security.CAFile = filepath.Join(kafkaDir, "stranger.pem")
		},
		"refuses the client's certificate":  func(o *bus.KafkaOptions) { o.Security.CertFile, o.Security.KeyFile = "", "" },
		"access rules of the broker do not": func(o *bus.KafkaOptions) { o.Stream = "tenant-b.SONDE" },
		"start sonde run, which makes it":   func(o *bus.KafkaOptions) { o.Stream, o.MustExist = "tenant-a.NOWHERE", true },
		"does not speak TLS":                func(o *bus.KafkaOptions) { o.Brokers = []string{server.Address} },
		"expects TLS there":                 func(o *bus.KafkaOptions) { o.Security.TLS = false },
	} {
		var log bytes.Buffer
		o := login(server, "tenant-a.SONDE", "scram-sha-512")
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		change(&o)
		began := time.Now()
		ctx, cancel := contextOf(5 * time.Second)
		b, err := bus.OpenKafka(ctx, o)
		cancel()
		switch text := log.String(); {
		case err == nil:
			t.Errorf("%s: it opened", want)
			b.Close()
		case !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n"):
			t.Errorf("%s: %v after %s", want, err, time.Since(began))
		case strings.Contains(err.Error()+text, kafkatest.Password):
			t.Errorf("%s: the password stands in %v or in %s", want, err, text)
		}
	}
}

// The fear: a reader of one tenant gets rows of another, or learns the names of its topics.
func TestAKafkaReaderSeesItsTenantAlone(t *testing.T) {
	server := realKafka(t)
	allow(t, "sonde", "tenant-")
	mine, theirs := "tenant-mine."+ownTopic(), "tenant-theirs."+ownTopic()
	for _, topic := range []string{mine, theirs} {
		p := newPublisher(openKafka(t, login(server, topic, "scram-sha-512")), "p", 100)
		if err := p.publish(deadline(t), 0); err != nil {
			t.Fatal(err)
		}
		p.check(t, 1)
	}
	allow(t, "reader", "tenant-mine.", kafka.ACLOperationTypeRead, kafka.ACLOperationTypeDescribe,
		kafka.ACLOperationTypeDescribeConfigs)
	as := func(topic string) bus.KafkaOptions {
		o := login(server, topic, "scram-sha-512")
		o.MustExist, o.Security.User = true, "reader"
		return o
	}
	reader := openKafka(t, as(mine))
	if got := readAll(t, reader); len(got) != 1 {
		t.Errorf("the reader reads %d messages of its tenant; want 1", len(got))
	}
	b, err := bus.OpenKafka(deadline(t), as(theirs))
	if err == nil || !strings.Contains(err.Error(), "access rules of the broker do not allow") {
		t.Errorf("the reader opens the topic of another tenant: %v, %v", b, err)
	}
	all, err := bus.KafkaClient(reader).Metadata(deadline(t), &kafka.MetadataRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, topic := range all.Topics {
		if !strings.HasPrefix(topic.Name, "tenant-mine.") {
			t.Errorf("the reader sees the topic %s", topic.Name)
		}
	}
}

// Whoever may not write yet may be allowed to without a restart: until then the messages
// wait, and everybody who asks hears why.
func TestMissingRightToWriteToKafkaIsSaidAndWaitedFor(t *testing.T) {
	server := realKafka(t)
	topic := "rights." + ownTopic()
	openKafka(t, bus.KafkaOptions{Brokers: []string{server.Address}, Stream: topic}).Close()
	allow(t, "reader", "rights.", kafka.ACLOperationTypeRead, kafka.ACLOperationTypeDescribe,
		kafka.ACLOperationTypeDescribeConfigs)
	log := &lines{}
	o := login(server, topic, "scram-sha-512")
	o.Security.User, o.Logger = "reader", log.logger()
	b, err := bus.OpenKafka(deadline(t), o)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p := newPublisher(b, "p", 100)
	if err := p.publish(deadline(t), 0); err != nil {
		t.Fatal(err)
	}
	for ctx := deadline(t); !strings.Contains(b.Trouble(), "the access rules of the broker do not allow it"); {
		if ctx.Err() != nil {
			t.Fatalf("it says %q", b.Trouble())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := strings.Count(log.String(), "access rules of the broker"); n != 1 {
		t.Errorf("the log says it %d times:\n%s", n, log)
	}
	allow(t, "reader", "rights.", kafka.ACLOperationTypeWrite)
	p.check(t, 1)
	if why := b.Trouble(); why != "" {
		t.Errorf("it may write now, and says %q", why)
	}
}
