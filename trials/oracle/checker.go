// Package oracle judges what a trial left behind: the lake against what the
// engine witnessed by itself, row by row, and against what the arithmetic model
// says a row has to be.
package oracle

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// Key says which row is meant: what a row is about, and not on which path it
// travelled.
type Key struct {
	Epoch          uint64
	Request        string
	Sample         int
	Position, Pass int
	Hook           string
	Layer          int // -1: none
}

func (k Key) String() string {
	return fmt.Sprintf("request %s sample %d position %d pass %d hook %s layer %d (epoch %016x)", k.Request, k.Sample,
		k.Position, k.Pass, k.Hook, k.Layer, k.Epoch)
}

// Hash is the first 16 bytes of the SHA-256 of a row's bytes.
type Hash [16]byte

// HashOf is the hash of a row's bytes.
func HashOf(raw []byte) Hash {
	sum := sha256.Sum256(raw)
	return Hash(sum[:16])
}

// Checker compares stored rows with witnessed ones. All witnessed rows come
// first, then stored rows and facts in any order, then Finish. It holds about 20
// bytes for each witnessed row.
type Checker struct {
	// Recompute appends to dst what a row has to be, whatever the witness says; ok
	// is false for rows that only the witness knows. Nil: there is only the witness.
	Recompute func(dst []byte, k Key) (row []byte, ok bool)
	// Named is called by Finish with each row that is not stored and that the ledger
	// names. Nil: nobody asks.
	Named func(Key)

	sequences map[sequence]uint32
	hooks     map[hook]uint16
	names     []sequence
	hookNames []hook
	stripes   map[stripeKey]*stripe
	epochs    map[uint64]*epochFacts

	last    *stripe // of the row before
	lastRow Key
	scratch []byte
	r       *Report
	misfits []misfit // rows with other bytes than they should have
}

type sequence struct {
	epoch   uint64
	request string
	sample  int
}

type hook struct {
	name  string
	layer int
}

type stripeKey struct {
	sequence uint32
	pass     uint32
	hook     uint16
}

// stripe holds the rows of one sequence, pass and hook, by position.
type stripe struct {
	base   int // position of the first
	hashes []Hash
	state  []rowState
}

// rowState is what is known of one row.
type rowState uint8

const (
	witnessed   rowState = 1
	storedOnce  rowState = 2
	storedAgain rowState = 4
	namedRow    rowState = 8  // a fact names exactly this row
	namedHull   rowState = 16 // a merged fact covers it
)

type misfit struct {
	key  Key
	have Hash
	why  string
}

// NewChecker makes an empty checker.
func NewChecker() *Checker {
	return &Checker{sequences: map[sequence]uint32{}, hooks: map[hook]uint16{}, stripes: map[stripeKey]*stripe{},
		epochs: map[uint64]*epochFacts{}, r: &Report{Hooks: map[string]int{}}}
}

// Witness takes a row that the engine computed. A key's texts may change after
// the call; the same holds for Stored.
func (c *Checker) Witness(k Key, h Hash) {
	s := c.stripe(k, true)
	at := s.place(k.Position)
	if s.state[at]&witnessed != 0 && s.hashes[at] != h {
		c.r.add(Computed, 1, "%v was computed twice, with different bytes", k)
	}
	if s.state[at]&witnessed == 0 {
		c.r.Witnessed++
	}
	s.hashes[at], s.state[at] = h, s.state[at]|witnessed
}

// Stored takes a stored row and its bytes.
func (c *Checker) Stored(k Key, raw []byte) {
	c.r.Stored++
	c.r.count(k.Hook)
	h := HashOf(raw)
	fits := c.recomputed(k, raw, h)
	s := c.stripe(k, false)
	at := k.Position - s.first()
	if s == nil || at < 0 || at >= len(s.state) || s.state[at]&witnessed == 0 {
		c.r.add(Unwitnessed, 1, "%v is stored, but the engine never witnessed it", k)
		return
	}
	switch {
	case s.state[at]&storedOnce == 0:
		s.state[at] |= storedOnce
	case s.state[at]&storedAgain == 0:
		s.state[at] |= storedAgain
		c.r.add(Twice, 1, "%v is stored more than once", k)
	}
	if s.hashes[at] == h {
		c.r.Matched++
	} else if fits {
		c.misfit(misfit{k, h, "has other bytes than the engine witnessed"})
	}
}

// recomputed compares a row with what it has to be; a row that nobody can
// recompute fits.
func (c *Checker) recomputed(k Key, raw []byte, h Hash) bool {
	if c.Recompute == nil {
		return true
	}
	want, ok := c.Recompute(c.scratch[:0], k)
	if !ok {
		return true
	}
	c.scratch = want
	if string(want) == string(raw) {
		c.r.Recomputed++
		return true
	}
	c.misfit(misfit{k, h, "has other bytes than its place says"})
	return false
}

func (c *Checker) misfit(m misfit) {
	c.r.Defects[Wrong]++
	if len(c.misfits) < maxNamed {
		m.key.Request, m.key.Hook = strings.Clone(m.key.Request), strings.Clone(m.key.Hook)
		c.misfits = append(c.misfits, m)
	}
}

// stripe finds the stripe of a row; without make it may be nil.
func (c *Checker) stripe(k Key, make bool) *stripe {
	if r := &c.lastRow; c.last != nil && k.Request == r.Request && k.Epoch == r.Epoch && k.Sample == r.Sample &&
		k.Pass == r.Pass && k.Layer == r.Layer && k.Hook == r.Hook {
		return c.last
	}
	q, h := sequence{k.Epoch, k.Request, k.Sample}, hook{k.Hook, k.Layer}
	qn, known := c.sequences[q]
	hn, knownHook := c.hooks[h]
	if make && !known {
		qn, q.request = uint32(len(c.names)), strings.Clone(k.Request)
		c.names, c.sequences[q] = append(c.names, q), qn
	}
	if make && !knownHook {
		hn, h.name = uint16(len(c.hookNames)), strings.Clone(k.Hook)
		c.hookNames, c.hooks[h] = append(c.hookNames, h), hn
	}
	if !make && !(known && knownHook) {
		return nil
	}
	key := stripeKey{qn, uint32(k.Pass), hn}
	s := c.stripes[key]
	if s == nil && make {
		s = &stripe{base: k.Position}
		c.stripes[key] = s
	}
	// A row of the lake is valid only until its callback returns: the cache keeps
	// the names that the checker owns.
	k.Request, k.Hook = c.names[qn].request, c.hookNames[hn].name
	c.last, c.lastRow = s, k
	return s
}

func (s *stripe) first() int {
	if s == nil {
		return 0
	}
	return s.base
}

// place makes room for a position and returns its index.
func (s *stripe) place(position int) int {
	if position < s.base {
		n := s.base - position
		s.hashes = append(make([]Hash, n), s.hashes...)
		s.state = append(make([]rowState, n), s.state...)
		s.base = position
	}
	at := position - s.base
	for len(s.state) <= at {
		s.hashes, s.state = append(s.hashes, Hash{}), append(s.state, 0)
	}
	return at
}

// key is the row at an index of a stripe.
func (c *Checker) key(at stripeKey, s *stripe, i int) Key {
	q, h := c.names[at.sequence], c.hookNames[at.hook]
	return Key{q.epoch, q.request, q.sample, s.base + i, int(at.pass), h.name, h.layer}
}
