package bus

import (
	"fmt"
	"time"
)

// publisher sends the queue of one partition to NATS. It is published again as a
// whole when something fails:
//
//   - When the connection broke, the broker has stored some first part of what was
//     sent. Each message is sent again with its id, and the broker drops what it has.
//   - When the broker did not take one message, or did not answer, it may have
//     stored later ones: they stand before their turn, and their ids would make the
//     broker drop them. So these are sent again with new ids, and the early copies
//     are duplicates like any other.
//
// After a failure one message is sent alone, and from answer to answer twice as
// many, so that a full stream is not flooded with copies.
type publisher struct {
	queue
	n             *NATS
	partition     int
	answerTimeout time.Duration

	// Guarded by queue.mu.
	attempt uint64
	sent    int       // entries passed by the sender in this attempt
	unknown int       // sent in this attempt and not answered
	limit   int       // bound of unknown
	heard   time.Time // of the last answer, or of the first message that waits for one
	highest uint64    // position that was acknowledged last
	failure *failure  // of this attempt
}

// failure is why the queue has to be published again.
type failure struct {
	reason string // of the metric
	err    error
}

func newPublisher(n *NATS, w *window, partition int) *publisher {
	p := &publisher{queue: newQueue(w, checkForNATS), n: n, partition: partition, answerTimeout: answerTimeout,
		limit: maxWindowMessages}
	p.left = func(e *entry) {
		p.stopAwaiting(e)
		p.sent = max(0, p.sent-1)
	}
	return p
}

func checkForNATS(m *Message) error {
	if len(m.Data) > MaxPayloadBytes {
		return fmt.Errorf("publish %d bytes to %s; at most %d: %w", len(m.Data), m.Subject, MaxPayloadBytes, ErrRefused)
	}
	return checkSubject(m)
}

func (p *publisher) stopAwaiting(e *entry) {
	if e.awaiting {
		e.awaiting = false
		p.unknown--
	}
}
