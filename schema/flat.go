package schema

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/apache/arrow-go/v18/arrow"
)

// flat reads one FlatBuffers metadata part of an untrusted message. arrow-go is
// not asked: it makes slices of whatever count the message names, and an
// allocation that fails cannot be recovered. Here nothing is allocated by a
// number from the message before that number was checked against its bytes. An
// offset outside the part fails Go's own bounds check, which Decode recovers.
type flat []byte

func (f flat) u8(at int) uint8   { return f[at] }
func (f flat) u16(at int) uint16 { return binary.LittleEndian.Uint16(f[at:]) }
func (f flat) u32(at int) uint32 { return binary.LittleEndian.Uint32(f[at:]) }
func (f flat) i64(at int) int64  { return int64(binary.LittleEndian.Uint64(f[at:])) }

// follow reads the offset at a place.
func (f flat) follow(at int) int { return at + int(f.u32(at)) }

// slot is the place of field n of the table at a place, or 0 when the table
// leaves it out.
func (f flat) slot(table, n int) int {
	vtable := table - int(int32(f.u32(table)))
	if 4+2*n >= int(f.u16(vtable)) {
		return 0
	}
	field := int(f.u16(vtable + 4 + 2*n))
	if field == 0 {
		return 0
	}
	return table + field
}

// table is the table that field n of a table points to.
func (f flat) table(table, n int) int {
	at := f.slot(table, n)
	if at == 0 {
		panic(errShape)
	}
	return f.follow(at)
}

// vector is the first element and the number of elements of width bytes that
// field n of a table points to.
func (f flat) vector(table, n, width int) (first, count int) {
	at := f.slot(table, n)
	if at == 0 {
		return 0, 0
	}
	at = f.follow(at)
	count = int(f.u32(at))
	if count > (len(f)-at-4)/width {
		panic(errShape)
	}
	return at + 4, count
}

func (f flat) text(table, n int) string {
	first, count := f.vector(table, n, 1)
	return string(f[first : first+count])
}

var errShape = errors.New("its metadata lack a part or point outside")

// Values of the enumerations of Message.fbs and Schema.fbs.
const (
	messageSchema, messageBatch                                         = 1, 3
	typeInt, typeFloat, typeUTF8, typeBool                              = 2, 3, 5, 6
	typeStruct, typeFixedSizeBinary, typeMap, typeLargeBinary           = 13, 15, 17, 19
	precisionSingle                                                     = 1
	slotMessageType, slotMessageHeader, slotMessageBodyLength           = 1, 2, 3
	slotSchemaEndianness, slotSchemaFields, slotSchemaMetadata          = 0, 1, 2
	slotFieldName, slotFieldTypeID, slotFieldType                       = 0, 2, 3
	slotFieldDictionary, slotFieldChildren                              = 4, 5
	slotKeyValueKey, slotKeyValueValue                                  = 0, 1
	slotBatchLength, slotBatchNodes, slotBatchBuf, slotBatchCompression = 0, 1, 2, 3
)

// part is one message of the stream: its metadata, its body, and its header
// table of the wanted type.
type part struct {
	flat
	table int
	body  []byte
}

// nextPart cuts the next part off msg: continuation mark, length, metadata, body.
func nextPart(msg []byte, want uint8) (p part, rest []byte, err error) {
	if len(msg) < 8 {
		return p, nil, errTruncated
	}
	size := binary.LittleEndian.Uint32(msg[4:])
	if binary.LittleEndian.Uint32(msg) != math.MaxUint32 || size < 8 || size > MaxMetadataBytes {
		return p, nil, fmt.Errorf("message part with %d bytes of metadata; want 8 to %d after a continuation mark", size,
			MaxMetadataBytes)
	}
	if uint64(len(msg)-8) < uint64(size) {
		return p, nil, errTruncated
	}
	p.flat, rest = flat(msg[8:8+size]), msg[8+size:]
	root := p.follow(0)
	if at := p.slot(root, slotMessageType); at == 0 || p.u8(at) != want {
		return p, nil, fmt.Errorf("message part is not of type %d; a schema and one batch are expected", want)
	}
	var n int64
	if at := p.slot(root, slotMessageBodyLength); at != 0 {
		n = p.i64(at)
	}
	if n < 0 || n > int64(len(rest)) {
		return p, nil, errTruncated
	}
	p.table, p.body = p.flat.table(root, slotMessageHeader), rest[:n:n]
	return p, rest[n:], nil
}

var errTruncated = errors.New("message ends in the middle of a part")

// pairs reads the metadata of a schema part.
func (p part) pairs() ([]pair, error) {
	first, count := p.vector(p.table, slotSchemaMetadata, 4)
	if count > MaxMetadataKeys {
		return nil, fmt.Errorf("message has %d metadata keys; at most %d", count, MaxMetadataKeys)
	}
	out := make([]pair, count)
	for i := range out {
		t := p.follow(first + 4*i)
		out[i] = pair{p.text(t, slotKeyValueKey), p.text(t, slotKeyValueValue)}
	}
	return out, nil
}

type pair struct{ key, value string }

// checkFields compares the fields of a schema part with the wanted ones. Fields
// behind them belong to a later minor version.
func (p part) checkFields(want []arrow.Field) error {
	if at := p.slot(p.table, slotSchemaEndianness); at != 0 && p.u16(at) != 0 {
		return errors.New("it is big-endian; little-endian is expected")
	}
	first, count := p.vector(p.table, slotSchemaFields, 4)
	if count < len(want) {
		return fmt.Errorf("it has %d columns; %d expected", count, len(want))
	}
	for i, f := range want {
		at := p.follow(first + 4*i)
		if name := p.text(at, slotFieldName); name != f.Name || !p.hasType(at, f.Type) {
			return fmt.Errorf("column %d is %q; %q of type %s expected", i, clip(name), f.Name, f.Type)
		}
	}
	return nil
}

// hasType compares the type of a field with the wanted one.
func (p part) hasType(field int, want arrow.DataType) bool {
	if p.slot(field, slotFieldDictionary) != 0 {
		return false
	}
	id := p.slot(field, slotFieldTypeID)
	if id == 0 {
		return false
	}
	typ := p.flat.table(field, slotFieldType)
	number := func(n int) int {
		if at := p.slot(typ, n); at != 0 {
			return int(p.u32(at))
		}
		return 0
	}
	switch w := want.(type) {
	case *arrow.StringType:
		return p.u8(id) == typeUTF8
	case *arrow.LargeBinaryType:
		return p.u8(id) == typeLargeBinary
	case *arrow.BooleanType:
		return p.u8(id) == typeBool
	case *arrow.Float32Type:
		at := p.slot(typ, 0)
		return p.u8(id) == typeFloat && at != 0 && p.u16(at) == precisionSingle
	case *arrow.FixedSizeBinaryType:
		return p.u8(id) == typeFixedSizeBinary && number(0) == w.ByteWidth
	case *arrow.MapType:
		return p.u8(id) == typeMap && p.isTextMap(field)
	case arrow.FixedWidthDataType:
		at := p.slot(typ, 1)
		signed := at != 0 && p.u8(at) != 0
		return p.u8(id) == typeInt && number(0) == w.BitWidth() && signed == (want == i32 || want == i64)
	}
	return false
}

// isTextMap reports whether a map's child is a struct of two texts.
func (p part) isTextMap(field int) bool {
	first, count := p.vector(field, slotFieldChildren, 4)
	if count != 1 {
		return false
	}
	entries := p.follow(first)
	id := p.slot(entries, slotFieldTypeID)
	if id == 0 || p.u8(id) != typeStruct {
		return false
	}
	first, count = p.vector(entries, slotFieldChildren, 4)
	return count == 2 && p.hasType(p.follow(first), text) && p.hasType(p.follow(first+4), text)
}
