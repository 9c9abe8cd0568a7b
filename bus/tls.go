package bus

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
)

// clientTLS is TLS as a client of a broker speaks it. caFile holds the authorities that
// sign the broker's certificate, "" means those of the system; certFile and keyFile hold
// the client's own certificate, if it has one.
func clientTLS(caFile, certFile, keyFile string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		text, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("read the certificates of the authorities: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("read the certificates of the authorities: %s holds none in PEM form", caFile)
		}
	}
	if certFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("read the client's certificate %s and key %s: %w", certFile, keyFile, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// refusalOfTLS says in one line why TLS with a broker fails, whatever is repeated; ""
// where asking again can help. caKey names the key of the configuration for authorities.
func refusalOfTLS(err error, caKey string) string {
	var (
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		remote    *net.OpError // what the other side says in TLS; its own type is not public
	)
	switch {
	case errors.As(err, &authority):
		return "the broker's certificate is signed by nobody that is trusted; name the authority in " + caKey
	case errors.As(err, &host), errors.As(err, &invalid):
		return "the broker's certificate is not valid for it"
	case errors.As(err, &record):
		return "the broker does not speak TLS there"
	case errors.As(err, &remote) && remote.Op == "remote error":
		return "the broker refuses the client's certificate, or asks for one"
	}
	return ""
}
