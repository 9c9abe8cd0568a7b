package crash

import (
	"fmt"
	"slices"

	"sonde/lakehouse/account"
	"sonde/producer"
	"sonde/ring2"
	"sonde/schema"
	"sonde/trials/oracle"
)

// store is a consumer of the stream that drops what it has seen by a watermark and
// spans for each chain, as the bounded state of a table allows. It also remembers
// every row: both must agree. Only a row that an agent dropped for its budget, and
// the next one did not, is covered and was never there: the next one says so.
type store struct {
	budget bool
	chains map[schema.ChainKey]*chain
	facts  []account.Fact
	rows   []vector
}

type chain struct {
	mark  schema.Cursor // everything below was seen
	spans []span        // seen above it
	seen  map[schema.Cursor]bool
}

type span struct{ from, to schema.Cursor }

func (c *chain) covers(at schema.Cursor) bool {
	return at.Less(c.mark) || slices.ContainsFunc(c.spans, func(s span) bool { return !at.Less(s.from) && at.Less(s.to) })
}

// cover takes what a message says about its chain.
func (c *chain) cover(h *schema.Header) {
	c.spans = append(c.spans, span{h.Prev, h.Last()})
	for joined := true; joined; {
		joined = false
		c.spans = slices.DeleteFunc(c.spans, func(s span) bool {
			if c.mark.Less(s.from) {
				return false
			}
			if c.mark.Less(s.to) {
				c.mark, joined = s.to, true
			}
			return true
		})
	}
}

type vector struct {
	key oracle.Key
	id  account.Row
	raw []byte
}

func newStore(budget bool) *store {
	return &store{budget: budget, chains: map[schema.ChainKey]*chain{}}
}

func (s *store) take(b *schema.Batch) error {
	h := &b.Header
	key := h.Chain()
	c := s.chains[key]
	if c == nil {
		c = &chain{seen: map[schema.Cursor]bool{}}
		s.chains[key] = c
	}
	place := func(i int) schema.Cursor {
		switch h.Kind {
		case schema.KindVectors:
			v := b.Vector(i)
			return schema.Cursor{Seq: v.Seq, Row: v.Row}
		case schema.KindStats:
			v := b.Stats(i)
			return schema.Cursor{Seq: v.Seq, Row: v.Row}
		case schema.KindRequests:
			q := b.RequestAt(i)
			return schema.Cursor{Seq: q.Seq, Row: q.Row}
		default:
			f := b.Ledger(i)
			return schema.Cursor{Seq: f.Seq, Row: f.Row}
		}
	}
	var bad error
	for i := range b.Len() {
		at := place(i)
		covered := c.covers(at)
		mayDiffer := s.budget && covered && (h.Kind == schema.KindVectors || h.Kind == schema.KindStats)
		if covered != c.seen[at] && !mayDiffer && bad == nil {
			bad = fmt.Errorf("row %v of chain %v: covered is %v, seen before is %v (watermark %v, %d spans)", at, key, covered,
				c.seen[at], c.mark, len(c.spans))
		}
		if covered {
			continue
		}
		c.seen[at] = true
		s.add(b, i)
	}
	c.cover(h)
	return bad
}

func (s *store) add(b *schema.Batch, i int) {
	h := &b.Header
	switch h.Kind {
	case schema.KindVectors:
		v := b.Vector(i)
		s.rows = append(s.rows, vector{
			key: oracle.Key{Epoch: h.Epoch, Request: v.Request, Sample: int(v.Sample), Position: int(v.Position),
				Pass: int(v.Pass), Hook: h.Hook, Layer: h.Layer},
			id:  account.Row{Epoch: h.Epoch, Hook: h.Hook, Layer: h.Layer, Shard: h.Shard, Seq: v.Seq, Row: v.Row},
			raw: slices.Clone(v.Vec)})
	case schema.KindStats:
		s.addStats(h, b.Stats(i))
	case schema.KindLedger:
		s.facts = append(s.facts, account.Fact{Epoch: h.Epoch, Engine: h.Engine, Rank: h.Rank, Tenant: h.Tenant,
			LedgerRow: b.Ledger(i)})
	}
}

// addStats adds a row of which only figures came: when they are those of the
// right row, that row stands for them.
func (s *store) addStats(h *schema.Header, v schema.StatsRow) {
	k := oracle.Key{Epoch: h.Epoch, Request: v.Request, Sample: int(v.Sample), Position: int(v.Position),
		Pass: int(v.Pass), Hook: h.Hook, Layer: h.Layer}
	en := entryOf(h.Hook, h.Layer)
	raw := rowOf(k, en)
	want := producer.RowStats(raw, en.DType)
	want.Seq, want.Row, want.Number, want.Request, want.Sample = v.Seq, v.Row, v.Number, v.Request, v.Sample
	want.Position, want.Pass, want.Phase, want.CaptureNS = v.Position, v.Pass, v.Phase, v.CaptureNS
	if fmt.Sprint(want) != fmt.Sprint(v) {
		raw = []byte(fmt.Sprintf("figures %v instead of %v", v, want))
	}
	s.rows = append(s.rows, vector{key: k, raw: raw,
		id: account.Row{Epoch: h.Epoch, Hook: h.Hook, Layer: h.Layer, Shard: h.Shard, Seq: v.Seq, Row: v.Row}})
}

func entryOf(hook string, layer int) *ring2.LayoutEntry {
	for i := range layouts {
		for j := range layouts[i] {
			if en := &layouts[i][j]; en.Hook == hook && en.Layer == layer {
				return en
			}
		}
	}
	panic("no such hook: " + hook)
}
