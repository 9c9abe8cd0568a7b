package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/parquet-go/parquet-go"

	"sonde/lakehouse/table"
	"sonde/schema"
)

// kinds are the kinds of messages, each with the tables that its rows go to.
var kinds = []struct {
	kind   schema.Kind
	tables []table.Name
	about  string
}{
	{schema.KindVectors, []table.Name{table.Vectors, table.Tokens}, "one token at one hook, bit for bit"},
	{schema.KindStats, []table.Name{table.VectorStats}, "figures of a row instead of the row"},
	{schema.KindRequests, []table.Name{table.Requests}, "requests that opened and ended"},
	{schema.KindLedger, []table.Name{table.Ledger}, "facts about rows"},
	{schema.KindDetections, []table.Name{table.Detections}, "verdicts of detectors"},
}

// messageOf is a message of a kind; the golden files hold one of each.
func messageOf(t *testing.T, kind schema.Kind) []byte {
	message, err := os.ReadFile(filepath.Join(repository, "schema", "testdata", string(kind)+".arrow"))
	if err != nil {
		t.Fatal(err)
	}
	return message
}

// tokenMessage is one of hook token_ids, whose rows have a table of their own.
func tokenMessage(t *testing.T) []byte {
	e, err := schema.NewVectorEncoder(schema.Header{Kind: schema.KindVectors, Engine: "e", Epoch: 1, Hook: "token_ids",
		Layer: -1, DType: "i32"})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Append(schema.VectorRow{Seq: 1, Request: "r", Vec: make([]byte, 4)}); err != nil {
		t.Fatal(err)
	}
	message, _, err := e.Encode(schema.Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	return message
}

// fileOf writes a row of a table as the materializer does, and gives the schema of
// the file.
func fileOf(t *testing.T, name table.Name, message []byte) *parquet.Schema {
	batch, err := schema.Decode(message)
	if err != nil {
		t.Fatal(err)
	}
	m, err := table.NewMessage(batch)
	if err != nil {
		t.Fatal(err)
	}
	if m.Table() != name {
		t.Fatalf("rows of the message go to %s, not to %s", m.Table(), name)
	}
	var file bytes.Buffer
	if err := table.Write(&file, nil, []table.Ref{{Message: m}}); err != nil {
		t.Fatal(err)
	}
	f, err := parquet.OpenFile(bytes.NewReader(file.Bytes()), int64(file.Len()))
	if err != nil {
		t.Fatal(err)
	}
	return f.Schema()
}

// meanings reads what SCHEMA.md says of the columns of a kind, and of the header.
func meanings(t *testing.T, section string) map[string]string {
	page, err := os.ReadFile(filepath.Join(repository, "schema", "SCHEMA.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "\n## "+section)
	if !ok {
		t.Fatalf("SCHEMA.md has no section %q", section)
	}
	if next := strings.Index(rest, "\n## "); next >= 0 {
		rest = rest[:next]
	}
	out := map[string]string{}
	for _, line := range strings.Split(rest, "\n") {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		if !strings.HasPrefix(line, "| `") || len(cells) < 2 {
			continue
		}
		names := regexp.MustCompile("`(?:sonde\\.)?([a-z0-9_]+)`").FindAllStringSubmatch(cells[0], -1)
		said := strings.Split(cells[len(cells)-1], "; ")
		for i, name := range names {
			meaning := cells[len(cells)-1]
			if len(names) > 1 && len(said) == len(names) {
				meaning = said[i]
			}
			out[name[1]] = meaning
		}
		for name, meaning := range headerMeanings {
			if out[name] != "" && strings.HasPrefix(line, "| `sonde.") {
				out[name] = meaning
			}
		}
	}
	return out
}

// sections of SCHEMA.md, by kind.
func columnMeanings(t *testing.T, kind schema.Kind) map[string]string {
	out := map[string]string{}
	for _, section := range []string{"Metadata of the Arrow schema", "`vectors`", "`" + string(kind) + "`"} {
		for name, meaning := range meanings(t, section) {
			out[name] = meaning
		}
	}
	return out
}

// headerMeanings are of keys that SCHEMA.md explains together, in one line.
var headerMeanings = map[string]string{
	"shard":          "part of a tensor that is split over ranks, from 0",
	"shard_count":    "how many parts there are; 0 or 1 when the tensor is whole",
	"model":          "name of the model that computed the rows",
	"revision":       "its revision",
	"weights_digest": "digest of its weights",
	"quantisation":   "how its weights are stored",
}

// lakeMeanings are of columns that only tables have, or where they say another thing.
var lakeMeanings = map[string]string{
	"vec": "elements as float32, where float32 holds every value of the dtype exactly; null elsewhere",
	"raw": "elements as they were captured, little-endian, where `vec` is null",

	"dtype": "type of the elements that were captured: `f32 f16 bf16 f8e4m3 f8e5m2 i32 u8 i64 u16 i8`",

	"token_id":       "the token",
	"request_tenant": "tenant as the caller gave it",
	"chain_hook":     "hook of the message that brought the fact; `-` for none",
	"chain_layer":    "layer of that message; −1 for none",
	"chain_shard":    "shard of that message: which kind of fact it is, see SCHEMA.md",
	"epoch":          "16 hex digits: the start of the writer, or, in `detections`, of the detector run",
	"shape":          "of one row, like `8,64`; empty for a scalar; of one element of the row where `ragged`",
}

func meaningOf(t *testing.T, where, name string, from ...map[string]string) string {
	for _, m := range from {
		if text := m[name]; text != "" {
			return text
		}
	}
	t.Errorf("column %s of %s: schema/SCHEMA.md does not say what it means", name, where)
	return ""
}

func tablesPage(t *testing.T) string {
	var b strings.Builder
	b.WriteString(`# Tables of the dataset

A dataset is a folder with a log and Parquet files, one sub-folder a table. Only files that the log names count:
[FORMAT.md](../../lakehouse/FORMAT.md). Columns are not null unless said otherwise. Unsigned numbers of the bus
are stored in signed columns, bit by bit. In ` + "`vectors`, `tokens` and `vector_stats`" + ` (` + "`epoch`, `hook`, `layer`, `shard`, `seq`, `row`" + `) identifies a row.
`)
	for _, k := range kinds {
		of := columnMeanings(t, k.kind)
		for _, name := range k.tables {
			message := messageOf(t, k.kind)
			about := k.about
			if name == table.Tokens {
				message, about = tokenMessage(t), "the rows of hook `token_ids`"
			}
			fmt.Fprintf(&b, "\n## %s\n\nFrom messages of kind `%s`: %s.\n\n| column | type | meaning |\n|---|---|---|\n", name, k.kind,
				about)
			for _, field := range fileOf(t, name, message).Fields() {
				fmt.Fprintf(&b, "| `%s` | %s | %s |\n", field.Name(), parquetType(field),
					meaningOf(t, "table "+string(name), field.Name(), lakeMeanings, of))
			}
		}
	}
	return b.String()
}

// parquetType writes a type as people say it.
func parquetType(f parquet.Field) string {
	text, logical := "", ""
	if l := f.Type().LogicalType(); l != nil {
		logical = l.String()
	}
	switch {
	case logical == "MAP":
		text = "map&lt;text, text&gt;"
	case logical == "LIST":
		text = "list&lt;float&gt;"
	case logical == "STRING":
		text = "text"
	default:
		text = map[parquet.Kind]string{parquet.Boolean: "bool", parquet.Int32: "int32", parquet.Int64: "int64",
			parquet.Float: "float", parquet.Double: "double", parquet.ByteArray: "binary"}[f.Type().Kind()]
	}
	if f.Optional() {
		text += " or null"
	}
	return text
}

func messagesPage(t *testing.T) string {
	var b strings.Builder
	escaped := schema.Header{Kind: schema.KindVectors, Tenant: "team a", Engine: "llama-70b", Rank: 3,
		Hook: "resid_post", Layer: 12}
	fmt.Fprintf(&b, `# Subjects and messages of the bus

Everything is published on one stream. A message is one Arrow IPC stream of one record batch;
[SCHEMA.md](../../schema/SCHEMA.md) says what writers and readers must do. All numbers are little-endian.

## Subjects

| subject | what |
|---|---|
| `+"`%s.<tenant>.<engine>.<rank>.<kind>.<hook>.<layer>`"+` | rows and facts |
| `+"`sonde.cmd.<tenant>.<engine>.<rank>.abort`"+` | an abort, answered by the agent of that rank |

Bytes outside `+"`[A-Za-z0-9_-]`"+` are written `+"`=XX`"+` in hex; empty text and layer −1 are `+"`_`"+`. For example, layer 12 of `+"`resid_post`"+` of
tenant `+"`team a`"+`:

    %s
    %s
`, schema.SubjectPrefix, schema.Subject(escaped), schema.AbortSubject("team a", "llama-70b", 3))
	header := meanings(t, "Metadata of the Arrow schema")
	message, err := ipc.NewReader(bytes.NewReader(messageOf(t, schema.KindVectors)))
	if err != nil {
		t.Fatal(err)
	}
	defer message.Release()
	metadata := message.Schema().Metadata()
	b.WriteString("\n## Metadata of every message\n\n| key | meaning |\n|---|---|\n")
	for _, key := range metadata.Keys() {
		fmt.Fprintf(&b, "| `%s` | %s |\n", key, meaningOf(t, "the metadata", strings.TrimPrefix(key, "sonde."), header))
	}
	for _, k := range kinds {
		of := columnMeanings(t, k.kind)
		fmt.Fprintf(&b, "\n## %s\n\nOf kind `%s`: %s.\n\n| column | type | meaning |\n|---|---|---|\n", k.kind, k.kind, k.about)
		for _, f := range arrowFields(t, messageOf(t, k.kind)) {
			text := strings.ReplaceAll(strings.ReplaceAll(f.Type.String(), "<", "&lt;"), ">", "&gt;")
			if f.Name == "vec" {
				text = "fixed_size_binary of the bytes of a row; large_binary for ragged rows"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Name, text, meaningOf(t, "messages of "+string(k.kind), f.Name, of))
		}
	}
	return b.String()
}

func arrowFields(t *testing.T, message []byte) []arrow.Field {
	r, err := ipc.NewReader(bytes.NewReader(message))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	return r.Schema().Fields()
}
