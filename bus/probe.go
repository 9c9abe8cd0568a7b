package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Broker is what a broker says of itself and of one stream.
type Broker struct {
	Version    string
	MaxPayload int64       // bytes of one message, headers included
	Stream     *StreamInfo // of all partitions together; nil: there is no stream of that name
	MaxMsgSize int64       // bytes that the stream takes as one message; 0: no limit of its own
	MaxMsgs    int64       // messages that the stream takes; 0: no limit
	Losses     []string    // why the stream would be refused: it loses messages or order by itself

	Differences []string // what else a stream of ours would have otherwise
}

// Probe asks a broker and changes nothing: a stream that is missing is not made.
// It tries once. Errors: nobody answers, the login is refused, no JetStream.
func Probe(ctx context.Context, o NATSOptions) (Broker, error) {
	timeout := callTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = max(time.Millisecond, min(timeout, time.Until(deadline)))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	d := &denials{}
	nc, err := connectNATS(o.URL, &o.Security, []nats.Option{nats.Name("sonde probe"), nats.NoReconnect(),
		nats.Timeout(timeout), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			d.hear(err, o.Security.inboxPrefix())
		})})
	if err != nil {
		return Broker{}, err
	}
	defer nc.Close()
	b := Broker{Version: nc.ConnectedServerVersion(), MaxPayload: nc.MaxPayload()}
	js, err := jetstream.New(nc)
	if err != nil {
		return b, fmt.Errorf("use JetStream: %w", err)
	}
	denied := d.ask("", cancel)
	err = b.lookAt(ctx, js, &o)
	if why := denied(); err != nil && why != nil {
		err = why
	}
	if err != nil {
		return b, fmt.Errorf("look at stream %s: %w", o.Stream, err)
	}
	return b, nil
}

// lookAt looks at each partition of a stream, or at the one of another number of them.
func (b *Broker) lookAt(ctx context.Context, js jetstream.JetStream, o *NATSOptions) error {
	for i := range max(1, o.Partitions) {
		s, err := js.Stream(ctx, o.streamName(i))
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		b.take(s.CachedInfo(), o, i)
	}
	if b.Stream == nil { // where that cannot be looked at, it is found out when the stream is made
		if s, err := js.Stream(ctx, o.otherName()); err == nil {
			b.take(s.CachedInfo(), o, 0)
		}
	}
	b.Losses, b.Differences = slices.Compact(b.Losses), slices.Compact(b.Differences)
	if b.Stream != nil {
		b.Stream.Name = o.Stream
	}
	return nil
}

func (b *Broker) take(have *jetstream.StreamInfo, o *NATSOptions, partition int) {
	b.add(describeStream(have, partition))
	b.MaxMsgSize, b.MaxMsgs = int64(max(0, have.Config.MaxMsgSize)), max(0, have.Config.MaxMsgs)
	b.Losses = append(b.Losses, losses(have.Config, o.streamConfig(partition))...)
	if o.Replicas > 0 && o.Replicas != have.Config.Replicas {
		b.Differences = append(b.Differences, difference{"replicas", have.Config.Replicas, o.Replicas}.String())
	}
}

// add counts a partition in: the sizes are of all of them, the positions of the first.
func (b *Broker) add(info StreamInfo) {
	if b.Stream == nil {
		b.Stream = &info
		return
	}
	b.Stream.Messages += info.Messages
	b.Stream.Bytes += info.Bytes
	b.Stream.MaxBytes += info.MaxBytes
}
