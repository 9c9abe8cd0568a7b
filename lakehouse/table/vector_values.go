package table

import (
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/file"
)

// vectorValues are the vec and raw columns of the wanted rows of a row group.
type vectorValues struct {
	lists [][]float32 // nil: null
	raws  [][]byte    // nil: null
}

// maxListElements bounds a row: the bus takes no larger message.
const maxListElements = 32 << 20

func (g *groupReader) readValues(want []bool) (*vectorValues, error) {
	v := &vectorValues{lists: make([][]float32, g.rows), raws: make([][]byte, g.rows)}
	cr, err := g.rg.Column(g.columns[vecLeaf])
	if err == nil {
		err = v.readLists(cr.(*file.Float32ColumnChunkReader), want)
	}
	if err != nil {
		return nil, fmt.Errorf("column %s: %w", vecColumn, err)
	}
	cr, err = g.rg.Column(g.columns[rawColumn])
	if err == nil {
		err = v.readRaws(cr.(*file.ByteArrayColumnChunkReader), want)
	}
	if err != nil {
		return nil, fmt.Errorf("column %s: %w", rawColumn, err)
	}
	return v, nil
}

func (v *vectorValues) readLists(cr *file.Float32ColumnChunkReader, want []bool) error {
	values := make([]float32, levelsPerBatch)
	def, rep := make([]int16, levelsPerBatch), make([]int16, levelsPerBatch)
	row, size := -1, 0
	for cr.HasNext() {
		n, _, err := cr.ReadBatch(levelsPerBatch, values, def, rep)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		next := 0 // of values
		for i := 0; i < int(n); {
			if rep[i] == 0 {
				if row++; row >= len(want) {
					return fmt.Errorf("it has more than %d lists", len(want))
				}
				size = 0
			} else if row < 0 || def[i] != defElement {
				return errors.New("its levels make no list")
			}
			run := 0 // elements of this list that lie here
			for i+run < int(n) && def[i+run] == defElement && (run == 0 || rep[i+run] != 0) {
				run++
			}
			if size += run; size > maxListElements {
				return fmt.Errorf("list %d has more than %d elements", row, maxListElements)
			}
			if want[row] && def[i] != defNull {
				if v.lists[row] == nil {
					v.lists[row] = make([]float32, 0, run)
				}
				v.lists[row] = append(v.lists[row], values[next:next+run]...)
			}
			next += run
			i += max(run, 1)
		}
	}
	if err := cr.Err(); err != nil {
		return err
	}
	if row != len(want)-1 {
		return fmt.Errorf("it has %d of %d lists", row+1, len(want))
	}
	return nil
}

func (v *vectorValues) readRaws(cr *file.ByteArrayColumnChunkReader, want []bool) error {
	const batch = 1024
	values, def := make([]parquet.ByteArray, batch), make([]int16, batch)
	row := 0
	for row < len(want) && cr.HasNext() {
		n, _, err := cr.ReadBatch(min(batch, int64(len(want)-row)), values, def, nil)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		next := 0
		for i := range int(n) {
			if def[i] == 1 {
				if want[row] {
					v.raws[row] = append([]byte{}, values[next]...)
				}
				next++
			}
			row++
		}
	}
	if err := cr.Err(); err != nil {
		return err
	}
	if row != len(want) {
		return fmt.Errorf("it has %d of %d values", row, len(want))
	}
	return nil
}

// row makes the bytes of row i as they were captured.
func (v *vectorValues) row(i int, r *Vector) ([]byte, error) {
	list, raw := v.lists[i], v.raws[i]
	if (list == nil) == (raw == nil) {
		return nil, fmt.Errorf("exactly one of %s and %s must be set", vecColumn, rawColumn)
	}
	if list != nil {
		c := codecs[r.DType]
		if c == nil {
			return nil, fmt.Errorf("a list of floats cannot hold dtype %.40q", r.DType)
		}
		var err error
		if raw, err = c.narrow(list); err != nil {
			return nil, fmt.Errorf("dtype %s: %w", r.DType, err)
		}
	}
	return raw, checkRowBytes(r, len(raw))
}

var rawBytes = map[string]int{"i32": 4, "i64": 8}

// checkRowBytes compares the size of a row with its dtype and shape.
func checkRowBytes(r *Vector, got int) error {
	size := rawBytes[r.DType]
	if c := codecs[r.DType]; c != nil {
		size = c.bytes
	}
	if size == 0 {
		return fmt.Errorf("dtype %.40q is unknown", r.DType)
	}
	for _, n := range r.Shape {
		if n > 8*maxListElements/size {
			return fmt.Errorf("shape %v is too large", r.Shape)
		}
		size *= n
	}
	if got == size || r.Ragged && got%size == 0 {
		return nil
	}
	return fmt.Errorf("it has %d bytes; dtype %s and shape %v make %d", got, r.DType, r.Shape, size)
}
