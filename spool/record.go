package spool

import (
	"encoding/binary"
	"errors"
	"hash/crc32"

	"sonde/bus"
)

// Layout of a record, little-endian; FORMAT.md has it in words.
const (
	recordMagic = 0x31525053 // "SPR1"
	recordFixed = 48
	flagBarrier = 1
	maxHead     = 4 << 20 // what stands before the data
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errDamaged = errors.New("the CRC does not fit")

// recordSize is the bytes of the record of a message.
func recordSize(m *Message) int64 {
	return int64(recordFixed + len(m.Subject) + len(m.ID) + len(m.Owner) + 8*len(m.Rows) + len(m.Data))
}

// headSize is the bytes of the record before the data.
func headSize(m *Message) int64 { return recordSize(m) - int64(len(m.Data)) }

// appendHead appends what stands before the data of a record.
func appendHead(b []byte, number uint64, m *Message) []byte {
	at, flags := len(b), uint32(0)
	if m.Barrier {
		flags |= flagBarrier
	}
	le := binary.LittleEndian
	b = le.AppendUint32(b, recordMagic)
	b = le.AppendUint32(b, 0) // the CRC of all behind it
	b = le.AppendUint32(b, uint32(headSize(m)))
	b = le.AppendUint32(b, uint32(len(m.Data)))
	b = le.AppendUint32(b, crc32.Checksum(m.Data, castagnoli))
	b = le.AppendUint32(b, flags)
	b = le.AppendUint64(b, number)
	for _, n := range []int{len(m.Subject), len(m.ID), len(m.Owner), len(m.Rows)} {
		b = le.AppendUint32(b, uint32(n))
	}
	b = append(b, m.Subject...)
	b = append(b, m.ID...)
	b = append(b, m.Owner...)
	for _, r := range m.Rows {
		b = le.AppendUint32(b, uint32(r.Priority))
		b = le.AppendUint32(b, r.Count)
	}
	le.PutUint32(b[at+4:], crc32.Checksum(b[at+8:], castagnoli))
	return b
}

// head is what stands before the data of a record.
type head struct {
	m       Message // without its data
	number  uint64
	bytes   int // of the head
	data    int // of the data behind it
	dataCRC uint32
}

// headBytes reads the length of the head that starts b, 0 when none does.
func headBytes(b []byte) int {
	le := binary.LittleEndian
	if len(b) < recordFixed || le.Uint32(b) != recordMagic {
		return 0
	}
	if n := le.Uint32(b[8:]); n >= recordFixed && n <= maxHead {
		return int(n)
	}
	return 0
}

// parseHead reads the head that is b. It checks each length before it uses it.
func parseHead(b []byte) (head, error) {
	le := binary.LittleEndian
	if headBytes(b) != len(b) || crc32.Checksum(b[8:], castagnoli) != le.Uint32(b[4:]) {
		return head{}, errDamaged
	}
	h := head{bytes: len(b), data: int(le.Uint32(b[12:])), dataCRC: le.Uint32(b[16:]), number: le.Uint64(b[24:])}
	h.m.Barrier = le.Uint32(b[20:])&flagBarrier != 0
	subject, id, owner, runs := int(le.Uint32(b[32:])), int(le.Uint32(b[36:])), int(le.Uint32(b[40:])),
		int(le.Uint32(b[44:]))
	if recordFixed+subject+id+owner+8*runs != len(b) || h.data > bus.MaxPayloadBytes {
		return head{}, errDamaged
	}
	b = b[recordFixed:]
	h.m.Subject, b = string(b[:subject]), b[subject:]
	h.m.ID, b = string(b[:id]), b[id:]
	h.m.Owner, b = string(b[:owner]), b[owner:]
	for range runs {
		h.m.Rows = append(h.m.Rows, Run{Priority: int32(le.Uint32(b)), Count: le.Uint32(b[4:])})
		b = b[8:]
	}
	return h, nil
}

// parseRecord reads the record that is b. Its message has an own copy of the data.
// With errDamaged and a subject, all but the data can be trusted.
func parseRecord(b []byte) (Message, error) {
	n := headBytes(b)
	if n == 0 || n > len(b) {
		return Message{}, errDamaged
	}
	h, err := parseHead(b[:n])
	if err != nil || n+h.data != len(b) {
		return Message{}, errDamaged
	}
	h.m.Data = append([]byte(nil), b[n:]...)
	if crc32.Checksum(h.m.Data, castagnoli) != h.dataCRC {
		return h.m, errDamaged
	}
	return h.m, nil
}
