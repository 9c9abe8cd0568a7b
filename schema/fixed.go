package schema

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
)

// fileMagic begins an Arrow IPC file; a stream follows it.
var fileMagic = []byte("ARROW1\x00\x00")

// DecodeFixedFile reads the first batch of an Arrow IPC file of columns whose
// elements have a fixed width, like float32: 1 to MaxRows rows, without nulls and
// without compression. columns[i] holds the elements of want[i], little-endian, one
// after the other, and aliases file. The file may come from anywhere: every count
// and offset is checked before anything is made of it. Its footer, which only
// repeats where things stand, is not read.
func DecodeFixedFile(file []byte, want []arrow.Field) (rows int, columns [][]byte, err error) {
	defer recoverDecode(&err)
	stream, ok := bytes.CutPrefix(file, fileMagic)
	if !ok {
		return 0, nil, errors.New("it does not begin as an Arrow file does")
	}
	head, rest, err := nextPart(stream, messageSchema)
	if err != nil {
		return 0, nil, err
	}
	if err := head.checkFields(want); err != nil {
		return 0, nil, err
	}
	body, _, err := nextPart(rest, messageBatch)
	if err != nil {
		return 0, nil, err
	}
	b, err := newBatch(Header{}, body, want)
	if err != nil {
		return 0, nil, err
	}
	for i, c := range b.cols {
		if c.width == 0 || c.offsets != nil {
			panic(fmt.Sprintf("BUG: column %s has no fixed width", want[i].Name))
		}
		columns = append(columns, c.fixed[:b.rows*c.width])
	}
	return b.rows, columns, nil
}
