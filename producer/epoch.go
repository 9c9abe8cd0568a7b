package producer

import (
	"encoding/json"
	"fmt"
	"strconv"

	"sonde/ring2"
	"sonde/schema"
)

// epoch is what the agent knows of one writer: the one whose ring it reads, or a
// dead one that obituaries tell of. One goroutine owns it.
type epoch struct {
	r           *rank
	id          uint64
	prev        schema.Cursor // of the first message of each chain
	model       ring2.Model
	layouts     map[uint32]*layout
	requests    map[uint64]*request
	ended       []uint64 // numbers of ended requests, oldest first
	tenants     map[string]*tenant
	tenantsUsed int // when the unused were last forgotten
	chains      map[chainKey]*chain
	plans       map[planKey]*plan
	inflight    int    // messages
	row         uint32 // where the next fact of the end goes; 0 before the end

	obituary   *obituaries // of a dead epoch
	closedSent bool
	closedDone bool // the closed fact is acknowledged
}

// layout is a LAYOUT record and what was worked out about it.
type layout struct {
	ring2.Layout
	seq      uint64
	oversize []bool // of each entry: its rows fit no message
}

// request is an open request, or one that ended a short while ago.
type request struct {
	number uint64
	id     string
	sample int32
	tenant string
	labels map[string]string
	optIn  bool
	prompt int64 // prompt length in tokens
	rules  uint64
	ended  bool
	t      *tenant
	open   ring2.RequestOpen
}

// tenant caches the chains of one tenant by layout entry.
type tenant struct {
	name   string
	chains map[uint32][]*chain // by layout: entry*2 for tensors, entry*2+1 for stats
}

func newEpoch(r *rank, id uint64, prev schema.Cursor) *epoch {
	return &epoch{r: r, id: id, prev: prev, layouts: map[uint32]*layout{}, requests: map[uint64]*request{},
		tenants: map[string]*tenant{}, chains: map[chainKey]*chain{}, plans: map[planKey]*plan{}}
}

// setModel takes a MODEL record. Later messages carry it; open ones are closed
// first.
func (e *epoch) setModel(m ring2.Model) {
	e.flushAll()
	e.model = m
	for _, c := range e.chains {
		c.refreshHeader()
	}
}

// addLayout takes a LAYOUT record after checking it.
func (e *epoch) addLayout(seq uint64, l ring2.Layout) (*layout, error) {
	if len(e.layouts) >= maxLayouts {
		return nil, fmt.Errorf("the engine defined more than %d layouts", maxLayouts)
	}
	type place struct {
		hook         string
		layer, shard int
	}
	seen, text := map[place]bool{}, 0
	out := &layout{Layout: l, seq: seq, oversize: make([]bool, len(l.Entries))}
	for i, en := range l.Entries {
		p := place{en.Hook, en.Layer, int(en.Shard)}
		if seen[p] {
			return nil, fmt.Errorf("layout %d lists hook %q of layer %d twice", l.ID, en.Hook, en.Layer)
		}
		seen[p] = true
		if out.oversize[i] = en.RowBytes() > maxRowBytes; out.oversize[i] {
			e.r.log.Warn("rows of a hook are larger than a message takes: as tensors they are dropped, reason oversize",
				"hook", en.Hook, "layer", en.Layer, "row_bytes", en.RowBytes(), "most", maxRowBytes)
		}
		if text += len(en.Hook); text > maxLayoutText {
			return nil, fmt.Errorf("layout %d has more than %d bytes of hook names", l.ID, maxLayoutText)
		}
	}
	if e.layouts[l.ID] != nil {
		for key := range e.plans {
			if key.layout == l.ID {
				delete(e.plans, key)
			}
		}
		for _, t := range e.tenants {
			delete(t.chains, l.ID)
		}
	}
	e.layouts[l.ID] = out
	return out, nil
}

func shapeOf(en ring2.LayoutEntry) []int {
	shape := make([]int, len(en.Shape))
	for i, d := range en.Shape {
		shape[i] = int(d)
	}
	return shape
}

// layoutFact publishes what a layout holds. It belongs to no tenant.
func (e *epoch) layoutFact(l *layout, g *group) {
	type entry struct {
		Hook       string `json:"hook"`
		Layer      int    `json:"layer"`
		DType      string `json:"dtype"`
		Shape      []int  `json:"shape"`
		Select     string `json:"select"`
		Ragged     bool   `json:"ragged"`
		Shard      int    `json:"shard"`
		ShardCount int    `json:"shard_count"`
	}
	entries := make([]entry, len(l.Entries))
	for i, en := range l.Entries {
		selected := "all"
		if en.Select == ring2.SelectSampled {
			selected = "sampled"
		}
		entries[i] = entry{en.Hook, en.Layer, en.DType.String(), shapeOf(en), selected, en.Ragged, int(en.Shard),
			int(en.ShardCount)}
	}
	e.fact("", schema.LedgerRow{Seq: l.seq, Row: e.place(), Fact: schema.FactLayout, Layout: l.ID, Layer: -1,
		Detail: jsonText(entries)}, g)
}

// place is the row of a fact about a record: 0, or the next one at the end.
func (e *epoch) place() uint32 {
	if e.row == 0 {
		return 0
	}
	e.row++
	return e.row - 1
}

func jsonText(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic("BUG: a detail is always JSON: " + err.Error())
	}
	return string(text)
}

// openRequest takes a REQUEST_OPEN record.
func (e *epoch) openRequest(o ring2.RequestOpen) (*request, error) {
	if len(e.requests)-len(e.ended) >= maxOpenRequests {
		return nil, fmt.Errorf("the engine has more than %d open requests", maxOpenRequests)
	}
	q := &request{number: o.Number, id: o.ExternalID, sample: int32(o.Sample), tenant: o.Tenant, optIn: o.OptIn,
		prompt: int64(o.PromptTokens), open: o}
	if len(o.Labels) > 0 {
		q.labels = make(map[string]string, len(o.Labels))
		for _, l := range o.Labels {
			q.labels[l.Key] = l.Value
		}
	}
	q.rules = e.r.agent.policy.requestRules(q)
	q.t = e.tenant(o.Tenant)
	e.requests[o.Number] = q
	if e == e.r.own {
		e.r.requests.open(o.Number, o.Tenant)
		e.r.agent.serveAborts(o.Tenant, e.r.name)
	}
	return q, nil
}

func (e *epoch) tenant(name string) *tenant {
	t := e.tenants[name]
	if t == nil {
		if len(e.tenants) >= 2*e.tenantsUsed+64 {
			e.forgetTenants()
		}
		t = &tenant{name: name, chains: map[uint32][]*chain{}}
		e.tenants[name] = t
	}
	return t
}

// forgetTenants keeps the tenants of known requests alone.
func (e *epoch) forgetTenants() {
	used := map[*tenant]bool{}
	for _, q := range e.requests {
		used[q.t] = true
	}
	for name, t := range e.tenants {
		if !used[t] {
			delete(e.tenants, name)
		}
	}
	e.tenantsUsed = len(e.tenants)
}

// endRequest keeps the request for a while: corrections may still name it.
func (e *epoch) endRequest(number uint64) {
	q := e.requests[number]
	if q == nil || q.ended {
		return
	}
	q.ended = true
	e.ended = append(e.ended, number)
	if len(e.ended) > maxEndedRequests {
		if old := e.requests[e.ended[0]]; old != nil && old.ended {
			delete(e.requests, e.ended[0])
			if e == e.r.own {
				e.r.requests.forget(e.ended[0])
			}
		}
		e.ended = e.ended[1:]
	}
}

// find is the request of a number. known is false for a number that the engine
// never announced: such rows have no identity and are not published.
func (e *epoch) find(number uint64) (q *request, known bool) {
	if q := e.requests[number]; q != nil {
		return q, true
	}
	return &request{number: number, t: e.tenant("")}, false
}

// openRow publishes that a request opened.
func (e *epoch) openRow(seq uint64, q *request, g *group) {
	o := &q.open
	e.requestRow(q.tenant, schema.RequestRow{Seq: seq, Row: e.place(), Event: schema.EventOpen, Number: q.number,
		Request: q.id, EngineID: o.EngineID, Sample: q.sample, Tenant: q.tenant, Adapter: o.Adapter,
		TraceParent: o.TraceParent,
		Labels:      q.labels, OptIn: q.optIn, PromptTokens: int32(o.PromptTokens), MaxTokens: int32(o.MaxTokens),
		WallNS: int64(o.OpenWallNS)}, g)
}

// endRow publishes that a request ended.
func (e *epoch) endRow(seq uint64, r ring2.RequestEnd, g *group) {
	q, _ := e.find(r.Number)
	o := &q.open
	e.requestRow(q.tenant, schema.RequestRow{Seq: seq, Row: e.place(), Event: schema.EventEnd, Number: r.Number,
		Request: q.id, EngineID: o.EngineID, Sample: q.sample, Tenant: q.tenant, Adapter: o.Adapter,
		TraceParent: o.TraceParent,
		Labels:      q.labels, OptIn: q.optIn, PromptTokens: int32(r.PromptTokens), MaxTokens: int32(o.MaxTokens),
		GeneratedTokens: int32(r.GeneratedTokens), CachedTokens: int32(r.CachedTokens), Passes: int32(r.Passes),
		Reason: r.Reason.String(), WallNS: int64(r.EndWallNS)}, g)
}

// amendFacts publishes an AMEND record.
func (e *epoch) amendFacts(seq uint64, a ring2.Amend, g *group) {
	for i, x := range a.Ranges {
		q, _ := e.find(x.Number)
		row := uint32(i)
		if e.row > 0 {
			row = e.place()
		}
		e.fact(q.tenant, schema.LedgerRow{Seq: seq, Row: row, Fact: schema.FactAmend, Number: x.Number,
			Request: q.id, Sample: q.sample, Pass: int32(x.Pass), Position: int32(x.Position), Count: int32(x.Count),
			Stride: 1, Step: a.Step, Reason: x.Verdict.String(), Layer: -1}, g)
	}
}

// entriesText writes a set of entries like "0-3,7"; entries ascend.
func entriesText(entries []int) string {
	var b []byte
	for i := 0; i < len(entries); {
		j := i
		for j+1 < len(entries) && entries[j+1] == entries[j]+1 {
			j++
		}
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, int64(entries[i]), 10)
		if j > i {
			b = append(b, '-')
			b = strconv.AppendInt(b, int64(entries[j]), 10)
		}
		i = j + 1
	}
	return string(b)
}
