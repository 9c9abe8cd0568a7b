package lakehouse

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// whole reads a tensor of which the query names no shard: its shards, when it was
// split over ranks, joined along the last axis of a row.
func (l *Lake) whole(ctx context.Context, q TensorQuery) (*Tensor, error) {
	first, err := l.part(ctx, q, 0)
	if err == nil && len(first.Positions) > 0 && first.ShardCount <= 1 {
		return first, nil
	}
	shards, count, countErr := l.shardsOf(ctx, q)
	if countErr != nil {
		return nil, countErr
	}
	if count <= 1 {
		return first, err
	}
	parts := map[int]*Tensor{}
	if err := l.take(ctx, q, shards, parts); err != nil {
		return nil, err
	}
	if q.Epoch != nil && len(parts) > 0 {
		// Each rank has epochs of its own, so the one that is asked for is that of one
		// rank. In the others the sequence has another epoch, and the same number.
		q.Epoch, q.Number = nil, &parts[slices.Min(slices.Collect(maps.Keys(parts)))].Number
		if err := l.take(ctx, q, shards, parts); err != nil {
			return nil, err
		}
	}
	if len(parts) == 0 {
		return nil, err // that of the first part
	}
	return join(parts, count)
}

// take reads the shards that parts does not hold yet, as far as they are there.
func (l *Lake) take(ctx context.Context, q TensorQuery, shards []int, parts map[int]*Tensor) error {
	for _, s := range shards {
		if parts[s] != nil {
			continue
		}
		t, err := l.part(ctx, q, s)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("shard %d: %w", s, err)
		}
		parts[s] = t
	}
	return nil
}

// shardsOf lists the shards that have rows, ascending, and how many there should be.
func (l *Lake) shardsOf(ctx context.Context, q TensorQuery) (shards []int, count int, err error) {
	found := map[int]bool{}
	c := &collector{q: q}
	every := c.query(0)
	every.Shard, every.Epoch, every.Number = nil, nil, nil
	note := func(shard, of int) error {
		if found[shard] = true; count != 0 && of != count || shard < 0 || shard >= max(of, 1) {
			return fmt.Errorf("its rows say that they are shards of %d and of %d, one of them shard %d", count, of, shard)
		}
		count = of
		return nil
	}
	err = l.vectors(ctx, every, true, func(v *Vector) error { return note(v.Shard, v.ShardCount) })
	if err == nil && q.Hook == tokenHook {
		err = l.Tokens(ctx, every, func(t *Token) error { return note(t.Shard, t.ShardCount) })
	}
	return slices.Sorted(maps.Keys(found)), count, err
}

// join puts shards side by side. A position that one of them lacks is missing.
func join(parts map[int]*Tensor, count int) (*Tensor, error) {
	first := parts[slices.Min(slices.Collect(maps.Keys(parts)))]
	places, why := map[int32]bool{}, map[int32]string{}
	for _, t := range parts {
		for _, p := range t.Positions {
			places[p] = true
		}
	}
	for s := range count {
		lacking := maps.Clone(places)
		reasons := map[int32]string{}
		if t := parts[s]; t != nil {
			for _, p := range t.Positions {
				delete(lacking, p)
			}
			for _, g := range t.Missing {
				for p := g.From; p < g.To; p++ {
					lacking[p], reasons[p] = true, g.Reason
				}
			}
		}
		for p := range lacking {
			if reasons[p] == "" {
				reasons[p] = "nothing of it is in the lake"
			}
			if why[p] == "" {
				why[p] = fmt.Sprintf("shard %d of %d has no row: %s", s, count, reasons[p])
			}
		}
	}
	out := *first
	out.Shard, out.ShardCount = 0, 1
	out.Missing = runs(slices.Sorted(maps.Keys(why)), why)
	out.Positions, out.Passes, out.Raw, out.RowBytes = nil, nil, nil, nil
	for _, p := range slices.Sorted(maps.Keys(places)) {
		if why[p] == "" {
			out.Positions = append(out.Positions, p)
		}
	}
	if len(parts) < count {
		return &out, nil // no row is whole
	}
	return &out, out.sideBySide(parts)
}

// sideBySide fills in the rows at the positions of t.
func (t *Tensor) sideBySide(parts map[int]*Tensor) error {
	const oneByOne = "read them one by one, each by its shard"
	outer, width, total := 1, make([]int, len(parts)), 0
	for s := range parts {
		p := parts[s]
		if p.Ragged || p.DType != t.DType || len(p.Shape) < 2 || len(p.Shape) != len(t.Shape) ||
			!slices.Equal(p.Shape[1:len(p.Shape)-1], t.Shape[1:len(t.Shape)-1]) {
			return fmt.Errorf("shard %d is %s %v, and another one %s %v: they cannot be joined; %s", s, p.DType, p.Shape,
				t.DType, t.Shape, oneByOne)
		}
		width[s] = p.Shape[len(p.Shape)-1] * elementBytes[p.DType]
		total += p.Shape[len(p.Shape)-1]
	}
	shape := slices.Clone(t.Shape)
	shape[0], shape[len(shape)-1] = len(t.Positions), total
	for _, n := range shape[1 : len(shape)-1] {
		outer *= n
	}
	t.Shape = shape
	for _, position := range t.Positions {
		before := len(t.Raw)
		for o := range outer {
			for s := range len(parts) {
				p := parts[s]
				i, _ := slices.BinarySearch(p.Positions, position)
				if s == 0 && o == 0 {
					t.Passes = append(t.Passes, p.Passes[i])
				} else if p.Passes[i] != t.Passes[len(t.Passes)-1] {
					return fmt.Errorf("shards have different passes of position %d; %s", position, oneByOne)
				}
				at := (i*outer + o) * width[s]
				t.Raw = append(t.Raw, p.Raw[at:at+width[s]]...)
			}
		}
		t.RowBytes = append(t.RowBytes, len(t.Raw)-before)
	}
	return nil
}
