package demo

import (
	"crypto/sha256"
	"fmt"
	"sort"
)

// rowKey says which row is meant, without the path on which it travelled.
type rowKey struct {
	Request        string
	Sample         int
	Position, Pass int
	Hook           string
	Layer          int // -1: none
}

func (k rowKey) String() string {
	return fmt.Sprintf("request %s sample %d position %d pass %d hook %s layer %d", k.Request, k.Sample, k.Position,
		k.Pass, k.Hook, k.Layer)
}

// comparison holds what the engine witnessed, and checks rows of the dataset
// against it. The demo's few million keys are packed, since they are all in
// memory at once.
type comparison struct {
	requests, hooks map[string]uint64
	hashes          map[uint64][16]byte
	checked         map[string]int // by hook
	mismatched      int
	first           string // the first mismatch, in words
	outside         int    // witnessed rows that the packed key cannot hold
}

func newComparison() *comparison {
	return &comparison{requests: map[string]uint64{}, hooks: map[string]uint64{}, hashes: map[uint64][16]byte{},
		checked: map[string]int{}}
}

// Bits of the packed key. A demo that grows beyond them counts rows as
// unwitnessed, and so fails loudly.
const (
	requestBits, sampleBits, positionBits, passBits, hookBits, layerBits = 14, 4, 20, 8, 8, 10
)

// pack turns a key into one word. Names are numbered as they first appear when
// learn is set; a name that was never learnt is not found.
func (c *comparison) pack(k rowKey, learn bool) (uint64, bool) {
	number := func(names map[string]uint64, name string) (uint64, bool) {
		n, ok := names[name]
		if !ok && learn {
			n, ok = uint64(len(names)), true
			names[name] = n
		}
		return n, ok
	}
	request, known := number(c.requests, k.Request)
	hook, knownHook := number(c.hooks, k.Hook)
	if !known || !knownHook {
		return 0, false
	}
	var word uint64
	for _, part := range []struct {
		value uint64
		bits  int
	}{{request, requestBits}, {uint64(k.Sample), sampleBits}, {uint64(k.Position), positionBits},
		{uint64(k.Pass), passBits}, {hook, hookBits}, {uint64(k.Layer + 1), layerBits}} {
		if part.value>>part.bits != 0 {
			return 0, false
		}
		word = word<<part.bits | part.value
	}
	return word, true
}

// witness remembers the hash of one row, as the engine wrote it by itself.
func (c *comparison) witness(k rowKey, hash [16]byte) {
	word, ok := c.pack(k, true)
	if !ok {
		c.outside++
		return
	}
	if old, twice := c.hashes[word]; twice && old != hash {
		c.mismatch("%v was computed twice, with different bytes", k)
	}
	c.hashes[word] = hash
}

// row checks one row of the dataset: raw is the vector as the engine computed it.
func (c *comparison) row(k rowKey, raw []byte) {
	c.checked[k.Hook]++
	word, ok := c.pack(k, false)
	want, found := c.hashes[word]
	switch sum := sha256.Sum256(raw); {
	case !ok || !found:
		c.mismatch("%v is in the dataset, but the engine never witnessed it", k)
	case [16]byte(sum[:16]) != want:
		c.mismatch("%v has other bytes in the dataset than in the engine", k)
	}
}

func (c *comparison) mismatch(format string, args ...any) {
	if c.mismatched == 0 {
		c.first = fmt.Sprintf(format, args...)
	}
	c.mismatched++
}

// result gives the counts, and the hooks that were compared at least once.
func (c *comparison) result() (BitExact, []string) {
	out := BitExact{Mismatched: c.mismatched}
	var hooks []string
	for hook, n := range c.checked {
		out.Checked += n
		hooks = append(hooks, hook)
	}
	sort.Strings(hooks)
	return out, hooks
}

// unseen lists the hooks that the engine witnessed and the dataset lacks.
func (c *comparison) unseen() []string {
	var out []string
	for hook := range c.hooks {
		if c.checked[hook] == 0 {
			out = append(out, hook)
		}
	}
	sort.Strings(out)
	return out
}
