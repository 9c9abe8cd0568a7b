package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

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

// at finds a position by time: a consumer that starts there says where that is.
func (n *NATS) at(ctx context.Context, partition int, since time.Time) (next uint64, info StreamInfo, err error) {
	err = n.link.call(ctx, func(ctx context.Context, c *connection) error {
		i, err := n.ensureStream(ctx, c, partition)
		if err != nil {
			return err
		}
		info = n.infoOf(i, partition)
		consumer, err := c.js.CreateConsumer(ctx, info.Name, jetstream.ConsumerConfig{MemoryStorage: true, Replicas: 1,
			DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &since, AckPolicy: jetstream.AckNonePolicy,
			InactiveThreshold: forgetConsumer})
		if err != nil {
			return fmt.Errorf("read stream %s: %w", info.Name, permanentAnswer(err))
		}
		place, err := consumer.Info(ctx)
		if err != nil {
			return err
		}
		// It is forgotten in a minute anyway.
		_ = c.js.DeleteConsumer(ctx, info.Name, place.Name)
		after, err := n.ensureStream(ctx, c, partition)
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
