package readers

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	parquettypes "github.com/apache/arrow-go/v18/parquet"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/parquet-go/parquet-go"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/consumers/materializer"
	"sonde/lakehouse"
	"sonde/schema"
)

// dataset is one that the real materializer wrote, and what was published for it.
type dataset struct {
	*testing.T
	dir  string
	bus  *bustest.Bus
	rows map[string]bool // of table vectors, as lineOf writes them
	of   map[string]int  // rows, by table
}

const (
	epoch   = 0x5eed
	width   = 8
	layers  = 3
	tokens  = 700 // enough for several pages and, at 8 layers of bytes, row groups
	request = "r-%d"
)

// newDataset publishes two requests at three layers and one message of each other
// kind, and waits until all of it is committed, with a leftover beside it.
func newDataset(t *testing.T) *dataset {
	d := &dataset{T: t, dir: filepath.Join(t.TempDir(), "lake"), bus: bustest.New(), rows: map[string]bool{},
		of: map[string]int{"vectors": 2 * tokens * layers}}
	t.Cleanup(func() { d.bus.Close() })
	m, err := materializer.New(materializer.Options{Bus: d.bus, Lake: d.dir, CommitInterval: 20 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	for layer := range layers {
		d.publishLayer(layer)
	}
	for kind, table := range map[string]string{"stats": "vector_stats", "requests": "requests", "ledger": "ledger",
		"detections": "detections"} {
		d.publishGolden(kind, table)
	}
	d.await()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	leftover := filepath.Join(d.dir, "vectors", "ffffffff-0-0-0.parquet")
	if err := os.WriteFile(leftover, []byte("no parquet"), 0o644); err != nil {
		t.Fatal(err)
	}
	return d
}

// publishLayer publishes the rows of a layer. Among the elements are those that
// careless readers alter: NaN with a payload, infinities, negative zero, subnormals.
func (d *dataset) publishLayer(layer int) {
	h := schema.Header{Kind: schema.KindVectors, Engine: "e", Epoch: epoch, Hook: "resid_post", Layer: layer, DType: "f32",
		Shape: []int{width}}
	e, err := schema.NewVectorEncoder(h)
	if err != nil {
		d.Fatal(err)
	}
	odd := []uint32{0x7fc12345, 0x7f800000, 0xff800000, 0x80000000, 1, 0x7f7fffff}
	for i := range uint32(2 * tokens) {
		var bits []uint32
		for j := range uint32(width) {
			bits = append(bits, math.Float32bits(float32(layer+1)*float32(i)/7-float32(j)))
		}
		bits[i%width] = odd[i%uint32(len(odd))]
		row := schema.VectorRow{Seq: 1, Row: i, Request: fmt.Sprintf(request, i/tokens), Number: uint64(1 + i/tokens),
			Position: int32(i % tokens), Vec: bytesOf(bits)}
		if err := e.Append(row); err != nil {
			d.Fatal(err)
		}
		d.rows[lineOf(row.Request, layer, int(row.Position), bits)] = true
	}
	message, _, err := e.Encode(schema.Cursor{})
	if err != nil {
		d.Fatal(err)
	}
	d.publish(schema.Subject(h), message)
}

func bytesOf(bits []uint32) []byte {
	out := make([]byte, 0, 4*len(bits))
	for _, b := range bits {
		out = append(out, byte(b), byte(b>>8), byte(b>>16), byte(b>>24))
	}
	return out
}

// lineOf writes a row as PrintVectors.java does.
func lineOf(request string, layer, position int, bits []uint32) string {
	line := fmt.Sprintf("%s %d %d", request, layer, position)
	for _, b := range bits {
		line += fmt.Sprintf(" %x", b)
	}
	return line
}

func (d *dataset) publishGolden(kind, table string) {
	message, err := os.ReadFile(filepath.Join("..", "..", "schema", "testdata", kind+".arrow"))
	if err != nil {
		d.Fatal(err)
	}
	b, err := schema.Decode(message)
	if err != nil {
		d.Fatal(err)
	}
	d.of[table] = b.Len()
	d.publish(schema.Subject(b.Header), message)
}

func (d *dataset) publish(subject string, message []byte) {
	done := make(chan error, 1)
	err := d.bus.Publish(context.Background(), bus.Message{Subject: subject, Data: message},
		func(_ uint64, err error) { done <- err })
	if err == nil {
		err = <-done
	}
	if err != nil {
		d.Fatal(err)
	}
}

func (d *dataset) await() {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		stored := map[string]int{}
		if lake, err := lakehouse.Open(d.dir); err == nil {
			for _, f := range lake.Files() {
				stored[f.Table] += int(f.Rows)
			}
		}
		if fmt.Sprint(stored) == fmt.Sprint(d.of) {
			return
		}
	}
	d.Fatalf("the dataset does not have %v", d.of)
}

// files lists the files of a table that the log names.
func (d *dataset) files(table string) []string {
	lake, err := lakehouse.Open(d.dir)
	if err != nil {
		d.Fatal(err)
	}
	var out []string
	for _, f := range lake.Files() {
		if f.Table == table {
			out = append(out, filepath.Join(d.dir, filepath.FromSlash(f.Path)))
		}
	}
	return out
}

// compare says which rows differ from those that were published.
func (d *dataset) compare(reader string, lines []string) {
	d.Helper()
	if len(lines) != len(d.rows) {
		d.Errorf("%s reads %d rows, and %d were published", reader, len(lines), len(d.rows))
	}
	seen := map[string]bool{}
	for _, line := range lines {
		switch {
		case !d.rows[line]:
			d.Fatalf("%s reads a row that nobody published: %s", reader, line)
		case seen[line]:
			d.Fatalf("%s reads a row twice: %s", reader, line)
		}
		seen[line] = true
	}
}

// Fear: the lake is Parquet only for the code that wrote it.
func TestReadersInGoReadEveryTable(t *testing.T) {
	d := newDataset(t)
	for table, rows := range d.of {
		arrowRows, genericRows := 0, 0
		var arrowNames, genericNames []string
		for _, name := range d.files(table) {
			f := d.arrow(name)
			arrowRows += int(f.NumRows())
			root := f.MetaData().Schema.Root()
			arrowNames = nil
			for i := range root.NumFields() {
				arrowNames = append(arrowNames, root.Field(i).Name())
			}
			genericRows += len(d.records(name))
			genericNames = nil
			for _, field := range d.open(name).Schema().Fields() {
				genericNames = append(genericNames, field.Name())
			}
		}
		if arrowRows != rows || genericRows != rows {
			t.Errorf("%s has %d rows; arrow-go reads %d, parquet-go's records %d", table, rows, arrowRows, genericRows)
		}
		if !slices.Equal(arrowNames, genericNames) || len(arrowNames) < 20 {
			t.Errorf("%s: arrow-go finds the columns %v, parquet-go %v", table, arrowNames, genericNames)
		}
	}
}

func (d *dataset) arrow(name string) *file.Reader {
	f, err := file.OpenParquetFile(name, false)
	if err != nil {
		d.Fatalf("%s: %v", name, err)
	}
	d.Cleanup(func() { f.Close() })
	return f
}

// columnReader reads a batch of a column chunk of arrow-go.
type columnReader[T any] interface {
	ReadBatch(rows int64, values []T, def, rep []int16) (int64, int, error)
}

// column reads a whole column chunk: its values, and the repetition level of each.
func column[T any](d *dataset, group *file.RowGroupReader, path string) (values []T, rep []int16) {
	i := group.MetaData().Schema.ColumnIndexByName(path)
	if i < 0 {
		d.Fatalf("arrow-go finds no column %s", path)
	}
	chunk, err := group.Column(i)
	if err != nil {
		d.Fatalf("column %s: %v", path, err)
	}
	reader, ok := chunk.(columnReader[T])
	if !ok {
		d.Fatalf("column %s is of type %v", path, chunk.Type())
	}
	for chunk.HasNext() {
		batch, levels, repetitions := make([]T, 4096), make([]int16, 4096), make([]int16, 4096)
		n, read, err := reader.ReadBatch(4096, batch, levels, repetitions)
		if err != nil {
			d.Fatalf("column %s: %v", path, err)
		}
		values, rep = append(values, batch[:read]...), append(rep, repetitions[:n]...)
	}
	return values, rep
}

func (d *dataset) open(name string) *parquet.File {
	f, err := os.Open(name)
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		d.Fatal(err)
	}
	out, err := parquet.OpenFile(f, info.Size())
	if err != nil {
		d.Fatalf("%s: %v", name, err)
	}
	return out
}

func (d *dataset) records(name string) []map[string]any {
	f := d.open(name)
	r := parquet.NewGenericReader[map[string]any](f, f.Schema())
	defer r.Close()
	var out []map[string]any
	for {
		batch := make([]map[string]any, 64)
		for i := range batch {
			batch[i] = map[string]any{}
		}
		n, err := r.Read(batch)
		out = append(out, batch[:n]...)
		if err == io.EOF {
			return out
		}
		if err != nil {
			d.Fatalf("%s: %v", name, err)
		}
	}
}

func TestArrowGoReadsEveryBitOfTheVectors(t *testing.T) {
	d := newDataset(t)
	var lines []string
	for _, name := range d.files("vectors") {
		f := d.arrow(name)
		for g := range f.NumRowGroups() {
			group := f.RowGroup(g)
			// The bytes of a text are only good until the next batch.
			requests, _ := column[parquettypes.ByteArray](d, group, "request")
			texts := make([]string, len(requests))
			for i, r := range requests {
				texts[i] = strings.Clone(string(r))
			}
			layer, _ := column[int32](d, group, "layer")
			position, _ := column[int32](d, group, "position")
			elements, rep := column[float32](d, group, "vec.list.element")
			row := -1
			var vec [][]uint32
			for i, v := range elements {
				if rep[i] == 0 {
					row++
					vec = append(vec, nil)
				}
				vec[row] = append(vec[row], math.Float32bits(v))
			}
			for i := range vec {
				lines = append(lines, lineOf(texts[i], int(layer[i]), int(position[i]), vec[i]))
			}
		}
	}
	d.compare("arrow-go", lines)
}

func TestParquetGoReadsEveryBitOfTheVectors(t *testing.T) {
	d := newDataset(t)
	// The names of the columns, and not our code, say what they hold.
	type row struct {
		Request  string    `parquet:"request"`
		Layer    int32     `parquet:"layer"`
		Position int32     `parquet:"position"`
		Vec      []float32 `parquet:"vec,list,optional"`
	}
	var lines []string
	for _, name := range d.files("vectors") {
		rows, err := parquet.ReadFile[row](name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, r := range rows {
			var bits []uint32
			for _, v := range r.Vec {
				bits = append(bits, math.Float32bits(v))
			}
			lines = append(lines, lineOf(r.Request, int(r.Layer), int(r.Position), bits))
		}
	}
	d.compare("parquet-go", lines)
}

func TestTheComparisonFindsWhatDiffers(t *testing.T) {
	d := &dataset{T: t, rows: map[string]bool{"a 0 0 1": true, "a 0 1 2": true}}
	d.compare("a good reader", []string{"a 0 1 2", "a 0 0 1"})
	if got := lineOf("a", 0, 1, []uint32{2}); got != "a 0 1 2" {
		t.Errorf("a row is written as %q", got)
	}
	if strings.Contains(lineOf("a", 0, 1, nil), "  ") {
		t.Error("a row without vec has a blank too many")
	}
}
