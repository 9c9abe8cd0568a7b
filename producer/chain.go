package producer

import (
	"fmt"
	"slices"
	"time"

	"sonde/ring2"
	"sonde/schema"
	"sonde/spool"
)

// chainKey is a schema.ChainKey within an epoch.
type chainKey struct {
	kind         schema.Kind
	tenant, hook string
	layer, shard int
}

// chain holds the open batch of one chain. Rows of kind vectors alias the ring,
// whose records stay until the batch is acknowledged.
type chain struct {
	e      *epoch
	key    chainKey
	entry  ring2.LayoutEntry // of vectors and stats
	header schema.Header
	live   bool // closes at the end of each step
	listed bool // while the open chains are listed

	vectors  *schema.VectorEncoder
	stats    []schema.StatsRow
	requests []schema.RequestRow
	facts    []schema.LedgerRow
	runs     []spool.Run // of vectors and stats, by priority
	barrier  bool        // it holds the closed fact

	rows     int
	bytes    int
	openedAt time.Time
	groups   []*group // whose rows it holds
	prev     schema.Cursor
	last     schema.Cursor // one past the last row
	sent     []*message    // not booked, in the order of publication
}

// chain finds or makes a chain.
func (e *epoch) chain(key chainKey, entry ring2.LayoutEntry) *chain {
	if c := e.chains[key]; c != nil {
		return c
	}
	e.makeRoom()
	c := &chain{e: e, key: key, entry: entry, prev: e.prev}
	c.refreshHeader()
	live := e.r.agent.o.Live
	for _, l := range live {
		c.live = c.live || key.kind == schema.KindVectors && l.Hook == key.hook && l.Layer == key.layer
	}
	c.live = c.live || key.kind == schema.KindRequests && len(live) > 0
	e.chains[key] = c
	return c
}

// makeRoom keeps the number of chains bounded: idle ones are forgotten. Their
// next message starts from the release cursor, below which all is acknowledged;
// what they published since is acknowledged, too.
func (e *epoch) makeRoom() {
	if len(e.chains) < maxChains {
		return
	}
	e.forgetIdle()
	if len(e.chains) < maxChains/2 {
		return
	}
	e.flushAll()
	e.r.waitForAcks(0)
	e.forgetIdle()
}

func (e *epoch) forgetIdle() {
	for key, c := range e.chains {
		if c.rows == 0 && len(c.sent) == 0 && c != e.r.pinned[0] && c != e.r.pinned[1] {
			delete(e.chains, key)
		}
	}
	for _, t := range e.tenants {
		clear(t.chains)
	}
	if e == e.r.own {
		e.prev = attachCursor(e.r.s.ReleaseSeq())
	}
}

// attachCursor is everything below release_seq.
func attachCursor(release uint64) schema.Cursor {
	if release == 0 {
		return schema.Cursor{}
	}
	return schema.Cursor{Seq: release - 1, Row: ^uint32(0)}
}

func (c *chain) refreshHeader() {
	m := &c.e.model
	c.header = schema.Header{Kind: c.key.kind, Tenant: c.key.tenant, Engine: c.e.r.name.engine, Rank: c.e.r.name.rank,
		Epoch: c.e.id, Hook: c.key.hook, Layer: c.key.layer, Shard: c.key.shard, Model: m.Name, Revision: m.Revision,
		WeightsDigest: m.WeightsDigest, Quantisation: m.Quantisation, EngineVersion: m.EngineVersion,
		PolicyVersion: c.e.r.agent.policy.version}
	if c.key.kind == schema.KindVectors || c.key.kind == schema.KindStats {
		c.header.ShardCount, c.header.DType = int(c.entry.ShardCount), c.entry.DType.String()
		c.header.Shape, c.header.Ragged = shapeOf(c.entry), c.entry.Ragged
	}
	c.vectors = nil
}

// dataChain is the chain of a layout entry's rows for a tenant, as vectors or stats.
func (e *epoch) dataChain(t *tenant, l *layout, entry int, as As) *chain {
	chains := t.chains[l.ID]
	if chains == nil {
		chains = make([]*chain, 2*len(l.Entries))
		t.chains[l.ID] = chains
	}
	at, kind := 2*entry, schema.KindVectors
	if as == AsStats {
		at, kind = at+1, schema.KindStats
	}
	en := l.Entries[entry]
	c := chains[at]
	if c == nil {
		c = e.chain(chainKey{kind, t.name, en.Hook, en.Layer, int(en.Shard)}, en)
		if t.chains[l.ID] == nil { // making room forgot it
			t.chains[l.ID] = make([]*chain, 2*len(l.Entries))
		}
		t.chains[l.ID][at] = c
	}
	if o := c.entry; o.DType != en.DType || o.Ragged != en.Ragged || o.ShardCount != en.ShardCount ||
		!slices.Equal(o.Shape, en.Shape) {
		c.flush()
		c.entry = en
		c.refreshHeader()
	}
	return c
}

// Which of the ledger's chains without a hook a fact belongs to: the shard is eight
// times the mark of the policy, plus one of these. Facts that an agent publishes, or
// not, by chance or by its policy have chains of their own: in the chain of the
// others, what a later agent adds would stand below what consumers have seen.
const (
	asRead     = 0 // what the records say
	asTold     = 1 // what only obituaries say: losses, and the end
	readAnew   = 2 // what an agent before this one may have dropped
	atEnd      = 3 // what was counted when the engine was found dead, or said goodbye
	overBudget = 4 // what this agent dropped for its budget
)

// fact adds a fact to the ledger of a tenant.
func (e *epoch) fact(tenant string, row schema.LedgerRow, g *group) {
	kind := asRead
	if e.obituary != nil && e.row > 0 { // of the end
		kind = asTold
	}
	e.factIn(kind, tenant, row, g)
}

func (e *epoch) factIn(kind int, tenant string, row schema.LedgerRow, g *group) {
	shard := 8*e.r.agent.policy.mark + kind
	c := e.chain(chainKey{schema.KindLedger, tenant, schema.Hookless, -1, shard}, ring2.LayoutEntry{})
	c.addFact(row, g)
}

func (c *chain) addFact(row schema.LedgerRow, g *group) {
	c.facts = append(c.facts, row)
	c.barrier = c.barrier || row.Fact == schema.FactClosed
	c.added(row.Seq, row.Row, 160+len(row.Request)+len(row.Entries)+len(row.Hook)+len(row.Detail), g)
}

func (e *epoch) requestRow(tenant string, row schema.RequestRow, g *group) {
	c := e.chain(chainKey{schema.KindRequests, tenant, schema.Hookless, -1, 0}, ring2.LayoutEntry{})
	c.requests = append(c.requests, row)
	bytes := 256 + len(row.Request) + len(row.EngineID) + len(row.Tenant) + len(row.Adapter) + len(row.TraceParent)
	for k, v := range row.Labels {
		bytes += 8 + len(k) + len(v)
	}
	c.added(row.Seq, row.Row, bytes, g)
}

// addVector adds a row whose Vec aliases the ring. It fails when the row is not
// as long as its layout says, which a writer can bring about after the check.
func (c *chain) addVector(row *schema.VectorRow, priority int, g *group) error {
	if c.vectors == nil {
		enc, err := schema.NewVectorEncoder(c.header)
		if err != nil {
			panic("BUG: the header of a checked layout: " + err.Error())
		}
		c.vectors = enc
	}
	if c.bytes > 0 && c.bytes+len(row.Vec) > schema.MaxMessageBytes/2 {
		c.flush()
	}
	if err := c.vectors.Append(*row); err != nil {
		return err
	}
	c.addRun(priority)
	c.added(row.Seq, row.Row, 64+len(row.Request)+len(row.Vec), g)
	return nil
}

// addRun books the priority of a row.
func (c *chain) addRun(priority int) {
	if n := len(c.runs); n > 0 && c.runs[n-1].Priority == int32(priority) {
		c.runs[n-1].Count++
		return
	}
	c.runs = append(c.runs, spool.Run{Priority: int32(priority), Count: 1})
}

func (c *chain) addStats(row schema.StatsRow, priority int, g *group) {
	c.stats = append(c.stats, row)
	c.addRun(priority)
	c.added(row.Seq, row.Row, 96+len(row.Request), g)
}

// added books a row that was put into the open batch, and closes a full batch.
func (c *chain) added(seq uint64, row uint32, bytes int, g *group) {
	if at := (schema.Cursor{Seq: seq, Row: row}); at.Less(c.last) {
		panic(fmt.Sprintf("BUG: chain %v goes back from %v to %v", c.key, c.last, at))
	}
	if c.rows == 0 {
		c.openedAt = c.e.r.clock
		c.e.r.open = append(c.e.r.open, c)
	}
	c.rows++
	c.bytes += bytes
	c.header.AddRow(seq, row)
	c.last = schema.Cursor{Seq: seq, Row: row + 1}
	if n := len(c.groups); g != nil && (n == 0 || c.groups[n-1] != g) {
		c.hold(g)
	}
	if c.bytes >= c.e.r.agent.o.BatchBytes || c.rows >= maxBatchRows {
		c.flush()
	}
}

// hold keeps a group until the open batch is acknowledged.
func (c *chain) hold(g *group) {
	g.refs++
	g.inOpen++
	c.groups = append(c.groups, g)
}

// flush publishes the open batch.
func (c *chain) flush() {
	if c.rows == 0 {
		return
	}
	r := c.e.r
	m := r.newMessage(c)
	m.groups, c.groups = c.groups, m.groups[:0]
	m.runs, c.runs = c.runs, m.runs[:0]
	m.barrier, c.barrier = c.barrier, false
	for _, g := range m.groups {
		g.inOpen--
	}
	h := c.header
	h.Prev = c.prev
	var err error
	switch c.key.kind {
	case schema.KindVectors:
		m.data, _, err = c.vectors.EncodeTo(m.data, c.prev)
	case schema.KindStats:
		m.data, err = schema.EncodeStats(h, c.stats)
	case schema.KindRequests:
		m.data, err = schema.EncodeRequests(h, c.requests)
	default:
		m.data, err = schema.EncodeLedgerChain(h, c.facts)
	}
	if err != nil {
		panic("BUG: a bounded batch does not encode: " + err.Error())
	}
	if c.key.kind == schema.KindVectors || c.key.kind == schema.KindStats {
		m.rows = uint64(c.rows)
	}
	m.id, m.subject = schema.MessageID(h), schema.Subject(h)
	c.reset()
	r.publish(m)
}

// reset empties the open batch, which was published.
func (c *chain) reset() {
	c.header.Spans = c.header.Spans[:0]
	if c.vectors != nil {
		c.vectors.Reset()
	}
	clear(c.facts)
	clear(c.requests)
	c.stats, c.requests, c.facts = c.stats[:0], c.requests[:0], c.facts[:0]
	c.prev, c.rows, c.bytes = c.last, 0, 0
}

// flushAll publishes every open batch, requests first: a detector wants to know
// a request before its rows.
func (e *epoch) flushAll() {
	for _, c := range e.r.takeOpen() {
		if c.e == e && c.key.kind == schema.KindRequests {
			c.flush()
		}
	}
	for _, c := range e.r.takeOpen() {
		if c.e == e {
			c.flush()
		}
	}
}
