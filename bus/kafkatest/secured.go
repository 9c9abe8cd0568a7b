package kafkatest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	kafka "github.com/segmentio/kafka-go"

	"sonde/bus/wiretest"
)

// Password is that of the users sonde and reader at a secured broker. It must stand in no log.
const Password = "pAssw0rd-of-the-test"

// Secured is a broker with a second listener, for those who bring a certificate and
// a password; what they may do there is for access rules to say. Below dir lie
// ca.pem, client.pem and client.key for them, and the same of a stranger.
func Secured(dir string) (Options, error) {
	err := wiretest.Certificates(dir)
	const listener = "listener.name.secured."
	return Options{Dir: dir, Secure: "SASL_SSL",
		Format: []string{"--add-scram", "SCRAM-SHA-256=[name=sonde,password=" + Password + "]",
			"--add-scram", "SCRAM-SHA-512=[name=sonde,password=" + Password + "]",
			"--add-scram", "SCRAM-SHA-512=[name=reader,password=" + Password + "]"},
		Lines: []string{
			listener + "ssl.keystore.type=PEM", listener + "ssl.keystore.location=" + filepath.Join(dir, "server-both.pem"),
			listener + "ssl.truststore.type=PEM", listener + "ssl.truststore.location=" + filepath.Join(dir, "ca.pem"),
			listener + "ssl.client.auth=required", listener + "sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
			listener + "scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
			listener + "scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
			listener + "plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_sonde=\"" +
				Password + "\";",
			"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer", "super.users=User:ANONYMOUS",
		}}, err
}

// Allow lets a user do something with all topics whose names have a prefix.
func (b *Broker) Allow(ctx context.Context, user, prefix string, operations ...kafka.ACLOperationType) error {
	rules := &kafka.CreateACLsRequest{}
	for _, operation := range operations {
		rules.ACLs = append(rules.ACLs, kafka.ACLEntry{ResourceType: kafka.ResourceTypeTopic, ResourceName: prefix,
			ResourcePatternType: kafka.PatternTypePrefixed, Principal: "User:" + user, Host: "*", Operation: operation,
			PermissionType: kafka.ACLPermissionTypeAllow})
	}
	// On the plain listener everybody may do everything.
	client := kafka.Client{Addr: kafka.TCP(b.Address)}
	a, err := client.CreateACLs(ctx, rules)
	if err != nil {
		return fmt.Errorf("allow %s what it needs on %s: %w", user, prefix, err)
	}
	return errors.Join(a.Errors...)
}

// Everything lists what a role of Sonde does with its topics.
var Everything = []kafka.ACLOperationType{kafka.ACLOperationTypeRead, kafka.ACLOperationTypeWrite,
	kafka.ACLOperationTypeCreate, kafka.ACLOperationTypeDelete, kafka.ACLOperationTypeDescribe,
	kafka.ACLOperationTypeDescribeConfigs}
