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

// allow lets the user of the tests do what the bus needs with topics of a prefix.
func allow(t *testing.T, prefix string) {
	t.Helper()
	rules := &kafka.CreateACLsRequest{}
	for _, operation := range []kafka.ACLOperationType{kafka.ACLOperationTypeRead, kafka.ACLOperationTypeWrite,
		kafka.ACLOperationTypeCreate, kafka.ACLOperationTypeDelete, kafka.ACLOperationTypeDescribe,
		kafka.ACLOperationTypeDescribeConfigs} {
		rules.ACLs = append(rules.ACLs, kafka.ACLEntry{ResourceType: kafka.ResourceTypeTopic, ResourceName: prefix,
			ResourcePatternType: kafka.PatternTypePrefixed, Principal: "User:sonde", Host: "*", Operation: operation,
			PermissionType: kafka.ACLPermissionTypeAllow})
	}
	a, err := foreign(t).CreateACLs(deadline(t), rules)
	if err == nil {
		err = errors.Join(a.Errors...)
	}
	if err != nil {
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
	allow(t, "tenant-a.")
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
	allow(t, "tenant-a.")
	for want, change := range map[string]func(*bus.KafkaOptions){
		"refuses the user or its password": func(o *bus.KafkaOptions) { o.Security.Password = "wrong-" + kafkatest.Password },
		"signed by nobody that is trusted": func(o *bus.KafkaOptions) {
			o.Security.CAFile = filepath.Join(kafkaDir, "stranger.pem")
		},
		"refuses the client's certificate":  func(o *bus.KafkaOptions) { o.Security.CertFile, o.Security.KeyFile = "", "" },
		"access rules of the broker do not": func(o *bus.KafkaOptions) { o.Stream = "tenant-b.SONDE" },
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
