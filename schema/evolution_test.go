package schema

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// frozen holds what the last release wrote: its messages, what their headers and rows
// mean as JSON, and a list of checksums. Nothing writes these files anew. With a
// release, its messages are frozen beside them in a folder of their own.
const frozen = "testdata/frozen-1"

// frozenFiles are the frozen files with what they hold.
func frozenFiles(t *testing.T) map[string][]byte {
	t.Helper()
	sums, err := os.ReadFile(filepath.Join(frozen, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for line := range strings.Lines(string(sums)) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		text, err := os.ReadFile(filepath.Join(frozen, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := sha256.Sum256(text); hex.EncodeToString(got[:]) != sum {
			t.Errorf("%s was changed after its release; restore it, and keep new messages beside it", name)
		}
		out[name] = text
	}
	if len(out) < 16 {
		t.Fatalf("%d frozen files; want 16", len(out))
	}
	return out
}

// meaning is a message as JSON: header and rows.
func meaning(t *testing.T, msg []byte) []byte {
	t.Helper()
	b, err := Decode(msg)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(map[string]any{"header": b.Header, "rows": allRows(b)}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(text, '\n')
}

// The fear: rows that an older agent published, and that still stand in a stream, are
// read as something else after an upgrade, or not at all.
func TestThisReleaseReadsTheMessagesOfTheLastOne(t *testing.T) {
	files := frozenFiles(t)
	for name, msg := range files {
		if base, isMessage := strings.CutSuffix(name, ".arrow"); isMessage {
			if where := differs(parse(t, files[base+".json"]), parse(t, meaning(t, msg)), base); where != "" {
				t.Errorf("%s means something else now: %s", name, where)
			}
		}
	}
}

func parse(t *testing.T, text []byte) (value any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if err := d.Decode(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

// differs says where something of want is not in got. What this release knows more
// about a row than the last one is no difference.
func differs(want, got any, at string) string {
	switch w := want.(type) {
	case map[string]any:
		g, _ := got.(map[string]any)
		for key, inner := range w {
			if where := differs(inner, g[key], at+"."+key); where != "" {
				return where
			}
		}
		return ""
	case []any:
		g, _ := got.([]any)
		if len(g) != len(w) {
			return fmt.Sprintf("%s has %d items; want %d", at, len(g), len(w))
		}
		for i := range w {
			if where := differs(w[i], g[i], fmt.Sprintf("%s[%d]", at, i)); where != "" {
				return where
			}
		}
		return ""
	}
	if want != got {
		return fmt.Sprintf("%s is %v; want %v", at, got, want)
	}
	return ""
}

// later writes a message again as a later program would: with another version, a key
// and columns that this program does not know.
func later(t *testing.T, msg []byte, version string) []byte {
	t.Helper()
	r, err := ipc.NewReader(bytes.NewReader(msg))
	if err != nil {
		t.Fatal(err)
	}
	rec, err := r.Read()
	if err != nil {
		t.Fatal(err)
	}
	meta := rec.Schema().Metadata()
	keys, values := append([]string{}, meta.Keys()...), append([]string{}, meta.Values()...)
	values[meta.FindKey(keyVersion)] = version
	keys, values = append([]string{"sonde.a_later_key"}, keys...), append([]string{"whatever it says"}, values...)
	fields := append(rec.Schema().Fields(),
		arrow.Field{Name: "a_later_number", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
		arrow.Field{Name: "a_later_list", Type: arrow.ListOf(arrow.BinaryTypes.String), Nullable: true})
	columns := append([]arrow.Array{}, rec.Columns()...)
	numbers, lists := array.NewFloat64Builder(memory.DefaultAllocator), array.NewListBuilder(memory.DefaultAllocator,
		arrow.BinaryTypes.String)
	for i := range int(rec.NumRows()) {
		numbers.AppendNull()
		lists.Append(true)
		lists.ValueBuilder().(*array.StringBuilder).Append(fmt.Sprint("later ", i))
	}
	columns = append(columns, numbers.NewArray(), lists.NewArray())
	all := arrow.NewMetadata(keys, values)
	schema := arrow.NewSchema(fields, &all)
	var out bytes.Buffer
	w := ipc.NewWriter(&out, ipc.WithSchema(schema))
	if err := w.Write(array.NewRecordBatch(schema, columns, rec.NumRows())); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// The fear: a newer agent adds something small, and every older consumer stops.
func TestKeysAndColumnsOfALaterMinorVersionArePassedOver(t *testing.T) {
	for name, msg := range goldenMessages(t) {
		want := meaning(t, msg)
		if got := meaning(t, later(t, msg, "1.7")); !bytes.Equal(got, want) {
			t.Errorf("%s of version 1.7 means\n%s\nwant\n%s", name, got, want)
		}
	}
}

// The fear: rows of a format that nobody here understands are stored as if they were.
func TestEveryKindOfTheNextMajorVersionIsRefusedWithASentence(t *testing.T) {
	for name, msg := range goldenMessages(t) {
		for _, version := range []string{"2", "2.0", "10", "0", "", "1x"} {
			next := later(t, msg, version)
			_, errAll := Decode(next)
			_, errHeader := DecodeHeader(next)
			for _, err := range []error{errAll, errHeader} {
				want := fmt.Sprintf("message has schema version %q and this program reads version 1", version)
				if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s of version %q: %v", name, version, err)
				}
			}
		}
	}
}

// Other languages are tested with the same messages.
func TestMessagesOfLaterVersionsForOtherReaders(t *testing.T) {
	for name, version := range map[string]string{"next_minor.arrow": "1.7", "next_major.arrow": "2"} {
		msg := later(t, goldenMessages(t)["vectors.arrow"], version)
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, msg, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, msg) {
			t.Errorf("%s is not what a later version writes: %v", path, err)
		}
	}
}
