package bus_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	kafka "github.com/segmentio/kafka-go"

	"sonde/bus"
	"sonde/bus/kafkatest"
)

// kafkaPassword must stand in no log.
const kafkaPassword = "pAssw0rd-of-the-test"

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// certificate writes NAME.pem and NAME.key below dir; signed by itself when by is nil.
func certificate(dir, name string, by *authority) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	c := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
	signer := &authority{c, key}
	if c.IsCA = by == nil; by != nil {
		signer = by
	}
	der, err1 := x509.CreateCertificate(rand.Reader, c, signer.cert, &key.PublicKey, signer.key)
	secret, err2 := x509.MarshalPKCS8PrivateKey(key)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	return &authority{c, key}, errors.Join(os.WriteFile(filepath.Join(dir, name+".pem"), cert, 0o644),
		os.WriteFile(filepath.Join(dir, name+".key"), private, 0o600),
		os.WriteFile(filepath.Join(dir, name+"-both.pem"), append(private, cert...), 0o600))
}

// secured is a broker with a second listener, for those who bring a certificate and
// a password; what they may do there is for access rules to say.
func secured(dir string) (kafkatest.Options, error) {
	ca, err := certificate(dir, "ca", nil)
	for _, name := range []string{"server", "client"} {
		if err == nil {
			_, err = certificate(dir, name, ca)
		}
	}
	if err == nil {
		_, err = certificate(dir, "stranger", nil)
	}
	const listener = "listener.name.secured."
	return kafkatest.Options{Dir: dir, Secure: "SASL_SSL",
		Format: []string{"--add-scram", "SCRAM-SHA-256=[name=sonde,password=" + kafkaPassword + "]",
			"--add-scram", "SCRAM-SHA-512=[name=sonde,password=" + kafkaPassword + "]"},
		Lines: []string{
			listener + "ssl.keystore.type=PEM", listener + "ssl.keystore.location=" + filepath.Join(dir, "server-both.pem"),
			listener + "ssl.truststore.type=PEM", listener + "ssl.truststore.location=" + filepath.Join(dir, "ca.pem"),
			listener + "ssl.client.auth=required", listener + "sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
			listener + "scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
			listener + "scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
			listener + "plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_sonde=\"" +
				kafkaPassword + "\";",
			"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer", "super.users=User:ANONYMOUS",
		}}, err
}

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
		KeyFile: filepath.Join(kafkaDir, "client.key"), Mechanism: mechanism, User: "sonde", Password: kafkaPassword}}
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
		if err := b.Trim(deadline(t), 20); err != nil {
			t.Error(err)
		}
		stop, err := b.Serve("sonde.cmd.a", func(data []byte) []byte { return data })
		if err != nil {
			t.Fatal(err)
		}
		if reply, err := b.Request(deadline(t), "sonde.cmd.a", []byte("x")); err != nil || string(reply) != "x" {
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
		"refuses the user or its password":  func(o *bus.KafkaOptions) { o.Security.Password = "wrong-" + kafkaPassword },
		"signed by nobody that is trusted":  func(o *bus.KafkaOptions) { o.Security.CAFile = filepath.Join(kafkaDir, "stranger.pem") },
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
		case strings.Contains(err.Error()+text, kafkaPassword):
			t.Errorf("%s: the password stands in %v or in %s", want, err, text)
		}
	}
}
