package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// forgetProbe is when the broker forgets a consumer that was only asked where it is.
const forgetProbe = 5 * time.Second

// findTime resolves the Since of a subscription, with a broker that knows the position
// at a time. at is called with what the broker says of the partition before.
func (p *place) findTime(ctx context.Context, o *SubscribeOptions,
	at func(context.Context) (uint64, StreamInfo, error)) error {
	if o.Since.IsZero() || o.From != 0 {
		return nil
	}
	next, info, err := at(ctx)
	if err != nil {
		return fmt.Errorf("look for what was stored at %s: %w", o.Since.Format(time.RFC3339), err)
	}
	if p.incarnation == "" {
		p.incarnation = info.Incarnation
	}
	if p.incarnation == info.Incarnation {
		p.next = next
	}
	return nil
}

// at finds a position by time: a consumer that starts there says where that is. It has
// the filters of the reader, which may have no right to others.
func (n *NATS) at(ctx context.Context, s *subscription, since time.Time) (next uint64, info StreamInfo, err error) {
	err = n.link.call(ctx, func(ctx context.Context, c *connection) error {
		i, err := n.ensureStream(ctx, c, s.partition)
		if err != nil {
			return err
		}
		info = n.infoOf(i, s.partition)
		o := s.consumerConfig()
		o.DeliverPolicy, o.OptStartTime, o.InactiveThreshold = jetstream.DeliverByStartTimePolicy, &since, forgetProbe
		consumer, err := c.js.CreateConsumer(ctx, info.Name, o)
		if err != nil {
			return fmt.Errorf("read stream %s: %w", info.Name, permanentAnswer(err))
		}
		place, err := consumer.Info(ctx)
		if err != nil {
			return err
		}
		after, err := n.ensureStream(ctx, c, s.partition)
		if err != nil || !after.Created.Equal(i.Created) {
			return errors.Join(err, errors.New("the stream changed while a time was looked for"))
		}
		next = min(max(place.Delivered.Stream+1, info.First), after.State.LastSeq+1)
		return nil
	})
	return next, info, err
}

// at finds a position by time, of which Kafka keeps ms.
func (k *Kafka) at(ctx context.Context, partition int, since time.Time) (next uint64, info StreamInfo, err error) {
	err = k.call(ctx, func(ctx context.Context) error {
		before, err := k.look(ctx, partition)
		if err != nil {
			return err
		}
		offset, err := k.offset(ctx, k.o.Stream, partition, max(0, since.UnixMilli()))
		if err != nil {
			return fmt.Errorf("ask for the offset at a time of topic %s: %w", k.o.Stream, err)
		}
		if info, err = k.look(ctx, partition); err != nil {
			return err
		}
		if info.Incarnation != before.Incarnation {
			return errors.New("the topic changed while a time was looked for")
		}
		if next = uint64(offset) + 1; offset < 0 { // none: what came since then may be older by its own clock
			next = before.Last + 1
		}
		return nil
	})
	return next, info, err
}
