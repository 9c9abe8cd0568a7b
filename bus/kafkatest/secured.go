package kafkatest

import (
	"path/filepath"

	"sonde/bus/wiretest"
)

// Password is that of the user sonde at a secured broker. It must stand in no log.
const Password = "pAssw0rd-of-the-test"

// Secured is a broker with a second listener, for those who bring a certificate and
// a password; what they may do there is for access rules to say. Below dir lie
// ca.pem, client.pem and client.key for them, and the same of a stranger.
func Secured(dir string) (Options, error) {
	err := wiretest.Certificates(dir)
	const listener = "listener.name.secured."
	return Options{Dir: dir, Secure: "SASL_SSL",
		Format: []string{"--add-scram", "SCRAM-SHA-256=[name=sonde,password=" + Password + "]",
			"--add-scram", "SCRAM-SHA-512=[name=sonde,password=" + Password + "]"},
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
