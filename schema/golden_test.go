package schema

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
)

var update = flag.Bool("update", false, "rewrite the golden files: only together with a new version of the format")

// goldenMessages are the messages of testdata, made from fixed rows.
func goldenMessages(t testing.TB) map[string][]byte {
	ragged := testHeader()
	ragged.Ragged, ragged.Shape, ragged.DType, ragged.Hook = true, nil, "f32", "attn_pattern"
	raggedRows := testVectors(4, 16)
	for i := range raggedRows {
		raggedRows[i].Vec = raggedRows[i].Vec[:4*i]
	}
	must := func(msg []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	vectors, _ := encodeVectors(t, testHeader(), testVectors(6, 16))
	raggedVectors, _ := encodeVectors(t, ragged, raggedRows)
	return map[string][]byte{
		"vectors.arrow":         vectors,
		"vectors_ragged.arrow":  raggedVectors,
		"stats.arrow":           must(EncodeStats(testHeader(), fill[StatsRow](3))),
		"requests.arrow":        must(EncodeRequests(testHeader(), fill[RequestRow](3))),
		"requests_plain.arrow":  must(EncodeRequests(testHeader(), fill[RequestRow](1))),
		"ledger.arrow":          must(EncodeLedger(testHeader(), fill[LedgerRow](3))),
		"detections.arrow":      must(EncodeDetections(testHeader(), fill[DetectionRow](3))),
		"vectors_one_row.arrow": func() []byte { m, _ := encodeVectors(t, testHeader(), testVectors(1, 16)); return m }(),
	}
}

func TestGoldenFilesStillMeanTheSame(t *testing.T) {
	for name, msg := range goldenMessages(t) {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, msg, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Decode(msg)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := Decode(golden)
		if err != nil {
			t.Fatalf("%s: this version cannot read an old message: %v", name, err)
		}
		if !reflect.DeepEqual(got.Header, want.Header) || !reflect.DeepEqual(allRows(got), allRows(want)) {
			t.Errorf("%s reads differently now:\n%+v\nwant\n%+v", name, allRows(got), allRows(want))
		}
		if !bytes.Equal(golden, msg) {
			t.Errorf("%s is written differently now (reads alike)", name)
		}
	}
}

func allRows(b *Batch) []any {
	rows := make([]any, b.Len())
	for i := range rows {
		switch b.Header.Kind {
		case KindVectors:
			rows[i] = b.Vector(i)
		case KindStats:
			rows[i] = b.Stats(i)
		case KindRequests:
			rows[i] = b.RequestAt(i)
		case KindLedger:
			rows[i] = b.Ledger(i)
		case KindDetections:
			rows[i] = b.Detection(i)
		}
	}
	return rows
}

// A stranger reads our messages with an ordinary Arrow library and nothing else.
func TestAnOrdinaryArrowReaderReadsEveryKind(t *testing.T) {
	for name, msg := range goldenMessages(t) {
		r, err := ipc.NewReader(bytes.NewReader(msg))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		rec, err := r.Read()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		ours, err := Decode(msg)
		if err != nil {
			t.Fatal(err)
		}
		if int(rec.NumRows()) != ours.Len() {
			t.Errorf("%s: %d rows; want %d", name, rec.NumRows(), ours.Len())
		}
		for c := range int(rec.NumCols()) {
			if rec.Column(c).NullN() != 0 || rec.Column(c).String() == "" {
				t.Errorf("%s: column %s does not print", name, rec.ColumnName(c))
			}
			if v, ok := rec.Column(c).(interface{ ValidateFull() error }); ok {
				if err := v.ValidateFull(); err != nil {
					t.Errorf("%s: column %s: %v", name, rec.ColumnName(c), err)
				}
			}
		}
		if ours.Header.Kind == KindVectors {
			for i, seq := range rec.Column(0).(*array.Uint64).Uint64Values() {
				if seq != ours.Vector(i).Seq {
					t.Errorf("%s: row %d has seq %d; want %d", name, i, seq, ours.Vector(i).Seq)
				}
			}
		}
		if _, err := r.Read(); err == nil || err.Error() != "EOF" {
			t.Errorf("%s: after the batch: %v; want the end of the stream", name, err)
		}
	}
}
