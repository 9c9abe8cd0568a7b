package demo

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
)

func rowBytes(k rowKey) []byte { return []byte(fmt.Sprintf("%v", k)) }

func witnessed(keys []rowKey) *comparison {
	c := newComparison()
	for _, k := range keys {
		sum := sha256.Sum256(rowBytes(k))
		c.witness(k, [16]byte(sum[:16]))
	}
	return c
}

func someKeys() []rowKey {
	var keys []rowKey
	for r := range 3 {
		for p := range 20 {
			for layer := -1; layer < 4; layer++ {
				keys = append(keys, rowKey{fmt.Sprintf("r%d", r), 0, p, 0, "resid_post", layer},
					rowKey{fmt.Sprintf("r%d", r), 1, p, 1, "mlp_out", layer})
			}
		}
	}
	return keys
}

func TestEqualRowsCompareEqual(t *testing.T) {
	keys := someKeys()
	c := witnessed(keys)
	for _, k := range keys {
		c.row(k, rowBytes(k))
	}
	got, hooks := c.result()
	if got != (BitExact{Checked: len(keys)}) || len(hooks) != 2 || len(c.unseen()) != 0 {
		t.Errorf("got %+v, hooks %v, unseen %v, first: %s", got, hooks, c.unseen(), c.first)
	}
}

// Two rows that changed places, one flipped bit, a row of nowhere: each is seen.
func TestComparisonSeesInjectedFaults(t *testing.T) {
	keys := someKeys()
	flipped := rowBytes(keys[7])
	flipped[0] ^= 1
	for name, c := range map[string]struct {
		feed func(*comparison)
		want int
		say  string
	}{
		"rows of two requests swapped": {func(c *comparison) {
			c.row(keys[0], rowBytes(keys[200]))
			c.row(keys[200], rowBytes(keys[0]))
		}, 2, "other bytes"},
		"one bit": {func(c *comparison) { c.row(keys[7], flipped) }, 1, "other bytes"},
		"another position": {func(c *comparison) {
			k := keys[7]
			k.Position++
			c.row(k, rowBytes(keys[7]))
		}, 1, "other bytes"},
		"another pass": {func(c *comparison) {
			k := keys[0]
			k.Pass = 9
			c.row(k, rowBytes(keys[0]))
		}, 1, "never witnessed"},
		"an unknown request": {func(c *comparison) {
			k := keys[0]
			k.Request = "x"
			c.row(k, rowBytes(keys[0]))
		}, 1, "never witnessed"},
		"computed differently": {func(c *comparison) { c.witness(keys[0], [16]byte{1}) }, 1, "computed twice"},
	} {
		cmp := witnessed(keys)
		c.feed(cmp)
		if got, _ := cmp.result(); got.Mismatched != c.want || !strings.Contains(cmp.first, c.say) {
			t.Errorf("%s: %d mismatched (want %d), first: %s", name, got.Mismatched, c.want, cmp.first)
		}
	}
}

func TestHooksMissingInTheDatasetAreNamed(t *testing.T) {
	keys := someKeys()
	c := witnessed(keys)
	c.row(keys[0], rowBytes(keys[0]))
	if got := c.unseen(); len(got) != 1 || got[0] != "mlp_out" {
		t.Errorf("unseen hooks: %v; want mlp_out", got)
	}
}

// Keys that differ in any part never share a packed word.
func TestPackedKeysAreDistinct(t *testing.T) {
	c := newComparison()
	seen := map[uint64]rowKey{}
	for _, k := range append(someKeys(), rowKey{"r0", 15, 1<<20 - 1, 255, "resid_post", 1022}) {
		word, ok := c.pack(k, true)
		if other, twice := seen[word]; !ok || twice {
			t.Errorf("%v: packed %v, same word as %v", k, ok, other)
		}
		seen[word] = k
	}
	if _, ok := c.pack(rowKey{"r0", 16, 0, 0, "resid_post", 0}, true); ok {
		t.Error("sample 16 does not fit, but was packed")
	}
}
