package bustap

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"sonde/bus"
	"sonde/producer"
	"sonde/ring2"
	"sonde/schema"
)

func chainOf(h *schema.Header) Chain {
	return Chain{Kind: string(h.Kind), Tenant: h.Tenant, Engine: h.Engine, Rank: h.Rank,
		Epoch: fmt.Sprintf("%016x", h.Epoch), Hook: h.Hook, Layer: h.Layer}
}

// messageLine describes a whole message.
func (t *tap) messageLine(d *bus.Delivery, b *schema.Batch) *Message {
	h := &b.Header
	m := &Message{Type: "message", Place: t.place(d), StoredNS: d.Stored.UnixNano(), Chain: chainOf(h), DType: h.DType,
		Shape: h.Shape, Rows: b.Len(), Bytes: len(d.Data), First: h.First().String(), Last: h.Last().String()}
	words := map[string]int{}
	var f figures
	for i := range b.Len() {
		switch h.Kind {
		case schema.KindVectors, schema.KindStats:
			if t.o.Stats {
				f.add(h, b, i)
			}
		case schema.KindDetections:
			d := b.Detection(i)
			words[fmt.Sprintf("%s: request %s, sample %d, position %d", word(b, i), d.Request, d.Sample, d.Position)]++
		default:
			words[word(b, i)]++
		}
	}
	m.Text, m.Stats = summary(words), f.stats()
	return m
}

// word is what a row that is no tensor says, without the request.
func word(b *schema.Batch, i int) string {
	switch b.Header.Kind {
	case schema.KindRequests:
		r := b.RequestAt(i)
		return strings.TrimSpace(r.Event + " " + r.Reason)
	case schema.KindLedger:
		r := b.Ledger(i)
		return strings.TrimSpace(r.Fact + " " + r.Outcome + " " + r.Reason)
	}
	r := b.Detection(i)
	return strings.TrimSpace(r.Detector + " " + r.Level + " " + r.Outcome)
}

// maxWords bounds the different things that a line says of a message.
const maxWords = 4

func summary(words map[string]int) string {
	keys := slices.SortedFunc(maps.Keys(words), func(a, b string) int {
		if words[a] != words[b] {
			return words[b] - words[a]
		}
		return strings.Compare(a, b)
	})
	var out []string
	for i, k := range keys {
		if i == maxWords {
			out = append(out, fmt.Sprintf("and %d more", len(keys)-i))
			break
		}
		if n := words[k]; n > 1 {
			out = append(out, fmt.Sprintf("%d x %s", n, clip(k)))
		} else {
			out = append(out, clip(k))
		}
	}
	return strings.Join(out, ", ")
}

func clip(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// rowLine describes row i, without figures; false: it belongs to another request.
func (t *tap) rowLine(d *bus.Delivery, b *schema.Batch, i int, request string) (*Row, bool) {
	r := Row{Type: "row", Place: t.place(d), StoredNS: d.Stored.UnixNano(), Chain: chainOf(&b.Header)}
	return &r, r.fill(b, i, request)
}

// fill reads row i; false: it belongs to another request.
func (r *Row) fill(b *schema.Batch, i int, request string) bool {
	switch b.Header.Kind {
	case schema.KindVectors:
		v := b.Vector(i)
		r.Seq, r.Row, r.Request, r.Sample = v.Seq, v.Row, v.Request, v.Sample
		r.TokenPosition, r.Pass, r.Phase = v.Position, v.Pass, phase(v.Phase)
	case schema.KindStats:
		v := b.Stats(i)
		r.Seq, r.Row, r.Request, r.Sample = v.Seq, v.Row, v.Request, v.Sample
		r.TokenPosition, r.Pass, r.Phase = v.Position, v.Pass, phase(v.Phase)
	case schema.KindRequests:
		v := b.RequestAt(i)
		r.Seq, r.Row, r.Request, r.Sample = v.Seq, v.Row, v.Request, v.Sample
		r.Text = fmt.Sprintf("%s, %d prompt tokens, %d generated", word(b, i), v.PromptTokens, v.GeneratedTokens)
	case schema.KindLedger:
		v := b.Ledger(i)
		r.Seq, r.Row, r.Request, r.Sample = v.Seq, v.Row, v.Request, v.Sample
		r.TokenPosition, r.Pass, r.Phase = v.Position, v.Pass, phase(v.Phase)
		r.Text = fmt.Sprintf("%s: %d tokens, %d rows", word(b, i), v.Count, v.Rows)
	case schema.KindDetections:
		v := b.Detection(i)
		r.Seq, r.Row, r.Request, r.Sample, r.TokenPosition = v.Seq, v.Row, v.Request, v.Sample, v.Position
		r.Text = fmt.Sprintf("%s: score %.4g over %.4g", word(b, i), v.Score, v.Threshold)
	}
	return r.Request == request
}

func phase(p uint8) string {
	switch p {
	case schema.PhasePrefill:
		return "prefill"
	case schema.PhaseDecode:
		return "decode"
	case schema.PhaseRecompute:
		return "recompute"
	}
	return fmt.Sprintf("phase %d", p)
}

// figures collects those of several rows.
type figures struct {
	rows      int
	l2, mean  float64 // sums
	most, abs float64
	nonFinite int64
}

// add takes row i, when it is of a tensor with a dtype that this program knows.
func (f *figures) add(h *schema.Header, b *schema.Batch, i int) {
	var s schema.StatsRow
	switch h.Kind {
	case schema.KindVectors:
		dtype, err := ring2.ParseDType(h.DType)
		if err != nil {
			return
		}
		s = producer.RowStats(b.Vector(i).Vec, dtype)
	case schema.KindStats:
		s = b.Stats(i)
	default:
		return
	}
	f.rows++
	f.l2 += float64(s.L2)
	f.mean += float64(s.Mean)
	f.most, f.abs = math.Max(f.most, float64(s.L2)), math.Max(f.abs, float64(s.AbsMax))
	f.nonFinite += int64(s.NonFinite)
}

func (f *figures) stats() *Stats {
	if f.rows == 0 {
		return nil
	}
	n := float64(f.rows)
	return &Stats{L2Mean: Figure(f.l2 / n), L2Max: Figure(f.most), Mean: Figure(f.mean / n), AbsMax: Figure(f.abs),
		NonFinite: f.nonFinite}
}
