package bus_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"testing"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"

	"sonde/bus"
)

// The library of others reads what we encode: lengths, checksum, every message.
func TestABatchIsReadAsItWasWritten(t *testing.T) {
	rng := random(t)
	for range 50 {
		var want []bus.Message
		for i := range 1 + rng.IntN(300) {
			data := make([]byte, rng.IntN(200)*rng.IntN(20))
			for j := range data {
				data[j] = byte(rng.Uint32())
			}
			want = append(want, bus.Message{Subject: fmt.Sprintf("sonde.v1.%d", i), ID: fmt.Sprint(rng.Uint64()), Data: data})
		}
		batch := bus.EncodeBatch(1_790_000_000_123, want)
		var set protocol.RecordSet
		if n, err := set.ReadFrom(bytes.NewReader(batch)); err != nil || int(n) != len(batch) {
			t.Fatalf("read %d of %d bytes: %v", n, len(batch), err)
		}
		for i := 0; ; i++ {
			r, err := set.Records.ReadRecord()
			if err == io.EOF && i == len(want) {
				break
			}
			if err != nil {
				t.Fatalf("message %d of %d: %v", i, len(want), err)
			}
			key, _ := protocol.ReadAll(r.Key)
			value, _ := protocol.ReadAll(r.Value)
			if string(key) != want[i].Subject || !bytes.Equal(value, want[i].Data) || r.Offset != int64(i) ||
				r.Time.UnixMilli() != 1_790_000_000_123 || string(r.Headers[0].Value) != want[i].ID {
				t.Fatalf("message %d is %q at %d, %s", i, key, r.Offset, r.Time)
			}
		}
	}
}

// topicAnswer is an answer of Metadata version 10, as a broker would write it.
func topicAnswer(topics ...string) []byte {
	b := []byte{0, 0, 0, 1, 0, 0, 0, 0, 0} // correlation, tags, throttle
	b = append(b, 2, 0, 0, 0, 7, 5)        // one broker, 7, of 4 letters
	b = append(b, "host\x00\x00\x23\x84\x00\x00"...)
	b = append(b, 8)
	b = append(b, "cluster\x00\x00\x00\x07"...)
	b = append(b, byte(len(topics)+1))
	for i, name := range topics {
		b = append(b, 0, 0, byte(len(name)+1))
		b = append(b, name...)
		b = append(b, bytes.Repeat([]byte{byte(i + 1)}, 16)...)
		b = append(b, 0, 2)                                        // not internal; one partition
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 3)    // error, index, leader, epoch
		b = append(b, 3, 0, 0, 0, 7, 0, 0, 0, 8, 2, 0, 0, 0, 7, 1) // two replicas, one in sync, none offline
		b = append(b, 1, 5, 2, 0xaa, 0xbb)                         // a tag that nobody knows
		b = append(b, 0x80, 0, 0, 0, 0)                            // operations, tags
	}
	return append(b, 0x80, 0, 0, 0, 0)
}

func TestATopicIsReadFromTheAnswerOfABroker(t *testing.T) {
	id, partitions, replicas, err := bus.ParseTopic(topicAnswer("OTHER", "SONDE"), "SONDE")
	if err != nil || id != hex.EncodeToString(bytes.Repeat([]byte{2}, 16)) || partitions != 1 || replicas != 2 {
		t.Errorf("id %s, %d partitions, %d replicas, %v", id, partitions, replicas, err)
	}
	if _, _, _, err := bus.ParseTopic(topicAnswer("OTHER"), "SONDE"); err == nil {
		t.Error("an answer about another topic is taken")
	}
}

// Whatever a broker answers, it is an error and never more.
func FuzzTopicAnswer(f *testing.F) {
	whole := topicAnswer("SONDE")
	for i := range whole {
		f.Add(whole[:i])
		changed := bytes.Clone(whole)
		changed[i] = 0xff
		f.Add(changed)
	}
	f.Add(binary.AppendUvarint([]byte{0, 0, 0, 1, 0, 0, 0, 0, 0}, 1<<40))
	f.Fuzz(func(t *testing.T, answer []byte) {
		id, partitions, _, err := bus.ParseTopic(answer, "SONDE")
		if err == nil && (len(id) != 32 || partitions > len(answer)) {
			t.Errorf("id %q, %d partitions", id, partitions)
		}
	})
}

// The sum over a topic must stay right whatever is published, read and trimmed by
// whom, and in whichever order that is learned.
func TestSizeOfATopicAddsUp(t *testing.T) {
	rng := random(t)
	for range 30 {
		var s bus.StreamSize
		var sizes []uint64 // of the messages from offset 0
		start, total := 0, uint64(0)
		s.Saw("a", 0, 0)
		for range 2000 {
			switch rng.IntN(4) {
			case 0:
				drop := min(rng.IntN(40), len(sizes)-start)
				for range drop {
					total -= sizes[start]
					start++
				}
			default:
				n, each := 1+rng.IntN(5), uint64(1+rng.IntN(1000))
				s.Begin()
				if rng.IntN(2) == 0 { // somebody looks before the answer
					s.Saw("a", int64(start), int64(len(sizes)+n))
				}
				for range n {
					sizes = append(sizes, each)
					total += each
				}
				s.Sent(int64(len(sizes)-n), n, uint64(n)*each)
			}
			got := s.Saw("a", int64(start), int64(len(sizes)))
			// A run that is halved gives up its mean, which is exact here.
			if diff := int64(got) - int64(total); diff > 2000 || diff < -2000 {
				t.Fatalf("%d messages of %d bytes are taken for %d bytes", len(sizes)-start, total, got)
			}
		}
		if s.Runs() > bus.MaxSizeRuns {
			t.Errorf("%d runs are held", s.Runs())
		}
		if got := s.Saw("b", 0, 0); got != 0 {
			t.Errorf("a topic that was made anew is taken for %d bytes", got)
		}
	}
}

func TestSizeOfWhatOthersPublished(t *testing.T) {
	var s bus.StreamSize
	s.Expect("a", 5000)
	if got := s.Saw("a", 10, 60); got != 5000 {
		t.Errorf("at the start %d", got)
	}
	if got := s.Saw("a", 35, 60); got != 2500 {
		t.Errorf("half of it trimmed: %d", got)
	}
	s.Begin()
	s.Sent(70, 2, 40) // ten messages of others came before
	if got := s.Saw("a", 35, 72); got != 2500+10*20+40 {
		t.Errorf("with ten of others: %d", got)
	}
	s.Read("a", 60, 70, 900)
	if got := s.Saw("a", 35, 72); got != 2500+900+40 {
		t.Errorf("after these were read: %d", got)
	}
	s.Read("b", 60, 70, 1)
	s.Read("a", 0, 10, 1)
	if got := s.Saw("a", 72, 72); got != 0 {
		t.Errorf("an empty topic has %d", got)
	}
	for i := range int64(3 * bus.MaxSizeRuns) {
		s.Sent(72+i, 1, 1)
	}
	if got := s.Saw("a", 72, 72+3*bus.MaxSizeRuns); got != 3*bus.MaxSizeRuns || s.Runs() > bus.MaxSizeRuns {
		t.Errorf("many batches: %d bytes in %d runs", got, s.Runs())
	}
}

// Likewise what it says of a batch.
func FuzzProduceAnswer(f *testing.F) {
	var b bytes.Buffer
	if err := protocol.WriteResponse(&b, 7, 1, &produce.Response{Topics: []produce.ResponseTopic{{Topic: "SONDE",
		Partitions: []produce.ResponsePartition{{ErrorCode: 19, BaseOffset: 1 << 40, LogAppendTime: -1}}}}}); err != nil {
		f.Fatal(err)
	}
	whole := b.Bytes()[4:]
	if code, offset, err := bus.ParseProduced(whole); err != nil || code != 19 || offset != 1<<40 {
		f.Fatalf("code %d, offset %d, %v", code, offset, err)
	}
	for i := range whole {
		f.Add(whole[:i])
		changed := bytes.Clone(whole)
		changed[i] = 0xff
		f.Add(changed)
	}
	f.Fuzz(func(_ *testing.T, answer []byte) { bus.ParseProduced(answer) })
}
