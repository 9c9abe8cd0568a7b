package edges

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sonde/lakehouse"
	"sonde/ring2"
)

// Two ranks of a tensor-parallel engine hold the two halves of each row. Read back,
// a row is whole and in the order of the shards; where one rank had no room, the
// row is missing, and the error names its shard.
func TestShardsOfTwoRanksAreOneTensor(t *testing.T) {
	const requests, tokens = 8, 20
	r := newRig(t, setup{})
	r.start()
	entry := func(shard uint16) []ring2.LayoutEntry {
		return []ring2.LayoutEntry{
			{Hook: "z", Layer: 4, DType: ring2.U8, Shape: []uint32{2, 5 + uint32(shard)}, Shard: shard, ShardCount: 2}}
	}
	var both []*rank
	for n := range 2 {
		o := patientWriter
		o.Rank, o.RankCount = n, 2
		both = append(both, r.newRank(o, entry(uint16(n))))
	}
	for shard, k := range both {
		for n := range uint64(requests) {
			k.open(n, 1)
			for p := range tokens {
				if shard == 1 && n == 7 {
					continue // this rank never computed the last request
				}
				k.step(k.tokens(n, p, 1))
			}
			k.end(n, 1, tokens-1)
		}
	}
	for _, k := range both {
		k.goodbye()
	}
	r.rest(2)
	l, err := lakehouse.Open(r.lake)
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint64(requests - 1) {
		got, err := l.Tensor(t.Context(), lakehouse.TensorQuery{Request: requestName(n), Hook: "z", Layer: 4})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.Shape, []int{tokens, 2, 11}) || !slices.Equal(got.Raw, wholeRows(n, tokens)) {
			t.Fatalf("request %d is read back as %v, and not as its two halves", n, got.Shape)
		}
	}
	_, err = l.Tensor(t.Context(), lakehouse.TensorQuery{Request: requestName(7), Hook: "z", Layer: 4})
	var incomplete *lakehouse.IncompleteError
	if !errors.As(err, &incomplete) || !strings.Contains(err.Error(), "[0, 20): shard 1 of 2 has no row") {
		t.Errorf("the request that one rank did not compute: %v", err)
	}
	out, code := sonde(t, "lake", "--lake", r.lake, "show", requestName(1))
	if code != 0 || !strings.Contains(out, "u8 [2 5], shard 0 of 2") || !strings.Contains(out, "u8 [2 6], shard 1 of 2") {
		t.Errorf("lake show exits with %d and says\n%s", code, out)
	}
}

// wholeRows puts the halves that fillRow makes side by side.
func wholeRows(number uint64, tokens int) []byte {
	var out []byte
	for p := range int32(tokens) {
		left, right := make([]byte, 10), make([]byte, 12)
		fillRow(left, number, p, "z", 4)
		fillRow(right, number, p, "z", 4)
		for o := range 2 {
			out = append(append(out, left[5*o:5*o+5]...), right[6*o:6*o+6]...)
		}
	}
	return out
}
