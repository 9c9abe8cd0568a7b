package materializer

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"sonde/bus"
	"sonde/lakehouse"
	"sonde/schema"
)

// source is a chain as an agent publishes it: rows in ascending (seq, row), of
// which each message takes some.
type source struct {
	header schema.Header
	rows   []schema.Cursor
	next   int // row that is published next
}

// vecOf is what a row holds: it follows from its identity alone.
func vecOf(h *schema.Header, c schema.Cursor) []byte {
	n, _ := h.RowBytes()
	r := rand.New(rand.NewPCG(h.Epoch^uint64(h.Layer+7), c.Seq<<20|uint64(c.Row)))
	out := make([]byte, 0, n+8)
	for len(out) < n {
		out = binary.LittleEndian.AppendUint64(out, r.Uint64())
	}
	return out[:n]
}

func requestOf(c schema.Cursor) string { return fmt.Sprint("r", c.Seq%5) }

// message makes a message of rows [from, to), which follow prev.
func (s *source) message(prev schema.Cursor, from, to int) []byte {
	h := s.header
	h.Prev = prev
	rows := s.rows[from:to]
	var msg []byte
	var err error
	switch h.Kind {
	case schema.KindVectors:
		var e *schema.VectorEncoder
		if e, err = schema.NewVectorEncoder(h); err != nil {
			break
		}
		for _, c := range rows {
			if err := e.Append(schema.VectorRow{Seq: c.Seq, Row: c.Row, Number: c.Seq % 5, Request: requestOf(c),
				Position: int32(c.Seq), CaptureNS: int64(c.Seq), Vec: vecOf(&h, c)}); err != nil {
				panic(err)
			}
		}
		msg, _, err = e.Encode(prev)
	case schema.KindStats:
		var out []schema.StatsRow
		for _, c := range rows {
			out = append(out, schema.StatsRow{Seq: c.Seq, Row: c.Row, Request: requestOf(c), Dim: int32(c.Row),
				L2: float32(c.Seq)})
		}
		msg, err = schema.EncodeStats(h, out)
	case schema.KindRequests:
		var out []schema.RequestRow
		for _, c := range rows {
			out = append(out, schema.RequestRow{Seq: c.Seq, Row: c.Row, Event: schema.EventOpen,
				Number: c.Seq<<8 | uint64(c.Row), Request: requestOf(c), PromptTokens: int32(c.Row)})
		}
		msg, err = schema.EncodeRequests(h, out)
	case schema.KindLedger:
		var out []schema.LedgerRow
		for _, c := range rows {
			out = append(out, schema.LedgerRow{Seq: c.Seq, Row: c.Row, Fact: schema.FactAmend, Request: requestOf(c),
				Count: int32(c.Row)})
		}
		h.Hook = ""
		msg, err = schema.EncodeLedger(h, out)
	case schema.KindDetections:
		var out []schema.DetectionRow
		for _, c := range rows {
			out = append(out, schema.DetectionRow{Seq: c.Seq, Row: c.Row, ID: fmt.Sprint(c), EngineEpoch: 1,
				Request: requestOf(c)})
		}
		msg, err = schema.EncodeDetections(h, out)
	}
	if err != nil {
		panic(err)
	}
	return msg
}

// newSources makes a chain for each table and dtype. Chains have holes: records of
// other chains lie between their own, and rows of other tenants.
func newSources(r *rand.Rand, epochs int, records uint64) []*source {
	var out []*source
	for e := range epochs {
		base := schema.Header{Tenant: "t", Engine: "e", Rank: e, Epoch: 0xa0 + uint64(e), ShardCount: 1, Model: "m"}
		add := func(kind schema.Kind, hook string, layer int, dtype string, shape ...int) {
			h := base
			h.Kind, h.Hook, h.Layer, h.DType, h.Shape = kind, hook, layer, dtype, shape
			s := &source{header: h}
			for seq := uint64(1); seq <= records; seq++ {
				if r.IntN(3) == 0 {
					continue
				}
				row := r.Uint32N(3)
				for range 1 + r.IntN(4) {
					s.rows = append(s.rows, schema.Cursor{Seq: seq, Row: row})
					row += 1 + r.Uint32N(2)
				}
			}
			out = append(out, s)
		}
		add(schema.KindVectors, "resid_post", 0, "bf16", 4)
		add(schema.KindVectors, "resid_post", 1, "f32", 2)
		add(schema.KindVectors, "ids", -1, "i64")
		add(schema.KindVectors, "token_ids", -1, "i32")
		add(schema.KindStats, "q", 3, "bf16", 8)
		add(schema.KindRequests, schema.Hookless, -1, "")
		add(schema.KindLedger, schema.Hookless, -1, "")
		add(schema.KindDetections, schema.Hookless, -1, "")
	}
	return out
}

// shuffled publishes all rows, mixing chains, and sometimes as a new agent would:
// from an earlier record on, with other batches. With disorder, single messages
// also change places.
func shuffled(r *rand.Rand, sources []*source, disorder bool) [][]byte {
	var out [][]byte
	open := slices.Clone(sources)
	for len(open) > 0 {
		i := r.IntN(len(open))
		s := open[i]
		prev := schema.Cursor{}
		if s.next > 0 {
			last := s.rows[s.next-1]
			prev = schema.Cursor{Seq: last.Seq, Row: last.Row + 1}
		}
		from := s.next
		if s.next > 0 && r.IntN(4) == 0 { // attached anew
			from = r.IntN(s.next)
			for from > 0 && s.rows[from-1].Seq == s.rows[from].Seq {
				from--
			}
			prev = schema.Cursor{Seq: s.rows[from].Seq - 1, Row: ^uint32(0)}
		}
		for from <= s.next && from < len(s.rows) {
			to := min(from+1+r.IntN(12), len(s.rows))
			out = append(out, s.message(prev, from, to))
			prev = schema.Cursor{Seq: s.rows[to-1].Seq, Row: s.rows[to-1].Row + 1}
			if r.IntN(5) == 0 {
				out = append(out, out[len(out)-1]) // redelivered
			}
			from = to
			s.next = max(s.next, to)
		}
		if s.next == len(s.rows) {
			open = slices.Delete(open, i, i+1)
		}
	}
	for range len(out) * map[bool]int{true: 1}[disorder] {
		i := r.IntN(len(out) - 1)
		out[i], out[i+1] = out[i+1], out[i]
	}
	return out
}

// identity names a stored row in any table.
type identity struct {
	kind  schema.Kind
	epoch uint64
	hook  string
	layer int
	at    schema.Cursor
}

// stored reads the whole lake and fails on a row that is there twice or differs
// from what its identity says.
func stored(t testing.TB, lake string) map[identity]bool {
	t.Helper()
	l, err := lakehouse.Open(lake)
	if err != nil {
		t.Fatal(err)
	}
	got := map[identity]bool{}
	note := func(id identity) {
		if got[id] {
			t.Errorf("%+v is stored twice", id)
		}
		got[id] = true
	}
	storedTensors(t, l, note)
	ctx, all := context.Background(), lakehouse.Query{}
	events := uint64(0)
	err = l.Requests(ctx, all, func(r *lakehouse.Request) error {
		events++
		at := schema.Cursor{Seq: r.Number >> 8, Row: uint32(r.Number & 255)}
		note(identity{schema.KindRequests, r.Epoch, schema.Hookless, -1, at})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if rows := l.Totals().Rows["requests"]; rows != events {
		t.Errorf("%d request events are stored for %d requests", rows, events)
	}
	err = l.Ledger(ctx, all, func(f *lakehouse.Fact) error {
		if f.Fact == schema.FactAmend {
			note(identity{schema.KindLedger, f.Epoch, schema.Hookless, -1, schema.Cursor{Seq: f.Seq, Row: f.Row}})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// storedTensors reads vectors, tokens and figures.
func storedTensors(t testing.TB, l *lakehouse.Lake, note func(identity)) {
	t.Helper()
	ctx, all := context.Background(), lakehouse.Query{}
	err := l.Vectors(ctx, all, func(v *lakehouse.Vector) error {
		h := schema.Header{Epoch: v.Epoch, Layer: v.Layer, DType: v.DType, Shape: v.Shape}
		at := schema.Cursor{Seq: v.Seq, Row: v.Row}
		if string(v.Raw) != string(vecOf(&h, at)) || v.Request != requestOf(at) || v.Position != int32(v.Seq) {
			t.Errorf("%s layer %d %s holds other bytes or another request", v.Hook, v.Layer, at)
		}
		note(identity{schema.KindVectors, v.Epoch, v.Hook, v.Layer, at})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = l.Tokens(ctx, all, func(k *lakehouse.Token) error {
		h := schema.Header{Epoch: k.Epoch, Layer: k.Layer, DType: "i32"}
		at := schema.Cursor{Seq: k.Seq, Row: k.Row}
		if uint32(k.TokenID) != binary.LittleEndian.Uint32(vecOf(&h, at)) {
			t.Errorf("token %s is another one", at)
		}
		note(identity{schema.KindVectors, k.Epoch, k.Hook, k.Layer, at})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = l.VectorStats(ctx, all, func(s *lakehouse.VectorStats) error {
		if s.L2 != float32(s.Seq) || s.Dim != int32(s.Row) {
			t.Errorf("figures of %d:%d are others", s.Seq, s.Row)
		}
		note(identity{schema.KindStats, s.Epoch, s.Hook, s.Layer, schema.Cursor{Seq: s.Seq, Row: s.Row}})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// checkStored compares the lake with what was published.
func checkStored(t testing.TB, lake string, sources []*source) {
	t.Helper()
	got := stored(t, lake)
	want := 0
	for _, s := range sources {
		if s.header.Kind == schema.KindDetections {
			continue
		}
		for _, at := range s.rows {
			want++
			if h := s.header; !got[identity{h.Kind, h.Epoch, h.Hook, h.Layer, at}] {
				t.Errorf("%s %s layer %d epoch %x: row %s is missing", h.Kind, h.Hook, h.Layer, h.Epoch, at)
				return
			}
		}
	}
	if len(got) != want {
		t.Errorf("the lake has %d rows; %d were published", len(got), want)
	}
	checkDetections(t, lake, sources)
}

// checkDetections counts verdicts: the read side shows them without their run.
func checkDetections(t testing.TB, lake string, sources []*source) {
	t.Helper()
	l, err := lakehouse.Open(lake)
	if err != nil {
		t.Fatal(err)
	}
	got, want := 0, 0
	count := func(*schema.DetectionRow) error { got++; return nil }
	if err := l.Detections(context.Background(), lakehouse.Query{}, count); err != nil {
		t.Fatal(err)
	}
	for _, s := range sources {
		if s.header.Kind == schema.KindDetections {
			want += len(s.rows)
		}
	}
	if got != want {
		t.Errorf("the lake has %d verdicts; %d were published", got, want)
	}
}

// publish puts messages on a bus in their order and waits until all are stored.
func publish(t testing.TB, b bus.Bus, messages [][]byte) {
	t.Helper()
	if err := publishAll(b, messages); err != nil {
		t.Fatal(err)
	}
}

func publishAll(b bus.Bus, messages [][]byte) error {
	done := make(chan error, len(messages))
	for i, m := range messages {
		subject := "sonde.v1.t.e.0.k.h.0" // of what cannot be read
		if h, err := schema.DecodeHeader(m); err == nil {
			subject = schema.Subject(h)
		}
		err := b.Publish(context.Background(), bus.Message{Subject: subject, ID: fmt.Sprint(i), Data: m},
			func(_ uint64, err error) { done <- err })
		if err != nil {
			return err
		}
	}
	for range messages {
		if err := <-done; err != nil {
			return err
		}
	}
	return nil
}
