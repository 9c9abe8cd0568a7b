package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Broker is what a broker says of itself and of one stream.
type Broker struct {
	Version    string
	MaxPayload int64       // bytes of one message, headers included
	Stream     *StreamInfo // nil: there is no stream of that name
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
	s, err := js.Stream(ctx, o.Stream)
	why := denied()
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return b, nil
	case err != nil && why != nil:
		return b, fmt.Errorf("look at stream %s: %w", o.Stream, why)
	case err != nil:
		return b, fmt.Errorf("look at stream %s: %w", o.Stream, err)
	}
	i := s.CachedInfo()
	info := describeStream(i)
	b.Stream, b.MaxMsgSize, b.MaxMsgs = &info, int64(max(0, i.Config.MaxMsgSize)), max(0, i.Config.MaxMsgs)
	b.Losses = losses(i.Config, o.streamConfig())
	if o.Replicas > 0 && o.Replicas != i.Config.Replicas {
		b.Differences = append(b.Differences, difference{"replicas", i.Config.Replicas, o.Replicas}.String())
	}
	return b, nil
}
