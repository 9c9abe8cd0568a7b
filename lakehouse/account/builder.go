package account

import (
	"errors"
	"fmt"
	"strings"

	"sonde/schema"
)

// Bounds of what a builder takes. Beyond them Fact is an error, and a builder
// that got too many rows says so in Balance.
const (
	maxFacts       = 1 << 25 // about 100 bytes each
	maxSpans       = 1 << 27 // runs of stored rows, 16 bytes each
	maxEpochs      = 1 << 16
	maxChains      = 1 << 20
	maxLayouts     = 1 << 12 // of one epoch
	maxCaptureRows = 1 << 20 // row numbers in one capture
)

// Fact is one row of the ledger table.
type Fact struct {
	Epoch  uint64
	Engine string
	Rank   int
	Tenant string // of the row; empty for facts about a whole epoch
	schema.LedgerRow
}

// Row is the identity of one stored row. An epoch belongs to one rank alone.
type Row struct {
	Epoch        uint64
	Hook         string
	Layer, Shard int
	Seq          uint64 // CAPTURE record
	Row          uint32 // in that capture
}

// Builder collects facts and rows, in any order. It is used by one goroutine.
type Builder struct {
	epochs map[uint64]*epoch
	texts  map[string]uint32 // interned: tenants, entries, reasons, hooks
	names  []string
	sets   map[uint32][]int // parsed entries, by interned text
	facts  int
	spans  int
	chains int
	broken string

	last    *chain // of the row before: rows come chain by chain
	lastKey chainKey
	of      *epoch

	repeats  uint64
	examples examples
}

// NewBuilder makes an empty builder.
func NewBuilder() *Builder {
	return &Builder{epochs: map[uint64]*epoch{}, texts: map[string]uint32{}, sets: map[uint32][]int{}}
}

// epoch is what was said about one writer.
type epoch struct {
	id       uint64
	closed   bool
	told     bool // closed by the obituary, which names every row that never got into the ring
	layouts  map[uint32][]LayoutEntry
	expected []record // captured, or dropped by the ring
	missing  []record // rows that were never in the ring
	dead     []record
	aborted  []record
	dropped  []record
	lost     []record
	chains   map[chainKey]*chain
	chainsOf map[uint32][]*chain // by layout and entry
	requests map[uint64]sequence
}

// sequence is what a request number stands for.
type sequence struct {
	request string
	sample  int32
}

// record is one fact about rows, with its texts interned.
type record struct {
	seq, capture, number    uint64
	rows, filtered          uint64
	run                     run
	row                     uint32
	tenant, entries, reason uint32
	layout                  uint32
	hook                    uint32 // of a fact about one hook
	layer                   int32
	position, pass          int32
}

// chainKey is a chain within an epoch; vectors and stats of a hook are one.
type chainKey struct {
	hook         string
	layer, shard int
}

// chain holds the stored rows of one hook, and scratch memory for one capture.
type chain struct {
	key     chainKey
	set     spanSet
	bus     spanSet // in messages
	repeats uint64
	counts  *HookCounts
	at      int    // next span of set.sorted
	busAt   int    // and of bus.sorted
	seen    uint64 // turn of the judge that the scratch is about

	wanted, left rowBits
	end          uint64 // one past the last wanted row
}

// Fact takes one fact; its texts may change after the call. A fact that contradicts itself, or names more than a
// builder can hold, is an error, and is not counted.
func (b *Builder) Fact(f Fact) error {
	if b.facts >= maxFacts {
		return fmt.Errorf("the ledger has more than %d facts: account for fewer epochs at a time", maxFacts)
	}
	e, err := b.epoch(f.Epoch)
	if err != nil {
		return err
	}
	if err := b.take(e, &f); err != nil {
		return fmt.Errorf("fact %s of epoch %016x, record %d:%d: %w", f.Fact, f.Epoch, f.Seq, f.Row, err)
	}
	b.facts++
	return nil
}

func (b *Builder) take(e *epoch, f *Fact) error {
	var into *[]record
	switch f.Fact {
	case schema.FactExpected:
		into = &e.expected
	case schema.FactMissing:
		into = &e.missing
	case schema.FactDeadLetter:
		into = &e.dead
	case schema.FactAborted:
		into = &e.aborted
	case schema.FactDropped:
		into = &e.dropped
	case schema.FactLost:
		into = &e.lost
	case schema.FactLayout:
		return e.layout(f)
	case schema.FactClosed:
		e.closed, e.told = true, e.told || ToldByObituary(f.Detail)
		return nil
	default: // amendments and facts of later versions are about no class
		return nil
	}
	r, err := b.record(f)
	if err != nil {
		return err
	}
	if _, known := e.requests[f.Number]; !known && f.Request != "" {
		e.requests[f.Number] = sequence{strings.Clone(f.Request), f.Sample}
	}
	*into = append(*into, r)
	return nil
}

func (e *epoch) layout(f *Fact) error {
	entries, err := ParseLayout(f.Detail)
	if err != nil {
		return err
	}
	old, twice := e.layouts[f.Layout]
	if !twice && len(e.layouts) >= maxLayouts {
		return fmt.Errorf("the epoch has more than %d layouts", maxLayouts)
	}
	if !twice {
		e.layouts[f.Layout] = entries
		return nil
	}
	if len(old) != len(entries) {
		return fmt.Errorf("layout %d is defined twice, with %d and with %d entries", f.Layout, len(old), len(entries))
	}
	for i := range old {
		if old[i] != entries[i] {
			return fmt.Errorf("layout %d is defined twice, with %v and with %v", f.Layout, old[i], entries[i])
		}
	}
	return nil
}

// record checks a fact and packs it.
func (b *Builder) record(f *Fact) (record, error) {
	r := record{seq: f.Seq, row: f.Row, capture: f.CaptureSeq, number: f.Number, rows: f.Rows, filtered: f.FilteredRows,
		tenant: b.intern(f.Tenant), entries: b.intern(f.Entries), reason: b.intern(f.Reason), layout: f.Layout,
		hook: b.intern(f.Hook), layer: f.Layer, position: f.Position, pass: f.Pass}
	entries, err := b.entries(r.entries)
	if err != nil {
		return r, err
	}
	if f.Fact == schema.FactExpected && f.Outcome != schema.OutcomeCaptured {
		if f.Outcome != schema.OutcomeDropped {
			return r, fmt.Errorf("outcome %.40q is unknown: it was written by a later version", f.Outcome)
		}
		r.capture = 0
	}
	if f.Fact == schema.FactMissing || f.Fact == schema.FactAborted || f.Fact == schema.FactLost {
		return r, nil
	}
	if f.Count < 0 || f.Count > 0 && f.Stride < 1 {
		return r, fmt.Errorf("it names %d positions with stride %d", f.Count, f.Stride)
	}
	r.run = run{first: f.FirstRow, count: uint32(f.Count), stride: uint32(max(f.Stride, 1))}
	if r.run.end() > maxCaptureRows {
		return r, fmt.Errorf("it names row %d; a capture has at most %d", r.run.end()-1, maxCaptureRows)
	}
	if f.Fact == schema.FactExpected && f.Rows != uint64(f.Count)*uint64(len(entries)) {
		return r, fmt.Errorf("it counts %d rows, but %d positions of entries %q", f.Rows, f.Count, f.Entries)
	}
	return r, nil
}

// Stored takes the identity of one stored row; its hook may change after the call.
func (b *Builder) Stored(r Row) {
	c := b.chainOf(r)
	if c == nil {
		return
	}
	before := len(c.set.sorted) + len(c.set.tail)
	c.set.add(r.Seq, r.Row, func(s span) { b.repeated(c, s) })
	if b.spans += len(c.set.sorted) + len(c.set.tail) - before; b.spans > maxSpans {
		b.broken = fmt.Sprintf("the tables hold more than %d runs of rows: account for fewer epochs at a time", maxSpans)
	}
}

// OnBus takes the identity of one row in a message that the bus holds. It may be
// told again, and the row may be stored too.
func (b *Builder) OnBus(r Row) {
	c := b.chainOf(r)
	if c == nil {
		return
	}
	before := len(c.bus.sorted) + len(c.bus.tail)
	c.bus.add(r.Seq, r.Row, func(span) {})
	if b.spans += len(c.bus.sorted) + len(c.bus.tail) - before; b.spans > maxSpans {
		b.broken = fmt.Sprintf("tables and bus hold more than %d runs of rows: account for fewer epochs at a time", maxSpans)
	}
}

func (b *Builder) chainOf(r Row) *chain {
	if b.broken != "" {
		return nil
	}
	key := chainKey{r.Hook, r.Layer, r.Shard}
	if b.last != nil && b.of.id == r.Epoch && b.lastKey == key {
		return b.last
	}
	e, err := b.epoch(r.Epoch)
	if err == nil && b.chains >= maxChains {
		err = fmt.Errorf("the tables hold more than %d chains", maxChains)
	}
	if err != nil {
		b.broken = err.Error()
		return nil
	}
	known := len(e.chains)
	b.of, b.last = e, e.chain(key)
	b.lastKey = b.last.key
	b.chains += len(e.chains) - known
	return b.last
}

func (e *epoch) chain(key chainKey) *chain {
	c := e.chains[key]
	if c == nil {
		key.hook = strings.Clone(key.hook)
		c = &chain{key: key}
		e.chains[key] = c
	}
	return c
}

func (b *Builder) repeated(c *chain, s span) {
	b.repeats += s.rows()
	c.repeats += s.rows()
	for row := range s.each {
		if b.examples.full(kindRepeated) {
			break
		}
		b.examples.add(kindRepeated, func() string { return c.rowName(b.of, s.seq, row) + " is stored more than once" })
	}
}

func (b *Builder) epoch(id uint64) (*epoch, error) {
	e := b.epochs[id]
	if e == nil {
		if len(b.epochs) >= maxEpochs {
			return nil, errors.New("the ledger has too many epochs: account for fewer at a time")
		}
		e = &epoch{id: id, layouts: map[uint32][]LayoutEntry{}, chains: map[chainKey]*chain{},
			chainsOf: map[uint32][]*chain{}, requests: map[uint64]sequence{}}
		b.epochs[id] = e
	}
	return e, nil
}

func (b *Builder) intern(s string) uint32 {
	if n, ok := b.texts[s]; ok {
		return n
	}
	n := uint32(len(b.names))
	s = strings.Clone(s) // a fact is valid only until its reader's callback returns
	b.texts[s] = n
	b.names = append(b.names, s)
	return n
}

// entries is the parsed set of an interned text.
func (b *Builder) entries(id uint32) ([]int, error) {
	if set, ok := b.sets[id]; ok {
		return set, nil
	}
	set, err := ParseEntries(b.names[id])
	if err != nil {
		return nil, err
	}
	b.sets[id] = set
	return set, nil
}
