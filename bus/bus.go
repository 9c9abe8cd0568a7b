// Package bus moves messages between the parts of Sonde: it publishes with
// acknowledgement, subscribes with positions, and carries commands with replies.
// NATS is the implementation, with a server in the own process or elsewhere;
// package bustest is one in memory. The package knows nothing of what the
// messages hold.
package bus

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The errors that callers tell apart with errors.Is.
var (
	// ErrRefused: this message can never be taken, whatever happens to the broker:
	// it is too large, or its subject does not belong to the stream.
	ErrRefused = errors.New("the bus can never take this message")
	// ErrTrimmed: the wanted position was trimmed away. The error is a *TrimmedError.
	ErrTrimmed = errors.New("the position was trimmed away")
	// ErrIncarnation: the stream was made anew; positions of before mean nothing.
	ErrIncarnation = errors.New("the stream is not the one that the positions belong to")
	// ErrClosed: the Bus was closed.
	ErrClosed = errors.New("the bus is closed")
	// ErrNoReply: nobody answered a request.
	ErrNoReply = errors.New("nobody answered the request")
)

// TrimmedError is the ErrTrimmed of a position.
type TrimmedError struct {
	Want  uint64 // the position that is gone
	First uint64 // the first position that exists, or that the next message will get
}

func (e *TrimmedError) Error() string {
	return fmt.Sprintf("position %d was trimmed away: the stream starts at %d; read on from there and report the gap",
		e.Want, e.First)
}

func (e *TrimmedError) Unwrap() error { return ErrTrimmed }

// MaxPayloadBytes bounds the data of one message: the file store takes no record
// above 32 MiB, subject and headers included.
const MaxPayloadBytes = 32<<20 - 64<<10

// Subjects of the stream, as a filter. A message to any other subject is refused.
const Subjects = "sonde.v1.>"

// MaxBroadcastBytes bounds the data of one broadcast.
const MaxBroadcastBytes = 64 << 10

// FromNew as a position means: only what comes from now on.
const FromNew = ^uint64(0)

// Message is what Publish takes. ID is for the broker's deduplication, which is
// only an optimisation: readers get duplicates all the same.
type Message struct {
	Subject, ID string
	Data        []byte
}

// Delivery is a message with its partition and its position there. Data is owned by
// the receiver.
type Delivery struct {
	Partition int
	Seq       uint64
	Subject   string
	Data      []byte
	Stored    time.Time
}

// StreamInfo describes one partition of the stream. First is the position of the
// first message that exists (or that the next will get, when there is none), Last
// that of the last one ever stored; sizes are in bytes. Incarnation changes when the
// partition is made anew.
type StreamInfo struct {
	Name        string
	Partition   int
	Incarnation string
	First, Last uint64
	Messages    uint64
	Bytes       uint64
	MaxBytes    uint64 // 0: no limit
}

// Bus is a stream of messages and a way to send commands. The stream has partitions,
// each with an order and positions of its own. Its methods may be called from any
// goroutine.
type Bus interface {
	// Partitions is how many there are, at least 1. It never changes.
	Partitions() int
	// Publish hands a message over and returns; it blocks only while the window, a
	// number of bytes, is full. When it returns nil, done is called exactly once,
	// from any goroutine and perhaps before Publish returns: with the position of
	// the message in its partition; with ErrRefused when it can never be taken; with the error of ctx
	// when that ended first (the message may be stored all the same); or with
	// ErrClosed. Until then it is tried for ever: a broker that restarts, a full
	// stream and a lost acknowledgement are waited for. When Publish returns an
	// error, which is that of ctx or ErrClosed, done is never called.
	//
	// The partition is PartitionOf the subject. Messages of one caller are stored there
	// in the order of the calls, also over retries: the positions that done gets ascend
	// in each partition. Further copies of a message may stand anywhere in it. Data must
	// not change until done is called. done must not block, nor call the Bus.
	Publish(ctx context.Context, m Message, done func(seq uint64, err error)) error
	// Info asks the broker about one partition, and waits for it until ctx ends.
	Info(ctx context.Context, partition int) (StreamInfo, error)
	// Subscribe reads one partition in order, as o says. Errors of the position come
	// from Next. Subscriptions do not influence each other, nor publishing.
	Subscribe(ctx context.Context, o SubscribeOptions) (Subscription, error)
	// Hear calls hear with each message whose subject matches one of the filters, as
	// it is published: before it is stored, so without a position, and milliseconds
	// earlier than a Subscription. It promises nothing: a message that is heard may
	// never be stored, and one that is stored may not have been heard. Who needs every
	// message reads a Subscription beside it. Calls come one at a time until stop is
	// called; what waits for a slow hear is bounded. data belongs to hear.
	Hear(filters []string, hear func(subject string, data []byte)) (stop func(), err error)
	// Trim forgets everything below a position of a partition. It waits for the broker
	// until ctx ends. It fails with ErrIncarnation while a subscription of this Bus to
	// the partition that is not closed belongs to another incarnation than it: the
	// position then comes from a stream that is gone.
	Trim(ctx context.Context, partition int, below uint64) error
	// Request sends a command and waits for the reply until ctx ends. ErrNoReply
	// means that nobody serves the subject, or that the reply did not come in time;
	// the command may have been carried out then.
	Request(ctx context.Context, subject string, data []byte) ([]byte, error)
	// Serve answers requests, one at a time per subject, until stop is called. It
	// outlives reconnects. stop waits for a running handle.
	Serve(subject string, handle func(data []byte) []byte) (stop func(), err error)
	// Broadcast tells something to everybody who listens to the subject, in all
	// processes, this one included. It is never stored for who listens later, and it may
	// be lost: an error means that it surely was, or that the subject belongs to the
	// stream, or that data are larger than MaxBroadcastBytes.
	Broadcast(subject string, data []byte) error
	// Listen calls hear with what is broadcast on a subject, one call at a time, until
	// stop is called. It outlives reconnects; what waits for a slow hear is bounded, and
	// beyond that lost. data belongs to hear.
	Listen(subject string, hear func(data []byte)) (stop func(), err error)
	// Connected reports whether the broker can be reached now.
	Connected() bool
	// Close gives up what is not acknowledged, with ErrClosed.
	Close() error
}

// SubscribeOptions say what a subscription reads.
type SubscribeOptions struct {
	Partition   int
	Filters     []string // NATS wildcards; a message must match one; empty: all
	From        uint64   // first position wanted; 0: the first there is; FromNew: only what comes
	Incarnation string   // that From belongs to; "": any

	// Since, with From 0: the first message that was stored at or after it; with Kafka,
	// to the ms. Where there is none, only what comes.
	Since time.Time
}

// Subscription is a reader of one partition. It survives restarts of the broker by
// itself. It is used by one goroutine, but for Close.
type Subscription interface {
	// Next waits for the next message. Its errors are a *TrimmedError, ErrIncarnation,
	// ErrClosed, or that of ctx; but for the last, the subscription is of no use
	// afterwards.
	Next(ctx context.Context) (Delivery, error)
	Close()
}
