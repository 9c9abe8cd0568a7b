package bus

import (
	"context"
	"errors"
	"time"

	kafka "github.com/segmentio/kafka-go"
)

// kafkaTail follows a partition from now on, wherever that is after something went
// wrong: it promises nothing.
type kafkaTail struct {
	k         *Kafka
	topic     string
	partition int
	take      func(*fetchedRecord)
	skip      func(lost int64) // messages that were too many to take; nil: all are taken
	ready     chan struct{}    // closed when the end was found
}

func (k *Kafka) newTail(topic string, partition int, take func(*fetchedRecord), skip func(int64)) *kafkaTail {
	return &kafkaTail{k: k, topic: topic, partition: partition, take: take, skip: skip, ready: make(chan struct{})}
}

// run follows until ctx ends.
func (t *kafkaTail) run(ctx context.Context) {
	at, wait := int64(-1), firstRedial
	for ctx.Err() == nil {
		var err error
		if at < 0 {
			if at, err = t.start(ctx); err == nil {
				t.found()
			}
		} else {
			at, err = t.step(ctx, at)
		}
		if err == nil {
			wait = firstRedial
			continue
		}
		if errors.Is(err, kafka.OffsetOutOfRange) || errors.Is(err, kafka.UnknownTopicOrPartition) || noSuchTopic(err) {
			at = -1
		}
		sleep(ctx, wait)
		wait = min(2*wait, lastRedial)
	}
}

func (t *kafkaTail) found() {
	select {
	case <-t.ready:
	default:
		close(t.ready)
	}
}

func (t *kafkaTail) start(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if _, err := t.k.ensure(ctx, t.topic, t.partition); err != nil {
		return -1, err
	}
	at, err := t.k.offset(ctx, t.topic, t.partition, offsetEnd)
	if err != nil {
		return -1, err
	}
	return at, nil
}

// step takes what is there, or waits a moment for it.
func (t *kafkaTail) step(ctx context.Context, at int64) (int64, error) {
	got, err := t.k.fetch(ctx, t.topic, t.partition, at)
	if err != nil {
		return at, err
	}
	for i := range got.records {
		if ctx.Err() != nil {
			return at, nil
		}
		at = got.records[i].offset + 1
		t.take(&got.records[i])
	}
	if behind := got.end - at; t.skip != nil && behind > maxUnheard {
		t.skip(behind)
		at = got.end
	}
	return at, nil
}

func msTime(ms int64) time.Time { return time.UnixMilli(ms) }
