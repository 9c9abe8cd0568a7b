package table

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/parquet"

	"sonde/schema"
)

func newRandom(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

func testHeader(hook string, layer int, dtype string, shape []int) schema.Header {
	return schema.Header{Kind: schema.KindVectors, Tenant: "acme", Engine: "eng", Rank: 1, Epoch: 0xfedcba9876543210,
		Hook: hook, Layer: layer, Shard: 1, ShardCount: 2, DType: dtype, Shape: shape, Model: "m", Revision: "r",
		WeightsDigest: "sha256:ab", Quantisation: "none", EngineVersion: "1.2", PolicyVersion: "00ff"}
}

// vectorMessage encodes and decodes rows, as the bus does.
func vectorMessage(t testing.TB, h schema.Header, rows []schema.VectorRow) *Message {
	t.Helper()
	e, err := schema.NewVectorEncoder(h)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if err := e.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	msg, _, err := e.Encode(schema.Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := schema.Decode(msg)
	if err != nil {
		t.Fatal(err)
	}
	m, err := NewMessage(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func refsOf(messages ...*Message) []Ref {
	var refs []Ref
	for _, m := range messages {
		for i := range m.Len() {
			refs = append(refs, Ref{m, i})
		}
	}
	return refs
}

func writeVectors(t testing.TB, refs []Ref) []byte {
	t.Helper()
	var file bytes.Buffer
	if err := WriteVectors(&file, []KeyValue{{"sonde.stream", "S"}}, refs); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func readVectors(t testing.TB, file []byte, q Query) []Vector {
	t.Helper()
	var out []Vector
	err := ReadVectors(bytes.NewReader(file), int64(len(file)), &q, false, func(v *Vector) error {
		out = append(out, *v)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func vectorRow(i int, request string, vec []byte) schema.VectorRow {
	return schema.VectorRow{Seq: uint64(10 + i/3), Row: uint32(i % 3), Number: 7, Request: request, Sample: 2,
		Position: int32(i), Pass: 1, Phase: schema.PhaseDecode, CaptureNS: 1e18 + int64(i), Vec: vec}
}

// extremes are rows whose bits a careless conversion would change.
func extremes(dtype string) [][]byte {
	le16 := func(v ...uint16) (b []byte) {
		for _, x := range v {
			b = binary.LittleEndian.AppendUint16(b, x)
		}
		return b
	}
	le32 := func(v ...uint32) (b []byte) {
		for _, x := range v {
			b = binary.LittleEndian.AppendUint32(b, x)
		}
		return b
	}
	switch dtype {
	case "f32":
		return [][]byte{le32(0x7f800001, 0xffc12345, 0x7f800000, 0xff800000), le32(0x80000000, 0, 1, 0x807fffff),
			le32(math.MaxUint32, 0x00800000, 0x7f7fffff, 0x3f800000)}
	case "bf16", "f16", "u16":
		return [][]byte{le16(0x7f81, 0xffff, 0x7f80, 0xff80), le16(0x8000, 0, 1, 0x807f),
			le16(0x7c00, 0xfc01, 0x7e55, 0x03ff)}
	case "i32":
		return [][]byte{le32(0, 1<<24+1, math.MaxUint32, 1<<31), le32(0x7fffffff, 5, 6, 7), le32(1, 2, 3, 4)}
	case "i64":
		return [][]byte{bytes.Repeat([]byte{0xff}, 32), le32(1, 0, 0, 1<<31, 5, 6, 7, 8), make([]byte, 32)}
	}
	return [][]byte{{0x7f, 0xff, 0x80, 0}, {1, 0x81, 0x7c, 0xfd}, {0x7d, 0x7e, 0x47, 0xc7}}
}

var allDTypes = []string{"f32", "f16", "bf16", "f8e4m3", "f8e5m2", "u8", "i8", "u16", "i32", "i64"}

func TestEveryDTypeComesBackBitForBitWithItsIdentity(t *testing.T) {
	var messages []*Message
	want := map[string][]byte{}
	for layer, dtype := range allDTypes {
		var rows []schema.VectorRow
		for i, vec := range extremes(dtype) {
			rows = append(rows, vectorRow(i, "r-"+dtype, vec))
			want[fmt.Sprintf("%s/%d", dtype, i)] = vec
		}
		messages = append(messages, vectorMessage(t, testHeader("resid_post", layer, dtype, []int{2, 2}), rows))
	}
	got := readVectors(t, writeVectors(t, refsOf(messages...)), Query{})
	if len(got) != len(want) {
		t.Fatalf("%d rows came back of %d", len(got), len(want))
	}
	for _, v := range got {
		key := fmt.Sprintf("%s/%d", v.DType, v.Position)
		if !bytes.Equal(v.Raw, want[key]) {
			t.Errorf("%s: got %x, want %x", key, v.Raw, want[key])
		}
		i := int(v.Position)
		wantOrigin := Origin{Epoch: 0xfedcba9876543210, Engine: "eng", Rank: 1, Tenant: "acme", Model: "m", Revision: "r",
			WeightsDigest: "sha256:ab", Quantisation: "none", EngineVersion: "1.2", PolicyVersion: "00ff"}
		wantPlace := Place{Hook: "resid_post", Layer: slices.Index(allDTypes, v.DType), Shard: 1, ShardCount: 2,
			Seq: uint64(10 + i/3), Row: uint32(i % 3), Number: 7, Request: "r-" + v.DType, Sample: 2, Position: int32(i),
			Pass: 1, Phase: 1, CaptureNS: 1e18 + int64(i)}
		if v.Origin != wantOrigin || v.Place != wantPlace || !slices.Equal(v.Shape, []int{2, 2}) || v.Ragged {
			t.Errorf("%s: identity is %+v %+v", key, v.Origin, v.Place)
		}
	}
}

func TestScalarRaggedAndEmptyRowsComeBack(t *testing.T) {
	ragged := testHeader("pattern", 0, "bf16", []int{2})
	ragged.Ragged = true
	raw := testHeader("ids", -1, "i32", nil)
	raw.Ragged = true
	var long []byte // longer than a batch of levels
	for i := range levelsPerBatch + 3 {
		long = binary.LittleEndian.AppendUint16(long, uint16(i))
		long = binary.LittleEndian.AppendUint16(long, uint16(i>>3))
	}
	vecs := [][]byte{{1, 2, 3, 4}, {}, {1, 2, 3, 4, 5, 6, 7, 8}, {}, {}, long, {9, 9, 9, 9}, {}}
	var a, b []schema.VectorRow
	for i, v := range vecs {
		a = append(a, vectorRow(i, "r", v))
		b = append(b, vectorRow(i, "r", v))
	}
	c := []schema.VectorRow{vectorRow(0, "r", []byte{0, 0, 0x80, 0x7f}), vectorRow(1, "r", []byte{0, 0, 0, 0x80})}
	file := writeVectors(t, refsOf(vectorMessage(t, ragged, a), vectorMessage(t, raw, b),
		vectorMessage(t, testHeader("scalar", 3, "f32", nil), c)))
	for hook, want := range map[string][]schema.VectorRow{"pattern": a, "ids": b, "scalar": c} {
		got := readVectors(t, file, Query{Hook: hook})
		if len(got) != len(want) {
			t.Fatalf("%s: %d rows of %d", hook, len(got), len(want))
		}
		for i, v := range got {
			if !bytes.Equal(v.Raw, want[i].Vec) || v.Ragged != (hook != "scalar") {
				t.Errorf("%s row %d: %d bytes came back of %d, ragged %v", hook, i, len(v.Raw), len(want[i].Vec), v.Ragged)
			}
		}
	}
}

func TestRandomMixturesComeBack(t *testing.T) {
	r := newRandom(t)
	for range 20 {
		var messages []*Message
		want := map[string][]byte{}
		for m := range 1 + r.IntN(6) {
			h := testHeader([]string{"a", "b"}[r.IntN(2)], m, allDTypes[r.IntN(len(allDTypes))], nil)
			for range r.IntN(3) {
				h.Shape = append(h.Shape, 1+r.IntN(40))
			}
			h.Ragged = r.IntN(3) == 0
			size, err := h.RowBytes()
			if err != nil {
				t.Fatal(err)
			}
			var rows []schema.VectorRow
			for i := range 1 + r.IntN(50) {
				n := size
				if h.Ragged {
					n *= r.IntN(4)
				}
				vec := make([]byte, n)
				for k := range vec {
					vec[k] = byte(r.Uint32())
				}
				rows = append(rows, vectorRow(i, fmt.Sprint("r", r.IntN(3)), vec))
				want[fmt.Sprintf("%d/%d", m, i)] = vec
			}
			messages = append(messages, vectorMessage(t, h, rows))
		}
		got := readVectors(t, writeVectors(t, refsOf(messages...)), Query{})
		if len(got) != len(want) {
			t.Fatalf("%d rows of %d", len(got), len(want))
		}
		for _, v := range got {
			if !bytes.Equal(v.Raw, want[fmt.Sprintf("%d/%d", v.Layer, v.Position)]) {
				t.Fatalf("layer %d position %d dtype %s: other bytes", v.Layer, v.Position, v.DType)
			}
		}
	}
}

func TestRowGroupsEndWhereRequestsDoAndStatisticsSkipTheOthers(t *testing.T) {
	var messages []*Message
	for layer := range 4 {
		var rows []schema.VectorRow
		for i := range 120 {
			rows = append(rows, vectorRow(i, fmt.Sprintf("r%d", i%4), make([]byte, 4096)))
		}
		messages = append(messages, vectorMessage(t, testHeader("h", layer, "bf16", []int{2048}), rows))
	}
	file := writeVectors(t, refsOf(messages...))
	pf, err := openVectors(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	columns, err := locateColumns(pf)
	if err != nil {
		t.Fatal(err)
	}
	if pf.NumRowGroups() != 4 {
		t.Fatalf("%d row groups for 4 requests", pf.NumRowGroups())
	}
	for i := range 4 {
		low, high, ok := arrowBounds{pf.RowGroup(i).MetaData(), columns}.text("request")
		if want := fmt.Sprintf("r%d", i); !ok || low != want || high != want {
			t.Errorf("row group %d holds %q to %q (%v)", i, low, high, ok)
		}
	}
	skipped := 0
	layer, epoch, far := 2, uint64(0xfedcba9876543210), uint64(1)
	for i := range 4 {
		b := arrowBounds{pf.RowGroup(i).MetaData(), columns}
		q := Query{Request: "r1", Hook: "h", Layer: &layer, Epoch: &epoch, Tenant: "acme"}
		if !q.mayHold(b, "epoch") {
			skipped++
		}
		for _, q := range []Query{{Hook: "i"}, {Epoch: &far}, {Tenant: "other"}, {Seq: &SeqRange{1, 9}}} {
			if q.mayHold(b, "epoch") {
				t.Errorf("statistics do not exclude %+v", q)
			}
		}
	}
	if skipped != 3 {
		t.Errorf("statistics skip %d row groups of 4; want 3", skipped)
	}
	if got := readVectors(t, file, Query{Request: "r1", Layer: &layer}); len(got) != 30 {
		t.Errorf("%d rows of request r1 and layer 2; want 30", len(got))
	}
}

// DuckDB reads byte-stream split only for floats; statistics of floats help nobody.
func TestColumnsAreEncodedAsOtherReadersNeedThem(t *testing.T) {
	h := testHeader("h", 0, "bf16", []int{64})
	rows := make([]schema.VectorRow, 100)
	for i := range rows {
		rows[i] = vectorRow(i, "r", make([]byte, 128))
	}
	file := writeVectors(t, refsOf(vectorMessage(t, h, rows)))
	pf, err := openVectors(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	if pf.MetaData().KeyValueMetadata().FindValue("ARROW:schema") != nil {
		t.Error("the file carries ARROW:schema")
	}
	if v := pf.MetaData().KeyValueMetadata().FindValue("sonde.stream"); v == nil || *v != "S" {
		t.Error("the key-value metadata is missing")
	}
	ids := map[int32]string{}
	for i := range pf.MetaData().Schema.NumColumns() {
		c := pf.MetaData().Schema.Column(i)
		id := c.SchemaNode().FieldID()
		if id <= 0 || ids[id] != "" {
			t.Errorf("column %s has field id %d, as %q", c.Path(), id, ids[id])
		}
		ids[id] = c.Path()
		chunk, err := pf.RowGroup(0).MetaData().ColumnChunk(i)
		if err != nil {
			t.Fatal(err)
		}
		stats, err := chunk.Statistics()
		if err != nil {
			t.Fatal(err)
		}
		values := c.Path() == vecLeaf || c.Path() == rawColumn
		if has := stats != nil && stats.HasMinMax(); has == values {
			t.Errorf("column %s has statistics: %v", c.Path(), has)
		}
		if split := slices.Contains(chunk.Encodings(), parquet.Encodings.ByteStreamSplit); split != (c.Path() == vecLeaf) {
			t.Errorf("column %s has encodings %v", c.Path(), chunk.Encodings())
		}
	}
}

func TestDamagedVectorFilesAreErrors(t *testing.T) {
	h := testHeader("h", 0, "bf16", []int{16})
	rows := make([]schema.VectorRow, 40)
	for i := range rows {
		rows[i] = vectorRow(i, fmt.Sprint("r", i%3), bytes.Repeat([]byte{byte(i), 0x40}, 16))
	}
	good := writeVectors(t, refsOf(vectorMessage(t, h, rows)))
	read := func(file []byte) error {
		return ReadVectors(bytes.NewReader(file), int64(len(file)), &Query{}, false, func(*Vector) error { return nil })
	}
	for _, n := range []int{0, 3, 8, 100, len(good) / 2, len(good) - 9, len(good) - 1} {
		if read(good[:n]) == nil {
			t.Errorf("a file cut to %d of %d bytes was read", n, len(good))
		}
	}
	r := newRandom(t)
	for range 400 {
		bad := slices.Clone(good)
		for range 1 + r.IntN(4) {
			bad[r.IntN(len(bad))] = byte(r.Uint32())
		}
		_ = read(bad) // an error or other rows, but no panic
	}
	if err := read([]byte(strings.Repeat("PAR1", 50))); err == nil {
		t.Error("nonsense was read")
	}
}
