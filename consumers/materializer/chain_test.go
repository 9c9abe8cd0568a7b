package materializer

import (
	"math/rand/v2"
	"testing"

	"sonde/schema"
)

func newRandom(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// The model is a set of rows: every span that was added covers its rows, and only
// those count as seen. Records 1 to 8 have rows 0 to 9.
func TestChainRemembersExactlyWhatWasSeen(t *testing.T) {
	r := newRandom(t)
	cursor := func() schema.Cursor { return schema.Cursor{Seq: 1 + r.Uint64N(8), Row: r.Uint32N(11)} }
	for range 2000 {
		c := &chain{}
		seen := map[schema.Cursor]bool{}
		for range 1 + r.IntN(12) {
			a, b := cursor(), cursor()
			if r.IntN(6) == 0 {
				a = schema.Cursor{}
			}
			if b.Less(a) {
				a, b = b, a
			}
			c.add(a, b)
			for seq := uint64(1); seq <= 8; seq++ {
				for row := range uint32(11) {
					if x := (schema.Cursor{Seq: seq, Row: row}); !x.Less(a) && x.Less(b) {
						seen[x] = true
					}
				}
			}
			if c2, err := parseChain(c.String()); err != nil || c2.String() != c.String() {
				t.Fatalf("%s comes back as %v, %v", c, c2, err)
			}
			s := schema.Span{Seq: 1 + r.Uint64N(8), First: r.Uint32N(6), Rows: 1 + r.Uint32N(5)}
			got := map[uint32]bool{}
			c.unseen(s, func(first, rows uint32) {
				for k := range rows {
					if got[first+k] {
						t.Fatalf("row %d twice", first+k)
					}
					got[first+k] = true
				}
			})
			for row := s.First; row < s.First+s.Rows; row++ {
				if x := (schema.Cursor{Seq: s.Seq, Row: row}); got[row] == seen[x] {
					t.Fatalf("state %s: row %s seen %v, unseen %v", c, x, seen[x], got[row])
				}
			}
		}
	}
}

func TestMessagesThatFollowEachOtherLeaveOneMark(t *testing.T) {
	c := &chain{}
	prev := schema.Cursor{}
	for i := range uint64(1000) {
		last := schema.Cursor{Seq: 3 * i, Row: uint32(i%7) + 1}
		c.add(prev, last)
		prev = last
	}
	if c.mark != prev || len(c.spans) != 0 {
		t.Errorf("state is %s", c)
	}
}

func TestSpansAboveTheBoundAreForgottenFromTheOldestOn(t *testing.T) {
	c := &chain{}
	for i := range uint64(maxSpans + 5) {
		c.add(schema.Cursor{Seq: 10 * (i + 1)}, schema.Cursor{Seq: 10 * (i + 1), Row: 3})
	}
	top := c.top()
	if n := c.shrink(); n != 5 || len(c.spans) != maxSpans || c.ask != askBelow || c.top() != top {
		t.Errorf("%d forgotten, state %s", n, c)
	}
	back, err := parseChain(c.String())
	if err != nil || back.ask != askBelow || back.String() != c.String() {
		t.Errorf("%s comes back as %v, %v", c, back, err)
	}
	if c.shrink() != 0 {
		t.Error("forgot more")
	}
}

func TestDamagedChainStatesAreErrors(t *testing.T) {
	for _, text := range []string{"", "x", "1:2 3", "1:2 3:4", "5:0 1:0-2:0", "1:0 4:0-3:0", "1:0 2:0-3:0 2:5-4:0",
		"1:0 ? 2:0-3:0", "1:0 2:0-3:0-4:0", "1:0  2:0-3:0"} {
		if c, err := parseChain(text); err == nil {
			t.Errorf("%q was read as %s", text, c)
		}
	}
}
