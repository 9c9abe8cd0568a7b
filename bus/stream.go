package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// dedupeWindow is how long the broker knows message ids.
const dedupeWindow = 2 * time.Minute

func (o *NATSOptions) streamConfig(partition int) jetstream.StreamConfig {
	maxBytes := int64(-1)
	if o.MaxBytes > 0 {
		maxBytes = max(1, o.MaxBytes/int64(max(1, o.Partitions)))
	}
	return jetstream.StreamConfig{Name: o.streamName(partition), Subjects: o.subjectsOf(partition),
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew, Storage: jetstream.FileStorage, MaxBytes: maxBytes,
		MaxMsgs: -1, MaxMsgsPerSubject: -1,
		MaxMsgSize: -1, MaxConsumers: -1, Replicas: max(1, o.Replicas), Duplicates: dedupeWindow}
}

// ensureStream makes the stream when it is missing, and looks at one that exists.
// A stream that forgets by itself is a permanent error.
func (n *NATS) ensureStream(ctx context.Context, c *connection, partition int) (*jetstream.StreamInfo, error) {
	name := n.o.streamName(partition)
	s, err := c.js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if n.o.MustExist {
			return nil, errPermanent{fmt.Errorf("stream %s does not exist; start sonde run, which makes it: %w", name,
				ErrIncarnation)}
		}
		if s, err = c.js.CreateStream(ctx, n.o.streamConfig(partition)); err == nil {
			n.log.Info("made the stream", "stream", name, "max_bytes", n.o.MaxBytes)
			return s.CachedInfo(), nil
		}
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // somebody else made it this moment
			s, err = c.js.Stream(ctx, name)
		}
		if why := n.otherNumber(ctx, c, err); why != nil {
			return nil, why
		}
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", name, permanentAnswer(err))
	}
	return s.CachedInfo(), nil
}

// codeNotClustered is the answer to several replicas from a server that is alone.
const codeNotClustered = 10074

// codeNoPeers is the answer to several replicas from a cluster without enough servers.
// One that says that a peer is offline holds only until that server is back.
const (
	codeNoPeers = 10005
	peerOffline = "peer offline"
)

// permanentAnswer marks answers that say that this stream can never be made.
func permanentAnswer(err error) error {
	var api *jetstream.APIError
	if !errors.As(err, &api) || api.ErrorCode == codeNoPeers && strings.Contains(api.Description, peerOffline) {
		return err
	}
	if api.Code == 400 || api.ErrorCode == codeNotClustered {
		return errPermanent{err}
	}
	return err
}

// losses lists why a stream would lose messages or order by itself.
func losses(have, want jetstream.StreamConfig) []string {
	var wrong []string
	add := func(bad bool, what string) {
		if bad {
			wrong = append(wrong, what)
		}
	}
	add(have.Discard != want.Discard, "discard is "+have.Discard.String()+", not new")
	add(have.Retention != want.Retention, "retention is "+have.Retention.String()+", not limits")
	add(have.MaxAge != 0, "max_age is "+have.MaxAge.String()+", not 0")
	add(have.MaxMsgsPerSubject > 0, "max_msgs_per_subject is set")
	add(have.AllowRollup, "rollup headers are allowed")
	add(have.NoAck, "no_ack is set")
	if number := partitionsOf(&have); number != partitionsOf(&want) && number > 0 {
		add(true, fmt.Sprintf("it has %d partitions, and bus.partitions is %d", number, partitionsOf(&want)))
	} else {
		add(!slices.Equal(have.Subjects, want.Subjects), fmt.Sprintf("subjects are %q, not %q", have.Subjects, want.Subjects))
	}
	return wrong
}

// checkStreams checks all partitions.
func (n *NATS) checkStreams(ctx context.Context, c *connection) error {
	for i := range n.o.Partitions {
		if err := n.checkStream(ctx, c, i); err != nil {
			return err
		}
	}
	return nil
}

// checkStream compares a stream with what this program would have made. It
// refuses one that loses messages by itself, and reports other differences.
func (n *NATS) checkStream(ctx context.Context, c *connection, partition int) error {
	info, err := n.ensureStream(ctx, c, partition)
	if err != nil {
		return err
	}
	have, want := info.Config, n.o.streamConfig(partition)
	if wrong := losses(have, want); len(wrong) > 0 {
		return errPermanent{fmt.Errorf("stream %s would lose messages or order: %s; change the stream, or name another one",
			want.Name, strings.Join(wrong, "; "))}
	}
	if have.MaxBytes != want.MaxBytes && n.o.Embedded != nil {
		have.MaxBytes = want.MaxBytes
		if _, err := c.js.UpdateStream(ctx, have); err != nil {
			return fmt.Errorf("change max_bytes of stream %s to %d: %w", want.Name, want.MaxBytes, permanentAnswer(err))
		}
		n.log.Info("changed the bound of the stream", "stream", want.Name, "max_bytes", want.MaxBytes)
	}
	for _, d := range n.o.differences(have, partition) {
		n.log.Warn("the stream differs from the configuration; it is left as it is", "stream", want.Name,
			"limit", d.what, "stream_has", d.have, "configured", d.want)
	}
	return nil
}

// difference is a limit that a stream of ours would have otherwise.
type difference struct {
	what       string
	have, want any
}

func (d difference) String() string { return fmt.Sprintf("%s is %v, not %v", d.what, d.have, d.want) }

func (o *NATSOptions) differences(have jetstream.StreamConfig, partition int) []difference {
	want := o.streamConfig(partition)
	all := []difference{{"max_bytes", have.MaxBytes, want.MaxBytes}, {"max_msgs", have.MaxMsgs, want.MaxMsgs},
		{"storage", have.Storage.String(), want.Storage.String()},
		{"duplicate_window", have.Duplicates.String(), want.Duplicates.String()},
		{"max_msg_size", int64(have.MaxMsgSize), int64(want.MaxMsgSize)}}
	if o.Replicas > 0 { // else whoever made it chose
		all = append(all, difference{"replicas", have.Replicas, want.Replicas})
	}
	return slices.DeleteFunc(all, func(d difference) bool { return d.have == d.want })
}

// Info implements Bus.
func (n *NATS) Info(ctx context.Context, partition int) (info StreamInfo, err error) {
	if err := checkPartition(n.o.Stream, partition, n.Partitions()); err != nil {
		return info, err
	}
	err = n.link.call(ctx, func(ctx context.Context, c *connection) error {
		i, err := n.ensureStream(ctx, c, partition)
		if err == nil {
			info = n.infoOf(i, partition)
		}
		return err
	})
	return info, err
}

func (n *NATS) infoOf(i *jetstream.StreamInfo, partition int) StreamInfo {
	out := describeStream(i, partition)
	n.metrics.saw(out)
	return out
}

func describeStream(i *jetstream.StreamInfo, partition int) StreamInfo {
	out := StreamInfo{Name: i.Config.Name, Partition: partition, Incarnation: strconv.FormatInt(i.Created.UnixNano(), 16),
		First: i.State.FirstSeq, Last: i.State.LastSeq, Messages: i.State.Msgs, Bytes: i.State.Bytes,
		MaxBytes: uint64(max(0, i.Config.MaxBytes))}
	if out.Messages == 0 {
		out.First = out.Last + 1
	}
	return out
}

// Trim implements Bus.
func (n *NATS) Trim(ctx context.Context, partition int, below uint64) error {
	if err := checkPartition(n.o.Stream, partition, n.Partitions()); err != nil {
		return err
	}
	return n.link.call(ctx, func(ctx context.Context, c *connection) error {
		i, err := n.ensureStream(ctx, c, partition)
		if err != nil {
			return err
		}
		info := n.infoOf(i, partition)
		n.mu.Lock()
		for s := range n.subscriptions {
			if s.partition == partition && !s.belongs(info.Incarnation) {
				err = errPermanent{s.recreated(info)}
			}
		}
		n.mu.Unlock()
		if err != nil {
			return err
		}
		// A purge beyond the end would move the end.
		below := min(below, info.Last+1)
		if below <= info.First {
			return nil
		}
		s, err := c.js.Stream(ctx, info.Name)
		if err != nil {
			return err
		}
		if err := s.Purge(ctx, jetstream.WithPurgeSequence(below)); err != nil {
			return fmt.Errorf("trim stream %s below %d: %w", info.Name, below, err)
		}
		return nil
	})
}
