// Package wiretest has what tests of real brokers share: their process, addresses
// that nobody listens on, and certificates.
package wiretest

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

// FreePorts finds n addresses of this machine, host:port, that nobody listens on.
func FreePorts(n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		out = append(out, l.Addr().String())
	}
	return out, nil
}

// Authority signs certificates.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Certificate writes NAME.pem, NAME.key and, with both in it, NAME-both.pem below dir.
// It is valid for 127.0.0.1, for an hour, and signed by itself when by is nil.
func Certificate(dir, name string, by *Authority) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	c := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true}
	signer := &Authority{c, key}
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
	return &Authority{c, key}, errors.Join(os.WriteFile(filepath.Join(dir, name+".pem"), cert, 0o644),
		os.WriteFile(filepath.Join(dir, name+".key"), private, 0o600),
		os.WriteFile(filepath.Join(dir, name+"-both.pem"), append(private, cert...), 0o600))
}

// Certificates writes those of a broker and its clients below dir: ca signs server
// and client; stranger is signed by itself.
func Certificates(dir string) error {
	ca, err := Certificate(dir, "ca", nil)
	for _, name := range []string{"server", "client"} {
		if err == nil {
			_, err = Certificate(dir, name, ca)
		}
	}
	if err == nil {
		_, err = Certificate(dir, "stranger", nil)
	}
	return err
}
