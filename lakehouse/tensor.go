package lakehouse

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sonde/lakehouse/table"
)

// ErrNotFound: the lake knows nothing of what was asked for. The error that wraps
// it lists what there is.
var ErrNotFound = errors.New("not in the lake")

// MaxTensorBytes bounds what one Tensor holds; ask for ranges of positions beyond.
const MaxTensorBytes = 4 << 30

// Tensor is the accepted rows of one sample of one request at one hook, ordered by
// position. A position that was computed more than once is there with its last
// pass that is stored and was not rejected.
type Tensor struct {
	Request    string
	Sample     int
	Hook       string
	Layer      int // -1: none
	Shard      int
	ShardCount int // above 1, the rows are only the part Shard of the tensor, as the query wanted
	Epoch      uint64
	Number     uint64
	DType      string  // of Raw, as in schema.Header
	Shape      []int   // rows, then the shape of a row; of ragged rows, of one element of a row
	Ragged     bool    // rows differ in length
	Positions  []int32 // of each row, in tokens
	Passes     []int32 // of each row
	Raw        []byte  // row after row as captured, little-endian
	RowBytes   []int   // of each row
	Missing    []Gap   // with AllowPartial only: positions that have no row

	cached int32 // prompt tokens that the prefix cache served
}

// Gap is a run of positions [From, To) without rows.
type Gap struct {
	From, To int32
	Reason   string
}

func (g Gap) String() string { return fmt.Sprintf("[%d, %d): %s", g.From, g.To, g.Reason) }

// IncompleteError says which positions a tensor lacks and why.
type IncompleteError struct {
	Request      string
	Sample       int
	Hook         string
	Layer        int
	Rows         int // that are there
	Gaps         []Gap
	CachedTokens int32 // prompt tokens that the prefix cache served: never computed in this request
}

func (e *IncompleteError) Error() string {
	const most = 8
	var b strings.Builder
	fmt.Fprintf(&b, "tensor %s layer %d of request %s sample %d is incomplete: %d rows are there, and positions", e.Hook,
		e.Layer, e.Request, e.Sample, e.Rows)
	for i, g := range e.Gaps {
		if i == most {
			fmt.Fprintf(&b, "; and %d more gaps", len(e.Gaps)-most)
			break
		}
		if i > 0 {
			b.WriteByte(';')
		}
		fmt.Fprintf(&b, " %s", g)
	}
	b.WriteString("; ask for other positions, or allow partial tensors")
	return b.String()
}

// AmbiguousError: the request id stands for several sequences.
type AmbiguousError struct {
	Request   string
	Sample    int
	Sequences []Sequence
}

// Sequence is one sequence of an engine: one sample of one request.
type Sequence struct{ Epoch, Number uint64 }

func (e *AmbiguousError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "request %s sample %d was computed more than once; choose by epoch and number:", e.Request, e.Sample)
	for i, s := range e.Sequences {
		if i == 8 {
			b.WriteString(" ...")
			break
		}
		fmt.Fprintf(&b, " %016x/%d", s.Epoch, s.Number)
	}
	return b.String()
}

// Tensor reads the accepted rows that q asks for. When positions are missing, the
// error is an *IncompleteError that names them with the reasons from the ledger;
// with AllowPartial they are listed in Missing instead. Nothing is ever filled
// with zeros. Missing is what the ledger expects and the tables lack, and a prompt
// prefix that came from the cache. With From or To set it is every position of the
// range without a row, but for positions that the engine took back.
//
// A tensor that was split over ranks is joined along the last axis of its rows,
// unless q asks for one shard; a position that a shard lacks is missing, and the
// reason names the shard. Epoch and Number are then those of the first shard.
func (l *Lake) Tensor(ctx context.Context, q TensorQuery) (*Tensor, error) {
	if q.From < 0 || q.To < 0 || q.To > 0 && q.To <= q.From {
		return nil, fmt.Errorf("read a tensor: positions [%d, %d) are no range", q.From, q.To)
	}
	state := &Lake{dir: l.dir} // of one commit, whatever Refresh does meanwhile
	state.state.Store(l.state.Load())
	var t *Tensor
	var err error
	if q.Shard == nil {
		t, err = state.whole(ctx, q)
	} else {
		t, err = state.part(ctx, q, *q.Shard)
	}
	if err != nil {
		return nil, fmt.Errorf("read a tensor: %w", err)
	}
	if len(t.Missing) > 0 && !q.AllowPartial {
		return nil, &IncompleteError{Request: q.Request, Sample: q.Sample, Hook: q.Hook, Layer: q.Layer,
			Rows: len(t.Positions), Gaps: t.Missing, CachedTokens: t.cached}
	}
	return t, nil
}

// part reads one shard, and lists what it lacks in Missing.
func (l *Lake) part(ctx context.Context, q TensorQuery, shard int) (*Tensor, error) {
	c := &collector{q: q, shard: shard, rows: map[rowKey]tensorRow{}, ranks: map[Sequence]rank{}}
	if err := c.collect(ctx, l); err != nil {
		return nil, err
	}
	sequence, err := c.sequence(ctx, l)
	if err != nil {
		return nil, err
	}
	why := newLedgerView(q, shard, sequence, c.request)
	if err := why.read(ctx, l); err != nil {
		return nil, err
	}
	t, err := c.tensor(sequence, why)
	if err != nil {
		return nil, err
	}
	t.Missing, t.cached = why.gaps(t.Positions), c.request.CachedTokens
	if len(t.Positions) == 0 && len(t.Missing) == 0 {
		return nil, c.notFound(ctx, l)
	}
	return t, nil
}

type rowKey struct {
	sequence       Sequence
	position, pass int32
}

type tensorRow struct {
	raw        []byte
	dtype      string
	shape      []int
	ragged     bool
	shardCount int
}

// collector gathers the rows of a tensor from vectors and tokens.
type collector struct {
	q       TensorQuery
	shard   int
	rows    map[rowKey]tensorRow
	bytes   int
	ranks   map[Sequence]rank // that computed the rows
	request Request           // merged events of the sequence
}

// rank is one process of an engine. Each has epochs of its own.
type rank struct {
	engine string
	rank   int
}

func (c *collector) query(shard int) Query {
	q := c.q
	return Query{Request: q.Request, Sample: &q.Sample, Hook: q.Hook, Layer: &q.Layer, Shard: &shard, Epoch: q.Epoch,
		Number: q.Number}
}

func (c *collector) wants(position int32) bool {
	return int(position) >= c.q.From && (c.q.To == 0 || int(position) < c.q.To)
}

func (c *collector) add(k rowKey, o *table.Origin, r tensorRow) error {
	c.ranks[k.sequence] = rank{o.Engine, o.Rank}
	if !c.wants(k.position) {
		return nil
	}
	if c.bytes += len(r.raw); c.bytes > MaxTensorBytes {
		return fmt.Errorf("it has more than %d bytes: ask for a range of positions", MaxTensorBytes)
	}
	c.rows[k] = r
	return nil
}

func (c *collector) collect(ctx context.Context, l *Lake) error {
	err := l.Vectors(ctx, c.query(c.shard), func(v *Vector) error {
		return c.add(rowKey{Sequence{v.Epoch, v.Number}, v.Position, v.Pass}, &v.Origin,
			tensorRow{v.Raw, v.DType, v.Shape, v.Ragged, v.ShardCount})
	})
	if err != nil || c.q.Hook != tokenHook {
		return err
	}
	return l.Tokens(ctx, c.query(c.shard), func(t *Token) error {
		return c.add(rowKey{Sequence{t.Epoch, t.Number}, t.Position, t.Pass}, &t.Origin, tensorRow{
			binary.LittleEndian.AppendUint32(nil, uint32(t.TokenID)), "i32", nil, false, t.ShardCount})
	})
}

// sequence finds the one sequence that is asked for, by its rows and by the events
// of its request. Other ranks of the same engine know the request too.
func (c *collector) sequence(ctx context.Context, l *Lake) (Sequence, error) {
	found := map[Sequence]*Request{}
	for s := range c.ranks {
		found[s] = nil
	}
	q := Query{Request: c.q.Request, Sample: &c.q.Sample, Epoch: c.q.Epoch, Number: c.q.Number}
	err := l.Requests(ctx, q, func(r *Request) error {
		if s := (Sequence{r.Epoch, r.Number}); !c.otherRank(s, rank{r.Engine, r.Rank}) {
			found[s] = r
		}
		return nil
	})
	if err != nil {
		return Sequence{}, err
	}
	if len(found) == 0 {
		return Sequence{}, c.notFound(ctx, l)
	}
	all := slices.SortedFunc(maps.Keys(found), func(a, b Sequence) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Number, b.Number))
	})
	if len(all) > 1 {
		return Sequence{}, &AmbiguousError{Request: c.q.Request, Sample: c.q.Sample, Sequences: all}
	}
	if r := found[all[0]]; r != nil {
		c.request = *r
	}
	return all[0], nil
}

// otherRank reports whether a request without rows is the same one as one with
// rows, seen by another rank of its engine.
func (c *collector) otherRank(s Sequence, of rank) bool {
	if _, hasRows := c.ranks[s]; hasRows {
		return false
	}
	for _, r := range c.ranks {
		if r.engine == of.engine && r.rank != of.rank {
			return true
		}
	}
	return false
}

// tensor puts the accepted rows together.
func (c *collector) tensor(s Sequence, why *ledgerView) (*Tensor, error) {
	last := map[int32]rowKey{}
	for k := range c.rows {
		if why.rejected(k.position, k.pass) {
			continue
		}
		if old, ok := last[k.position]; !ok || k.pass > old.pass {
			last[k.position] = k
		}
	}
	t := &Tensor{Request: c.q.Request, Sample: c.q.Sample, Hook: c.q.Hook, Layer: c.q.Layer, Shard: c.shard,
		Epoch: s.Epoch, Number: s.Number, Positions: slices.Sorted(maps.Keys(last))}
	var shape []int
	for i, p := range t.Positions {
		r := c.rows[last[p]]
		if i == 0 {
			t.DType, t.Ragged, t.ShardCount, shape = r.dtype, r.ragged, r.shardCount, r.shape
		} else if r.dtype != t.DType || r.ragged != t.Ragged || !slices.Equal(r.shape, shape) {
			return nil, fmt.Errorf("rows differ: position %d is %s %v, and position %d is %s %v", t.Positions[0], t.DType,
				shape, p, r.dtype, r.shape)
		}
		t.Passes = append(t.Passes, last[p].pass)
		t.RowBytes = append(t.RowBytes, len(r.raw))
		t.Raw = append(t.Raw, r.raw...)
	}
	t.Shape = append([]int{len(t.Positions)}, shape...)
	return t, nil
}

// maxListed bounds the hooks of a request that an error lists.
const maxListed = 100

// notFound lists what there is of the request instead.
func (c *collector) notFound(ctx context.Context, l *Lake) error {
	type key struct {
		hook   string
		sample int32
	}
	seen := map[key]map[int]bool{}
	note := func(p *table.Place) error {
		k := key{p.Hook, p.Sample}
		if seen[k] == nil && len(seen) < maxListed {
			seen[k] = map[int]bool{}
		}
		if seen[k] != nil {
			seen[k][p.Layer] = true
		}
		return nil
	}
	q := Query{Request: c.q.Request}
	err := l.vectors(ctx, q, true, func(v *Vector) error { return note(&v.Place) })
	if err == nil {
		err = l.Tokens(ctx, q, func(t *Token) error { return note(&t.Place) })
	}
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%s layer %d of request %q sample %d", c.q.Hook, c.q.Layer, c.q.Request, c.q.Sample)
	if len(seen) == 0 {
		return fmt.Errorf("%s: %w, nor is any other row of this request", what, ErrNotFound)
	}
	var there []string
	for k, layers := range seen {
		list := strings.Trim(fmt.Sprint(slices.Sorted(maps.Keys(layers))), "[]")
		there = append(there, fmt.Sprintf("%s layers %s sample %d", k.hook, list, k.sample))
	}
	slices.Sort(there)
	return fmt.Errorf("%s: %w; of this request there are: %s", what, ErrNotFound, strings.Join(there, ", "))
}
