package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// A stream of one partition is one stream of JetStream, NAME, that holds the subjects
// as they are. Of several, each is a stream of its own, NAME-0 and so on, and on the
// wire a token behind the tenant says which one of how many: sonde.v1.acme.0of3.llm...
// So the rights of a tenant stay a prefix, and who counts otherwise stores nothing.

// tenantToken is the place of the tenant in a subject.
const tenantToken = 2

// streamName is the stream of JetStream that is a partition.
func (o *NATSOptions) streamName(partition int) string {
	if o.Partitions <= 1 {
		return o.Stream
	}
	return o.Stream + "-" + strconv.Itoa(partition)
}

func (o *NATSOptions) partitionToken(partition int) string {
	return fmt.Sprintf("%dof%d", partition, o.Partitions)
}

// subjectsOf is what a partition's stream holds.
func (o *NATSOptions) subjectsOf(partition int) []string {
	if o.Partitions <= 1 {
		return []string{Subjects}
	}
	token := "sonde.v1.*." + o.partitionToken(partition)
	return []string{token, token + ".>"}
}

// wireSubject is where a message of the stream is published at the broker.
func (o *NATSOptions) wireSubject(subject string, partition int) string {
	if o.Partitions <= 1 {
		return subject
	}
	return insertToken(subject, o.partitionToken(partition))
}

// wireFilter matches at the broker what a filter matches, of any partition.
func (o *NATSOptions) wireFilter(filter string) string {
	if o.Partitions <= 1 {
		return filter
	}
	tokens := strings.SplitN(filter, ".", tenantToken+2)
	// One without a place for the tenant matches whatever stands there, or nothing of the stream.
	if len(tokens) <= tenantToken || tokens[tenantToken] == ">" || !collide(tokens[:2], []string{"sonde", "v1"}) {
		return filter
	}
	return insertToken(filter, "*")
}

// plainSubject is the subject of a message from the broker.
func (o *NATSOptions) plainSubject(subject string) string {
	if o.Partitions <= 1 || !Match(Subjects, subject) {
		return subject
	}
	head, rest := cutTenant(subject)
	_, rest, more := strings.Cut(rest, ".")
	if !more {
		return head
	}
	return head + "." + rest
}

// insertToken puts a token behind the tenant of a subject.
func insertToken(subject, token string) string {
	head, rest := cutTenant(subject)
	if rest == "" {
		return head + "." + token
	}
	return head + "." + token + "." + rest
}

// cutTenant cuts a subject behind its tenant.
func cutTenant(subject string) (head, rest string) {
	at := 0
	for range tenantToken + 1 {
		i := strings.IndexByte(subject[at:], '.')
		if i < 0 {
			return subject, ""
		}
		at += i + 1
	}
	return subject[:at-1], subject[at:]
}

// partitionsOf is how many partitions the stream has that a stream of JetStream is a
// part of, 0 when it is none of ours.
func partitionsOf(c *jetstream.StreamConfig) int {
	if slices.Equal(c.Subjects, []string{Subjects}) {
		return 1
	}
	if len(c.Subjects) == 0 {
		return 0
	}
	_, rest := cutTenant(c.Subjects[0])
	var partition, partitions int
	if n, err := fmt.Sscanf(rest, "%dof%d", &partition, &partitions); n != 2 || err != nil {
		return 0
	}
	return partitions
}

// otherName is the first stream where there is one partition instead of several, or
// several instead of one: it is called the same whatever their number.
func (o *NATSOptions) otherName() string {
	other := NATSOptions{Stream: o.Stream, Partitions: 1}
	if o.Partitions <= 1 {
		other.Partitions = 2
	}
	return other.streamName(0)
}

// codeSubjectsOverlap is the answer to a stream whose subjects another one holds.
const codeSubjectsOverlap = 10065

// otherNumber says why a stream cannot be made: it exists with another number of
// partitions. It is nil when that is not so.
func (n *NATS) otherNumber(ctx context.Context, c *connection, err error) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.ErrorCode != codeSubjectsOverlap {
		return nil
	}
	s, err := c.js.Stream(ctx, n.o.otherName())
	if err != nil {
		return nil
	}
	if number := partitionsOf(&s.CachedInfo().Config); number > 0 {
		return errPermanent{fmt.Errorf("stream %s has %d partitions, and bus.partitions is %d; set that to %[2]d, or name "+
			"another stream", n.o.Stream, number, n.o.Partitions)}
	}
	return nil
}
