package detector

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"sonde/schema"
)

// testRow is one row of testvectors.arrow: consecutive rows of one request, with
// the scores that they have in float64 arithmetic.
type testRow struct {
	vec       []byte
	score     float32
	aggregate float32
}

const (
	maxTestRows = 4096
	// tolerance is how far a float32 dot product may be off, as a share of the sum of
	// the magnitudes it adds. 2^-24 per addition; kernels add in at least 8 lanes, so
	// that rows of 4096 elements stay below 512 additions each.
	tolerance = 1e-4
)

func testSchema(b Binding) *arrow.Schema {
	return arrow.NewSchema([]arrow.Field{
		{Name: "vec", Type: &arrow.FixedSizeBinaryType{ByteWidth: b.Width * elementBytes(b.DType)}},
		{Name: "score", Type: arrow.PrimitiveTypes.Float32},
		{Name: "aggregate", Type: arrow.PrimitiveTypes.Float32},
	}, nil)
}

// encodeTestRows computes the expected scores of d.Rows and writes an Arrow IPC
// file.
func encodeTestRows(d Draft) ([]byte, error) {
	b := d.Manifest.Binding
	if problem := b.problem(); problem != "" {
		return nil, errors.New(problem)
	}
	if d.Probe.DType != b.DType {
		return nil, fmt.Errorf("the probe reads %s and the binding says %s", d.Probe.DType, b.DType)
	}
	if problem := d.Manifest.Aggregation.problem(); problem != "" {
		return nil, errors.New(problem)
	}
	state := d.Manifest.Aggregation.start()
	columns := testSchema(b)
	build := array.NewRecordBuilder(memory.DefaultAllocator, columns)
	defer build.Release()
	for i, row := range d.Rows {
		if len(row) != b.Width*elementBytes(b.DType) || len(d.Probe.Weight) != b.Width {
			return nil, fmt.Errorf("test row %d has %d bytes and the probe %d weights; the binding says width %d of %s", i,
				len(row), len(d.Probe.Weight), b.Width, b.DType)
		}
		score, _ := d.Probe.exact(row)
		build.Field(0).(*array.FixedSizeBinaryBuilder).Append(row)
		build.Field(1).(*array.Float32Builder).Append(float32(score))
		build.Field(2).(*array.Float32Builder).Append(float32(state.add(score)))
	}
	batch := build.NewRecordBatch()
	defer batch.Release()
	var out bytes.Buffer
	w, err := ipc.NewFileWriter(&out, ipc.WithSchema(columns))
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", testVectorsFile, err)
	}
	if err := errors.Join(w.Write(batch), w.Close()); err != nil {
		return nil, fmt.Errorf("encode %s: %w", testVectorsFile, err)
	}
	return out.Bytes(), nil
}

// decodeTestRows reads testvectors.arrow. Its digest was checked, but who made the
// file made the digest too.
func decodeTestRows(data []byte, b Binding) ([]testRow, error) {
	n, columns, err := schema.DecodeFixedFile(data, testSchema(b).Fields())
	if err != nil {
		return nil, fmt.Errorf("it holds no test rows: %w", err)
	}
	if n > maxTestRows {
		return nil, fmt.Errorf("it has %d rows; at most %d", n, maxTestRows)
	}
	rows, width := make([]testRow, n), b.Width*elementBytes(b.DType)
	for i := range rows {
		rows[i] = testRow{vec: bytes.Clone(columns[0][i*width : (i+1)*width]), score: float32At(columns[1], i),
			aggregate: float32At(columns[2], i)}
	}
	return rows, nil
}

func float32At(b []byte, i int) float32 {
	return math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
}

// selfTest scores the test rows as live rows are scored and compares. The weights
// and their hooks may be right and the kernel of this CPU wrong: that shows here.
func (b *Bundle) selfTest(rows []testRow) error {
	state := b.Manifest.Aggregation.start()
	allowed := 0.0 // of the aggregate: no aggregation adds up more than the deviations so far
	for i, row := range rows {
		got := b.Probe.Score(row.vec)
		_, magnitude := b.Probe.exact(row.vec)
		most := tolerance * magnitude
		allowed += most
		aggregate := state.add(float64(got))
		if err := b.compare("score", i, float64(got), float64(row.score), most); err != nil {
			return err
		}
		if err := b.compare("aggregate", i, aggregate, float64(row.aggregate), allowed); err != nil {
			return err
		}
	}
	b.Tested = len(rows)
	return nil
}

func (b *Bundle) compare(what string, row int, got, want, most float64) error {
	off := math.Abs(got - want)
	if !(off <= most) { // also when one of them is NaN
		return fmt.Errorf("%s of test row %d is %v and should be %v within %.2g", what, row, got, want, most)
	}
	if most > 0 {
		b.Worst = max(b.Worst, off/most)
	}
	return nil
}
