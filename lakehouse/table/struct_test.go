package table

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"slices"
	"testing"

	"github.com/parquet-go/parquet-go"

	"sonde/schema"
)

func decoded(t testing.TB, msg []byte, err error) *Message {
	t.Helper()
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

func writeTable(t testing.TB, refs []Ref) *bytes.Reader {
	t.Helper()
	var file bytes.Buffer
	if err := Write(&file, []KeyValue{{"sonde.stream", "S"}}, refs); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(file.Bytes())
}

func plainHeader() schema.Header {
	h := testHeader("h", 1, "bf16", []int{4})
	h.Kind, h.Epoch = "", math.MaxUint64
	return h
}

func TestTokensComeBack(t *testing.T) {
	h := testHeader(TokenHook, -1, "i32", nil)
	var rows []schema.VectorRow
	for i := range 9000 {
		id := binary.LittleEndian.AppendUint32(nil, uint32(i)*0x80001)
		rows = append(rows, vectorRow(i, fmt.Sprint("r", i/4500), id))
	}
	m := vectorMessage(t, h, rows)
	if m.Table() != Tokens {
		t.Fatalf("token ids go to %s", m.Table())
	}
	file := writeTable(t, refsOf(m))
	i := 0
	err := ReadTokens(file, file.Size(), &Query{}, func(tok *Token) error {
		want := Token{originOf(&h), Place{TokenHook, -1, 1, 2, rows[i].Seq, rows[i].Row, 7, rows[i].Request, 2,
			int32(i), 1, 1, rows[i].CaptureNS}, int32(uint32(i) * 0x80001)}
		if *tok != want {
			t.Fatalf("row %d is %+v, want %+v", i, *tok, want)
		}
		i++
		return nil
	})
	if err != nil || i != len(rows) {
		t.Fatalf("%d rows, %v", i, err)
	}
	pf, err := parquet.OpenFile(file, file.Size())
	if err != nil {
		t.Fatal(err)
	}
	if n := len(pf.RowGroups()); n != 2 {
		t.Errorf("%d row groups for two requests", n)
	}
	for g := range pf.RowGroups() {
		low, high, ok := newStructBounds(pf, g).text("request")
		if want := fmt.Sprint("r", g); !ok || low != want || high != want {
			t.Errorf("row group %d holds %q to %q (%v)", g, low, high, ok)
		}
	}
}

func TestTokenHookOfAnotherTypeIsKeptAsVectors(t *testing.T) {
	for _, h := range []schema.Header{testHeader(TokenHook, -1, "i64", nil), testHeader(TokenHook, -1, "i32", []int{2})} {
		m := vectorMessage(t, h, []schema.VectorRow{vectorRow(0, "r", make([]byte, 8))})
		if m.Table() != Vectors {
			t.Errorf("token ids of dtype %s and shape %v go to %s", h.DType, h.Shape, m.Table())
		}
	}
}

func TestStatsRequestsFactsAndDetectionsComeBackWhole(t *testing.T) {
	h := plainHeader()
	stats := []schema.StatsRow{{Seq: 1 << 63, Row: math.MaxUint32 - 1, Number: math.MaxUint64, Request: "r", Sample: 1,
		Position: 2, Pass: 3, Phase: 2, CaptureNS: 4, Dim: 5, L2: 6.5, Mean: -7, Std: 8, AbsMax: 9, ArgMax: -1, Zeros: 10,
		NonFinite: 11}}
	requests := []schema.RequestRow{{Seq: 1, Event: schema.EventOpen, Number: 2, Request: "r", EngineID: "e", Sample: 1,
		Tenant: "acme", Adapter: "lora", TraceParent: "00-1", Labels: map[string]string{"language": "de", "": "x"},
		OptIn: true, PromptTokens: 3, MaxTokens: 4, WallNS: 5},
		{Seq: 9, Event: schema.EventEnd, Number: 2, Request: "r", GeneratedTokens: 6, CachedTokens: 7, Passes: 8,
			Reason: "stop"}}
	facts := []schema.LedgerRow{{Seq: 1, Row: 2, Fact: schema.FactExpected, Number: 3, Request: "r", Sample: 4, Pass: 5,
		Phase: 1, Position: 6, Count: 7, Stride: 8, Step: 9, Layout: math.MaxUint32, Entries: "0-3,7", Rows: 10,
		FilteredRows: 11, Outcome: "captured", Reason: "x", CaptureSeq: 12, FirstRow: 13, Hook: "q", Layer: -1, Detail: "{}"}}
	detections := []schema.DetectionRow{{Seq: 1, ID: "id", Detector: "d", Version: "1", Digest: "ff", Level: "stop",
		Mode: "enforce", EngineEpoch: math.MaxUint64, Number: 2, Request: "r", Sample: 3, Position: 4, Score: 0.5,
		Threshold: -1, TokensSeen: 5, Coverage: 1, CaptureNS: 6, VerdictNS: 7, Action: "abort", Outcome: "stopped",
		FinalLength: 8}}

	origin := originOf(&h)
	msg, err := schema.EncodeStats(h, stats)
	file := writeTable(t, refsOf(decoded(t, msg, err)))
	s := stats[0]
	check(t, Stats{origin, Place{"h", 1, 1, 2, s.Seq, s.Row, s.Number, "r", 1, 2, 3, 2, 4}, "bf16", []int{4}, 5, 6.5,
		-7, 8, 9, -1, 10, 11}, func(f func(*Stats) error) error { return ReadStats(file, file.Size(), &Query{}, f) })

	msg, err = schema.EncodeRequests(h, requests)
	file = writeTable(t, refsOf(decoded(t, msg, err)))
	for i, r := range requests {
		at := -1
		check(t, RequestEvent{origin, r}, func(f func(*RequestEvent) error) error {
			return ReadRequests(file, file.Size(), &Query{}, func(e *RequestEvent) error {
				if at++; at == i {
					return f(e)
				}
				return nil
			})
		})
	}

	h.Hook, h.Layer, h.Shard = "", 0, 0
	msg, err = schema.EncodeLedger(h, facts)
	file = writeTable(t, refsOf(decoded(t, msg, err)))
	check(t, Fact{origin, schema.Hookless, -1, 0, facts[0]}, func(f func(*Fact) error) error {
		return ReadLedger(file, file.Size(), &Query{}, f)
	})

	msg, err = schema.EncodeDetections(h, detections)
	file = writeTable(t, refsOf(decoded(t, msg, err)))
	epoch := uint64(math.MaxUint64)
	check(t, Detection{origin, detections[0]}, func(f func(*Detection) error) error {
		return ReadDetections(file, file.Size(), &Query{Epoch: &epoch, Request: "r"}, f)
	})
}

// check reads exactly one row and compares it.
func check[R any](t *testing.T, want R, read func(func(*R) error) error) {
	t.Helper()
	rows := 0
	if err := read(func(got *R) error {
		rows++
		if !reflect.DeepEqual(*got, want) {
			t.Errorf("got  %+v\nwant %+v", *got, want)
		}
		return nil
	}); err != nil || rows != 1 {
		t.Errorf("%d rows of %T, %v", rows, want, err)
	}
}

func TestQueriesChooseByEachField(t *testing.T) {
	var rows []schema.VectorRow
	for i := range 40 {
		r := vectorRow(i, fmt.Sprint("r", i%2), []byte{1, 2, 3, 4})
		r.Sample, r.Pass, r.Number = int32(i%3), int32(i%5), uint64(i%4)
		rows = append(rows, r)
	}
	tokens := writeTable(t, refsOf(vectorMessage(t, testHeader(TokenHook, -1, "i32", nil), rows)))
	vectors := writeVectors(t, refsOf(vectorMessage(t, testHeader("h", 3, "f32", nil), rows)))
	one, three, epoch, wrong, two := 1, 3, uint64(0xfedcba9876543210), uint64(5), uint64(2)
	for _, c := range []struct {
		name            string
		q               Query
		tokens, vectors int
	}{
		{"all", Query{}, 40, 40}, {"request", Query{Request: "r1"}, 20, 20}, {"sample", Query{Sample: &one}, 13, 13},
		{"pass", Query{Pass: &three}, 8, 8}, {"position", Query{Position: &three}, 1, 1}, {"hook", Query{Hook: "h"}, 0, 40},
		{"layer", Query{Layer: &three}, 0, 40}, {"tenant", Query{Tenant: "other"}, 0, 0},
		{"epoch", Query{Epoch: &epoch}, 40, 40}, {"other epoch", Query{Epoch: &wrong}, 0, 0},
		{"number", Query{Number: &two}, 10, 10}, {"shard", Query{Shard: &one}, 40, 40},
		{"records", Query{Seq: &SeqRange{11, 12}}, 6, 6},
	} {
		n := 0
		count := func(*Token) error { n++; return nil }
		if err := ReadTokens(tokens, tokens.Size(), &c.q, count); err != nil || n != c.tokens {
			t.Errorf("%s: %d tokens, %v; want %d", c.name, n, err, c.tokens)
		}
		if got := readVectors(t, vectors, c.q); len(got) != c.vectors {
			t.Errorf("%s: %d vectors; want %d", c.name, len(got), c.vectors)
		}
	}
}

func TestFieldIDsMeanTheSameColumnInAllTables(t *testing.T) {
	names := map[int]string{}
	add := func(table, name string, id int) {
		if id <= 0 || names[id] != "" && names[id] != name {
			t.Errorf("%s: column %s has field id %d, which is %q elsewhere", table, name, id, names[id])
		}
		names[id] = name
	}
	for _, c := range vectorColumns {
		add("vectors", c.name, int(c.id))
	}
	add("vectors", "vec", vecID)
	add("vectors", "vec.element", vecElementID)
	add("vectors", "raw", rawID)
	for table, s := range map[string]*parquet.Schema{"tokens": parquet.SchemaOf(new(tokenColumns)),
		"vector_stats": parquet.SchemaOf(new(statsColumns)), "requests": parquet.SchemaOf(new(requestColumns)),
		"ledger": parquet.SchemaOf(new(factColumns)), "detections": parquet.SchemaOf(new(detectionColumns))} {
		own := map[int]bool{}
		for _, f := range s.Fields() {
			add(table, f.Name(), f.ID())
			if own[f.ID()] {
				t.Errorf("%s: field id %d twice", table, f.ID())
			}
			own[f.ID()] = true
		}
	}
}

func TestTextThatIsNotUTF8IsRefusedBeforeItSpoilsAFile(t *testing.T) {
	h := plainHeader()
	bad := "\xff"
	requests := func(r schema.RequestRow) []byte {
		msg, err := schema.EncodeRequests(h, []schema.RequestRow{r})
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	ledger, err := schema.EncodeLedger(schema.Header{}, []schema.LedgerRow{{Detail: bad}})
	if err != nil {
		t.Fatal(err)
	}
	detection, err := schema.EncodeDetections(h, []schema.DetectionRow{{Level: bad}})
	if err != nil {
		t.Fatal(err)
	}
	stats, err := schema.EncodeStats(h, []schema.StatsRow{{Request: bad}})
	if err != nil {
		t.Fatal(err)
	}
	for i, msg := range [][]byte{requests(schema.RequestRow{Request: bad}), ledger, detection, stats,
		requests(schema.RequestRow{Labels: map[string]string{bad: "x"}}),
		requests(schema.RequestRow{Labels: map[string]string{"x": bad}})} {
		b, err := schema.Decode(msg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewMessage(b); err == nil {
			t.Errorf("message %d was taken", i)
		}
	}
}

func TestDamagedStructFilesAreErrors(t *testing.T) {
	msg, err := schema.EncodeRequests(plainHeader(), []schema.RequestRow{{Seq: 1, Event: "open", Request: "r",
		Labels: map[string]string{"a": "b"}}, {Seq: 2, Event: "end", Request: "r"}})
	file := writeTable(t, refsOf(decoded(t, msg, err)))
	good := make([]byte, file.Size())
	if _, err := file.ReadAt(good, 0); err != nil {
		t.Fatal(err)
	}
	read := func(b []byte) error {
		return ReadRequests(bytes.NewReader(b), int64(len(b)), &Query{}, func(*RequestEvent) error { return nil })
	}
	for _, n := range []int{0, 3, 8, len(good) / 2, len(good) - 9, len(good) - 1} {
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
	if err := ReadTokens(file, file.Size(), &Query{}, func(*Token) error { return nil }); err == nil {
		t.Error("a file of requests was read as tokens")
	}
	one := []schema.VectorRow{vectorRow(0, "r", []byte{1})}
	vectors := writeVectors(t, refsOf(vectorMessage(t, testHeader("h", 0, "u8", nil), one)))
	if err := read(vectors); err == nil {
		t.Error("a file of vectors was read as requests")
	}
}
