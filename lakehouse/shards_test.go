package lakehouse

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sonde/schema"
)

// shards writes rows of one shard, whose rank knows the request and has an epoch
// of its own.
func (b *builder) shard(epoch uint64, shard, count int, shape []int, rows ...schema.VectorRow) {
	b.t.Helper()
	h := header(epoch)
	h.Rank = shard
	b.add(schema.EncodeRequests(h, []schema.RequestRow{{Seq: 1, Event: schema.EventOpen, Number: 1, Request: "r"}}))
	h.Hook, h.Layer, h.Shard, h.ShardCount, h.DType, h.Shape = "h", 2, shard, count, "u8", shape
	if len(rows) > 0 {
		b.vectorsOf(h, rows...)
	}
}

func TestShardsAreJoinedAlongTheLastAxis(t *testing.T) {
	b := newBuilder(t)
	b.shard(1, 0, 2, []int{2, 2}, row(0, 1, 2, 5, 6), row(1, 11, 12, 15, 16))
	b.shard(2, 1, 2, []int{2, 1}, row(0, 3, 7), row(1, 13, 17)) // the parts need not be equal
	l := b.lake()
	got := mustTensor(t, l, ofH)
	want := []byte{1, 2, 3, 5, 6, 7, 11, 12, 13, 15, 16, 17}
	if !slices.Equal(got.Raw, want) || !slices.Equal(got.Shape, []int{2, 2, 3}) || got.ShardCount != 1 ||
		!slices.Equal(got.RowBytes, []int{6, 6}) || !slices.Equal(got.Positions, []int32{0, 1}) ||
		!slices.Equal(got.Passes, []int32{0, 0}) || got.Epoch != 1 {
		t.Errorf("got %+v", got)
	}
	for shard, want := range [][]byte{{1, 2, 5, 6, 11, 12, 15, 16}, {3, 7, 13, 17}} {
		q := ofH
		q.Shard = &shard
		if got := mustTensor(t, l, q); !slices.Equal(got.Raw, want) || got.ShardCount != 2 || got.Shard != shard {
			t.Errorf("shard %d: %+v", shard, got)
		}
	}
}

// A missing shard is named, whichever it is, and nothing takes its place.
func TestAMissingShardIsNamed(t *testing.T) {
	for lost := range 3 {
		b := newBuilder(t)
		for shard := range 3 {
			if shard != lost {
				b.shard(uint64(1+shard), shard, 3, []int{1}, row(0, 1), row(1, 2))
			} else {
				b.shard(uint64(1+shard), shard, 3, []int{1}) // its rank knows the request, but has no row
			}
		}
		l := b.lake()
		_, err := l.Tensor(ctx, ofH)
		var incomplete *IncompleteError
		want := "[0, 2): shard " + string(rune('0'+lost)) + " of 3 has no row: nothing of it is in the lake"
		if !errors.As(err, &incomplete) || !strings.Contains(err.Error(), want) || incomplete.Rows != 0 {
			t.Errorf("%v; want %s", err, want)
		}
		q := ofH
		q.AllowPartial = true
		if got := mustTensor(t, l, q); len(got.Positions) != 0 || len(got.Raw) != 0 || len(got.Missing) != 1 {
			t.Errorf("got %+v", got)
		}
	}
}

func TestARowThatOneShardLacksIsMissingInTheWhole(t *testing.T) {
	b := newBuilder(t)
	b.shard(1, 0, 2, []int{1}, row(0, 1), row(1, 2), row(2, 3))
	b.shard(2, 1, 2, []int{1}, row(0, 11), row(2, 13))
	l := b.lake()
	q := ofH
	q.AllowPartial = true
	got := mustTensor(t, l, q)
	if !slices.Equal(got.Raw, []byte{1, 11, 3, 13}) || !slices.Equal(got.Positions, []int32{0, 2}) ||
		len(got.Missing) != 1 || !strings.HasPrefix(got.Missing[0].String(), "[1, 2): shard 1 of 2 has no row") {
		t.Errorf("got %+v", got)
	}
}

// A request id that was used twice is chosen by an epoch of any of its ranks.
func TestShardsOfOneRunAreNotMixedWithThoseOfAnother(t *testing.T) {
	b := newBuilder(t)
	for run := range uint64(2) {
		for shard := range 2 {
			h := header(10*run + uint64(shard) + 1)
			h.Rank = shard
			h.Hook, h.Layer, h.Shard, h.ShardCount, h.DType, h.Shape = "h", 2, shard, 2, "u8", []int{1}
			r := row(0, byte(10*run)+byte(shard))
			r.Number = run + 1
			b.vectorsOf(h, r)
		}
	}
	l := b.lake()
	var ambiguous *AmbiguousError
	if _, err := l.Tensor(ctx, ofH); !errors.As(err, &ambiguous) {
		t.Errorf("%v", err)
	}
	for epoch, want := range map[uint64][]byte{1: {0, 1}, 2: {0, 1}, 11: {10, 11}, 12: {10, 11}} {
		q := ofH
		q.Epoch = &epoch
		got, err := l.Tensor(ctx, q)
		if err != nil || !slices.Equal(got.Raw, want) {
			t.Errorf("epoch %d: %+v, %v", epoch, got, err)
		}
	}
}

func TestShardsThatDoNotFitAreAnError(t *testing.T) {
	pass1 := row(0, 1)
	pass1.Pass = 1
	for want, build := range map[string]func(b *builder){
		"cannot be joined": func(b *builder) {
			b.shard(1, 0, 2, []int{1, 2}, row(0, 1, 2))
			b.shard(2, 1, 2, []int{2, 1}, row(0, 1, 2))
		},
		"different passes of position 0": func(b *builder) {
			b.shard(1, 0, 2, []int{1}, row(0, 1))
			b.shard(2, 1, 2, []int{1}, pass1)
		},
		"shards of 3 and of 2": func(b *builder) {
			b.shard(1, 0, 3, []int{1}, row(0, 1))
			b.shard(2, 1, 2, []int{1}, row(0, 1))
		},
	} {
		b := newBuilder(t)
		build(b)
		if _, err := b.lake().Tensor(ctx, ofH); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}
