package kafkatest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Password is that of the user sonde at a secured broker. It must stand in no log.
const Password = "pAssw0rd-of-the-test"

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

// Secured is a broker with a second listener, for those who bring a certificate and
// a password; what they may do there is for access rules to say. Below dir lie
// ca.pem, client.pem and client.key for them, and the same of a stranger.
func Secured(dir string) (Options, error) {
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
