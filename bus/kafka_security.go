package bus

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"

	kafka "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// KafkaSecurity says how a client proves who it is, and how it knows the broker.
type KafkaSecurity struct {
	TLS       bool
	CAFile    string // PEM of the authorities that sign the brokers' certificates, "": those of the system
	CertFile  string // PEM of the client's certificate, "": none
	KeyFile   string // PEM of its key
	Mechanism string // "", plain, scram-sha-256 or scram-sha-512
	User      string
	Password  string
}

func (s *KafkaSecurity) tls() (*tls.Config, error) {
	if !s.TLS {
		return nil, nil
	}
	return clientTLS(s.CAFile, s.CertFile, s.KeyFile)
}

func (s *KafkaSecurity) sasl() (m sasl.Mechanism, err error) {
	switch s.Mechanism {
	case "":
		return nil, nil
	case "plain":
		return plain.Mechanism{Username: s.User, Password: s.Password}, nil
	case "scram-sha-256":
		m, err = scram.Mechanism(scram.SHA256, s.User, s.Password)
	case "scram-sha-512":
		m, err = scram.Mechanism(scram.SHA512, s.User, s.Password)
	default:
		err = fmt.Errorf("the mechanism %q is not known; use plain, scram-sha-256 or scram-sha-512", s.Mechanism)
	}
	if err != nil {
		return nil, fmt.Errorf("log in at the broker: %w", err)
	}
	return m, nil
}

// refusal says in one line why a broker or its certificate refuses us, whatever is
// repeated; "" where asking again can help.
func refusal(err error) string {
	switch {
	case errors.Is(err, kafka.SASLAuthenticationFailed):
		return "the broker refuses the user or its password"
	case errors.Is(err, kafka.UnsupportedSASLMechanism), errors.Is(err, kafka.IllegalSASLState):
		return "the broker does not take this login mechanism"
	case errors.Is(err, kafka.TopicAuthorizationFailed), errors.Is(err, kafka.ClusterAuthorizationFailed):
		return "the access rules of the broker do not allow it"
	case errors.Is(err, io.ErrUnexpectedEOF) && strings.Contains(err.Error(), "expecting TLS"):
		return "the broker expects TLS there"
	}
	return refusalOfTLS(err, "bus.kafka.tls.ca_file")
}
