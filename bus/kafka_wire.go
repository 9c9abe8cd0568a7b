package bus

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/segmentio/kafka-go/protocol"
)

// Requests that the client library does not have: it knows neither topic ids nor
// DeleteRecords nor DescribeLogDirs. The first is exchanged byte by byte on one of
// its connections, the others are encoded by it.
func init() {
	protocol.Register(&deleteRecordsRequest{}, &deleteRecordsResponse{})
	protocol.Register(&logDirsRequest{}, &logDirsResponse{})
}

type deleteRecordsRequest struct {
	Topics    []deleteRecordsTopic `kafka:"min=v0,max=v1"`
	TimeoutMs int32                `kafka:"min=v0,max=v1"`
}

type deleteRecordsTopic struct {
	Name       string                   `kafka:"min=v0,max=v1"`
	Partitions []deleteRecordsPartition `kafka:"min=v0,max=v1"`
}

type deleteRecordsPartition struct {
	Partition int32 `kafka:"min=v0,max=v1"`
	Offset    int64 `kafka:"min=v0,max=v1"`
}

type deleteRecordsResponse struct {
	ThrottleTimeMs int32                 `kafka:"min=v0,max=v1"`
	Topics         []deletedRecordsTopic `kafka:"min=v0,max=v1"`
}

type deletedRecordsTopic struct {
	Name       string                    `kafka:"min=v0,max=v1"`
	Partitions []deletedRecordsPartition `kafka:"min=v0,max=v1"`
}

type deletedRecordsPartition struct {
	Partition    int32 `kafka:"min=v0,max=v1"`
	LowWatermark int64 `kafka:"min=v0,max=v1"`
	ErrorCode    int16 `kafka:"min=v0,max=v1"`
}

func (*deleteRecordsRequest) ApiKey() protocol.ApiKey  { return protocol.DeleteRecords }
func (*deleteRecordsResponse) ApiKey() protocol.ApiKey { return protocol.DeleteRecords }

func (r *deleteRecordsRequest) Broker(c protocol.Cluster) (protocol.Broker, error) {
	return leaderOf(c, r.Topics[0].Name, int(r.Topics[0].Partitions[0].Partition)), nil
}

type logDirsRequest struct {
	Topics []logDirsTopic `kafka:"min=v0,max=v1,nullable"`
}

type logDirsTopic struct {
	Topic      string  `kafka:"min=v0,max=v1"`
	Partitions []int32 `kafka:"min=v0,max=v1"`
}

type logDirsResponse struct {
	ThrottleTimeMs int32    `kafka:"min=v0,max=v1"`
	Dirs           []logDir `kafka:"min=v0,max=v1"`
}

type logDir struct {
	ErrorCode int16        `kafka:"min=v0,max=v1"`
	Dir       string       `kafka:"min=v0,max=v1"`
	Topics    []logOfTopic `kafka:"min=v0,max=v1"`
}

type logOfTopic struct {
	Name       string           `kafka:"min=v0,max=v1"`
	Partitions []logOfPartition `kafka:"min=v0,max=v1"`
}

type logOfPartition struct {
	Partition int32 `kafka:"min=v0,max=v1"`
	Size      int64 `kafka:"min=v0,max=v1"`
	OffsetLag int64 `kafka:"min=v0,max=v1"`
	IsFuture  bool  `kafka:"min=v0,max=v1"`
}

func (*logDirsRequest) ApiKey() protocol.ApiKey  { return protocol.DescribeLogDirs }
func (*logDirsResponse) ApiKey() protocol.ApiKey { return protocol.DescribeLogDirs }

func (r *logDirsRequest) Broker(c protocol.Cluster) (protocol.Broker, error) {
	return leaderOf(c, r.Topics[0].Topic, int(r.Topics[0].Partitions[0])), nil
}

// leaderOf is the leader of a partition, or any broker while it is unknown.
func leaderOf(c protocol.Cluster, topic string, partition int) protocol.Broker {
	if p, ok := c.Topics[topic].Partitions[int32(partition)]; ok {
		if b, ok := c.Brokers[p.Leader]; ok {
			return b
		}
	}
	return protocol.Broker{ID: -1}
}

// topicQuery asks for one topic with its id: Metadata version 10, which the
// library does not speak.
type topicQuery struct {
	topic     string
	partition int // whose leader is asked
}

// topicAnswer describes a topic.
type topicAnswer struct {
	code       int16
	id         string // 32 hexadecimal digits
	partitions int
	replicas   int // of partition 0
}

const (
	metadataVersion  = 10
	maxMetadataBytes = 16 << 20
)

func (*topicQuery) ApiKey() protocol.ApiKey  { return protocol.Metadata }
func (*topicAnswer) ApiKey() protocol.ApiKey { return protocol.Metadata }

// Required implements protocol.RawExchanger.
func (*topicQuery) Required(map[protocol.ApiKey]int16) bool { return true }

// Broker implements protocol.BrokerMessage. The leader knows best whether its
// topic is still the same one.
func (q *topicQuery) Broker(c protocol.Cluster) (protocol.Broker, error) {
	return leaderOf(c, q.topic, q.partition), nil
}

// RawExchange implements protocol.RawExchanger.
func (q *topicQuery) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	b := append(requestHead(protocol.Metadata, metadataVersion), 0) // no tagged fields
	b = append(b, 2)                                                // one topic
	b = append(b, make([]byte, 16)...)                              // by name, not by id
	b = binary.AppendUvarint(b, uint64(len(q.topic)+1))
	b = append(b, q.topic...)
	b = append(b, 0, 0, 0, 0, 0) // tags; make none; no operations of cluster and topic; tags
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	if _, err := rw.Write(b); err != nil {
		return nil, err
	}
	answer, err := readAnswer(rw, maxMetadataBytes)
	if err != nil {
		return nil, err
	}
	return parseTopic(answer, q.topic)
}

// requestHead begins a request, behind room for its length. The library asks one
// question at a time on a connection, so that they need no numbers.
func requestHead(key protocol.ApiKey, version int) []byte {
	b := binary.BigEndian.AppendUint16(make([]byte, 4), uint16(key))
	b = binary.BigEndian.AppendUint16(b, uint16(version))
	b = append(b, 0, 0, 0, 1, 0, 5) // number; length of the client id
	return append(b, "sonde"...)
}

// readAnswer reads one answer without its length.
func readAnswer(r io.Reader, most uint32) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > most {
		return nil, fmt.Errorf("an answer of the broker has %d bytes; at most %d are read", n, most)
	}
	answer := make([]byte, n)
	_, err := io.ReadFull(r, answer)
	return answer, err
}

// parseTopic reads a Metadata answer of version 10.
func parseTopic(answer []byte, topic string) (*topicAnswer, error) {
	r := wireReader{b: answer}
	r.skip(4) // correlation
	r.tags()
	r.skip(4) // throttle
	for range r.count() {
		r.skip(4) // broker id
		r.text()
		r.skip(4) // port
		r.text()  // rack
		r.tags()
	}
	r.text()  // cluster
	r.skip(4) // controller
	var found *topicAnswer
	for range r.count() {
		t := &topicAnswer{code: int16(r.uint16())}
		name := r.text()
		t.id = fmt.Sprintf("%x", r.skip(16))
		r.skip(1) // internal
		t.partitions = r.count()
		for range t.partitions {
			r.skip(2 + 4 + 4 + 4) // error, index, leader, epoch
			t.replicas = r.count()
			r.skip(4 * t.replicas)
			r.skip(4 * r.count()) // in sync
			r.skip(4 * r.count()) // offline
			r.tags()
		}
		r.skip(4) // operations
		r.tags()
		if name == topic {
			found = t
		}
	}
	if r.short || found == nil {
		return nil, fmt.Errorf("the broker's answer about topic %s makes no sense; Kafka 2.8 or newer is needed", topic)
	}
	return found, nil
}

// wireReader takes an answer apart. What is missing reads as nothing and is noted.
type wireReader struct {
	b     []byte
	short bool
}

func (r *wireReader) skip(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.short, r.b = true, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *wireReader) uint16() uint16 {
	if b := r.skip(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *wireReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || v > maxMetadataBytes {
		r.short, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count is the length of an array; each entry takes bytes, so that it is bounded.
func (r *wireReader) count() int {
	n := int(r.uvarint())
	if n > len(r.b)+1 {
		r.short, r.b = true, nil
	}
	if r.short {
		return 0
	}
	return max(n-1, 0)
}

func (r *wireReader) text() string { return string(r.skip(max(int(r.uvarint())-1, 0))) }

func (r *wireReader) tags() {
	for range r.uvarint() {
		if r.uvarint(); r.short {
			return
		}
		r.skip(int(r.uvarint()))
	}
}
