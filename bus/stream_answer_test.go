package bus

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

// A server of a cluster that is away for a moment must not end whoever starts then; a
// cluster that is too small must.
func TestAPeerThatIsOfflineIsWaitedFor(t *testing.T) {
	var permanent errPermanent
	for description, want := range map[string]bool{
		"no suitable peers for placement, peer offline":         false,
		"no suitable peers for placement":                       true,
		"no suitable peers for placement, insufficient storage": true,
	} {
		err := permanentAnswer(&jetstream.APIError{Code: 400, ErrorCode: codeNoPeers, Description: description})
		if errors.As(err, &permanent) != want {
			t.Errorf("%q is permanent: %v, want %v", description, !want, want)
		}
	}
}
