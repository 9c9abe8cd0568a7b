package bus

import (
	"encoding/binary"
	"hash/crc32"
)

// batchRecord is one message on its way to a topic.
type batchRecord struct {
	key     string
	value   []byte
	headers [][2]string
}

// More than a batch adds to its messages, and than a message adds to key and value.
const (
	batchOverhead  = 128
	recordOverhead = 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encodeBatch writes a record batch of version 2 behind its length, into buf when
// it fits. Times are in ms since 1970. The library could encode it too, but then
// it would still read the messages after a question was given up.
func encodeBatch(buf []byte, now int64, records []batchRecord) []byte {
	b := append(buf[:0], make([]byte, 4)...) // length of what follows
	b = append(b, make([]byte, 8)...)        // offset
	b = append(b, make([]byte, 4)...)        // length of the batch from here
	b = binary.BigEndian.AppendUint32(b, ^uint32(0))
	b = append(b, 2)                  // version
	b = append(b, make([]byte, 4)...) // checksum of what follows
	b = append(b, 0, 0)               // attributes: no compression, time of creation
	b = binary.BigEndian.AppendUint32(b, uint32(len(records)-1))
	b = binary.BigEndian.AppendUint64(b, uint64(now)) // first time
	b = binary.BigEndian.AppendUint64(b, uint64(now)) // last time
	for range 14 {                                    // no producer id, epoch and sequence
		b = append(b, 0xff)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(records)))
	for i := range records {
		b = appendRecord(b, i, &records[i])
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	binary.BigEndian.PutUint32(b[12:], uint32(len(b)-16))
	binary.BigEndian.PutUint32(b[21:], crc32.Checksum(b[25:], castagnoli))
	return b
}

func appendRecord(b []byte, i int, r *batchRecord) []byte {
	size := 1 + 1 + varintSize(i) + varintSize(len(r.key)) + len(r.key) + varintSize(len(r.value)) + len(r.value) +
		varintSize(len(r.headers))
	for _, h := range r.headers {
		size += varintSize(len(h[0])) + len(h[0]) + varintSize(len(h[1])) + len(h[1])
	}
	b = binary.AppendVarint(b, int64(size))
	b = append(b, 0, 0) // attributes; the time of the batch
	b = binary.AppendVarint(b, int64(i))
	b = binary.AppendVarint(b, int64(len(r.key)))
	b = append(b, r.key...)
	b = binary.AppendVarint(b, int64(len(r.value)))
	b = append(b, r.value...)
	b = binary.AppendVarint(b, int64(len(r.headers)))
	for _, h := range r.headers {
		for _, text := range h {
			b = binary.AppendVarint(b, int64(len(text)))
			b = append(b, text...)
		}
	}
	return b
}

// varintSize is the length of a number that is not negative, as a signed varint.
func varintSize(n int) int {
	size := 1
	for v := uint64(n) << 1; v >= 0x80; v >>= 7 {
		size++
	}
	return size
}
