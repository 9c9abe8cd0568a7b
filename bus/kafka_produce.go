package bus

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/segmentio/kafka-go/protocol"
)

// produceQuery stores a batch: Produce version 7, written straight from the batch.
// The library would copy it once more.
type produceQuery struct {
	topic     string
	partition int
	batch     []byte // behind its length
}

// produceAnswer says what became of it.
type produceAnswer struct {
	code   int16
	offset int64 // of the first message
}

const (
	produceVersion = 7
	// allInSync asks for the acknowledgement of all replicas in sync.
	allInSync = -1
	// maxProduceAnswer bounds an answer about one partition.
	maxProduceAnswer = 64 << 10
)

func (*produceQuery) ApiKey() protocol.ApiKey  { return protocol.Produce }
func (*produceAnswer) ApiKey() protocol.ApiKey { return protocol.Produce }

// Required implements protocol.RawExchanger.
func (*produceQuery) Required(map[protocol.ApiKey]int16) bool { return true }

// Broker implements protocol.BrokerMessage.
func (q *produceQuery) Broker(c protocol.Cluster) (protocol.Broker, error) {
	return leaderOf(c, q.topic, q.partition), nil
}

// head is the request in front of the batch.
func (q *produceQuery) head() []byte {
	b := requestHead(protocol.Produce, produceVersion)
	b = append(b, 0xff, 0xff) // no transaction
	b = binary.BigEndian.AppendUint16(b, uint16(allInSync&0xffff))
	b = binary.BigEndian.AppendUint32(b, uint32(answerTimeout.Milliseconds()))
	b = append(b, 0, 0, 0, 1) // one topic
	b = binary.BigEndian.AppendUint16(b, uint16(len(q.topic)))
	b = append(b, q.topic...)
	b = append(b, 0, 0, 0, 1) // one partition
	b = binary.BigEndian.AppendUint32(b, uint32(q.partition))
	binary.BigEndian.PutUint32(b, uint32(len(b)-4+len(q.batch)))
	return b
}

// RawExchange implements protocol.RawExchanger.
func (q *produceQuery) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if _, err := rw.Write(q.head()); err != nil {
		return nil, err
	}
	if _, err := rw.Write(q.batch); err != nil {
		return nil, err
	}
	answer, err := readAnswer(rw, maxProduceAnswer)
	if err != nil {
		return nil, err
	}
	return parseProduced(answer)
}

// parseProduced reads a Produce answer of version 7.
func parseProduced(answer []byte) (*produceAnswer, error) {
	r := wireReader{b: answer}
	r.skip(4 + 4)           // correlation; one topic
	r.skip(int(r.uint16())) // its name
	r.skip(4 + 4)           // one partition; its index
	a := &produceAnswer{code: int16(r.uint16())}
	offset := r.skip(8)
	if r.short {
		return nil, fmt.Errorf("the broker's answer of %d bytes to a batch makes no sense", len(answer))
	}
	a.offset = int64(binary.BigEndian.Uint64(offset))
	return a, nil
}
