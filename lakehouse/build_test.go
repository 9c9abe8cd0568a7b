package lakehouse

import (
	"context"
	"io"
	"testing"

	"sonde/lakehouse/commitlog"
	"sonde/lakehouse/table"
	"sonde/schema"
)

// builder writes a lake without a bus.
type builder struct {
	t    testing.TB
	dir  string
	w    *commitlog.Writer
	next uint64
	refs map[table.Name][]table.Ref
}

func newBuilder(t testing.TB) *builder {
	names := make([]string, len(table.Names))
	for i, n := range table.Names {
		names[i] = string(n)
	}
	dir := t.TempDir()
	log, err := commitlog.OpenLog(dir, commitlog.Options{Tables: names})
	if err != nil {
		t.Fatal(err)
	}
	w, err := log.Claim(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return &builder{t: t, dir: dir, w: w, next: 1, refs: map[table.Name][]table.Ref{}}
}

func (b *builder) add(msg []byte, err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	batch, err := schema.Decode(msg)
	if err != nil {
		b.t.Fatal(err)
	}
	m, err := table.NewMessage(batch)
	if err != nil {
		b.t.Fatal(err)
	}
	for i := range m.Len() {
		b.refs[m.Table()] = append(b.refs[m.Table()], table.Ref{Message: m, Index: i})
	}
}

func header(epoch uint64) schema.Header {
	return schema.Header{Tenant: "acme", Engine: "eng", Epoch: epoch, Model: "m", PolicyVersion: "p"}
}

func (b *builder) vectors(epoch uint64, hook string, layer int, dtype string, shape []int, rows ...schema.VectorRow) {
	b.t.Helper()
	h := header(epoch)
	h.Hook, h.Layer, h.DType, h.Shape = hook, layer, dtype, shape
	b.vectorsOf(h, rows...)
}

func (b *builder) vectorsOf(h schema.Header, rows ...schema.VectorRow) {
	b.t.Helper()
	e, err := schema.NewVectorEncoder(h)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, r := range rows {
		if err := e.Append(r); err != nil {
			b.t.Fatal(err)
		}
	}
	msg, _, err := e.Encode(schema.Cursor{})
	b.add(msg, err)
}

func (b *builder) facts(epoch uint64, rows ...schema.LedgerRow) {
	b.t.Helper()
	for i := range rows {
		if rows[i].Hook == "" {
			rows[i].Layer = -1
		}
		b.add(schema.EncodeLedger(header(epoch), rows[i:i+1]))
	}
}

func (b *builder) requests(epoch uint64, rows ...schema.RequestRow) {
	b.t.Helper()
	b.add(schema.EncodeRequests(header(epoch), rows))
}

// commit makes everything visible that was added.
func (b *builder) commit() {
	b.t.Helper()
	c := commitlog.Commit{Source: commitlog.Source{Stream: "S", Incarnation: "i", Next: b.next + 1}}
	for _, name := range table.Names {
		refs := b.refs[name]
		if len(refs) == 0 {
			continue
		}
		d := commitlog.DataFile{Table: string(name), Incarnation: "i", First: b.next, Last: b.next, Rows: int64(len(refs)),
			Epochs: epochsOf(refs)}
		f, err := b.w.WriteFile(d, func(w io.Writer) error { return table.Write(w, nil, refs) })
		if err != nil {
			b.t.Fatal(err)
		}
		c.Files = append(c.Files, f)
	}
	if err := b.w.Commit(c); err != nil {
		b.t.Fatal(err)
	}
	b.next++
	clear(b.refs)
}

func epochsOf(refs []table.Ref) []string {
	var out []string
	seen := map[uint64]bool{}
	for _, r := range refs {
		if id := r.Message.Header.Epoch; !seen[id] {
			seen[id] = true
			out = append(out, schema.ChainKey{Epoch: id}.String()[:16])
		}
	}
	return out
}

func (b *builder) open() *Lake {
	b.t.Helper()
	l, err := Open(b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	return l
}

// lake commits and opens.
func (b *builder) lake() *Lake {
	b.t.Helper()
	b.commit()
	return b.open()
}

// row is position p of request r: record p+10, row 0, sequence 1.
func row(p int, vec ...byte) schema.VectorRow {
	return schema.VectorRow{Seq: uint64(p + 10), Number: 1, Request: "r", Position: int32(p), Vec: vec}
}

// expected is the fact about positions [from, from+count), captured in record
// from+10 as rows 0, 1, ...
func expected(from, count int) schema.LedgerRow {
	return schema.LedgerRow{Seq: uint64(from + 1000), Fact: schema.FactExpected, Number: 1, Request: "r",
		Position: int32(from), Count: int32(count), Stride: 1, Layout: 1, Entries: "0", Rows: uint64(count),
		Outcome: schema.OutcomeCaptured, CaptureSeq: uint64(from + 10)}
}

// layout is layout 1: entry 0 is hook h layer 2, entry 1 is hook logits, sampled.
func layout() schema.LedgerRow {
	return schema.LedgerRow{Seq: 1, Fact: schema.FactLayout, Layout: 1, Detail: `[` +
		`{"hook":"h","layer":2,"dtype":"u8","shape":[2],"select":"all","ragged":false,"shard":0,"shard_count":1},` +
		`{"hook":"logits","layer":-1,"select":"sampled"}]`}
}
