package producer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"sonde/bus/bustest"
	ledger "sonde/lakehouse/account"
	"sonde/ring2"
	"sonde/schema"
)

const testEpoch = 0xabc

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func random(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// everything is a policy that chooses each row.
func everything() Policy {
	return Policy{Rules: []Rule{{Hooks: []string{"*"}, Layers: Layers{All: true}}}}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// until waits until something holds.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for ctx := deadline(t); !holds(); time.Sleep(100 * time.Microsecond) {
		if ctx.Err() != nil {
			t.Fatal("never: " + what)
		}
	}
}

// fillRow writes what a row of a request must hold: a function of its meaning.
func fillRow(row []byte, number uint64, position int32, pass int32, hook string, layer int) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %d %s %d", number, position, pass, hook, layer))
	for i := range row {
		row[i] = sum[i%len(sum)] ^ byte(i/len(sum))
	}
}

// fakeSession is a ring whose records a test writes. What was released is
// overwritten, so that whoever still reads it is found out.
type fakeSession struct {
	config   ring2.Config
	snapshot []ring2.Record

	mu       sync.Mutex
	changed  chan struct{}
	records  []ring2.Record // not read yet
	read     []ring2.Record // not released
	lost     []uint64
	claim    uint64
	release  uint64
	releases []uint64
	counters ring2.ProducerCounters
	err      error // after the records
	gone     chan struct{}
	closed   bool
	abort    func(ring2.Abort) (ring2.AbortOutcome, uint32, error)
}

func newFakeSession() *fakeSession {
	return &fakeSession{changed: make(chan struct{}), gone: make(chan struct{}), config: ring2.Config{Epoch: testEpoch,
		DescCount: 4096, DataBytes: 64 << 20, EngineInstance: "engine", RankCount: 1, WallMinusMonoNS: 1000}}
}

func (s *fakeSession) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// put adds a record, and returns its seq.
func (s *fakeSession) put(kind ring2.Kind, payload []byte) (seq uint64) {
	s.set(func() {
		seq = s.claim
		s.claim++
		s.records = append(s.records, ring2.Record{Seq: seq, Kind: kind, CaptureNS: 5, Payload: payload})
	})
	return seq
}

func (s *fakeSession) Config() ring2.Config     { return s.config }
func (s *fakeSession) Snapshot() []ring2.Record { return s.snapshot }
func (s *fakeSession) Quarantined() error       { return nil }
func (s *fakeSession) Lost() []uint64           { s.mu.Lock(); defer s.mu.Unlock(); return slices.Clone(s.lost) }
func (s *fakeSession) WallNS(ns uint64) int64   { return s.Config().WallNS(ns) }
func (s *fakeSession) ClaimSeq() uint64         { s.mu.Lock(); defer s.mu.Unlock(); return s.claim }
func (s *fakeSession) ReleaseSeq() uint64       { s.mu.Lock(); defer s.mu.Unlock(); return s.release }
func (s *fakeSession) Close() error             { s.set(func() { s.closed = true }); return nil }
func (s *fakeSession) Abort(_ context.Context, a ring2.Abort) (ring2.AbortOutcome, uint32, error) {
	return s.abort(a)
}
func (s *fakeSession) Producer() ring2.ProducerCounters {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counters
}

func (s *fakeSession) Next(ctx context.Context, dst []ring2.Record) ([]ring2.Record, error) {
	for {
		s.mu.Lock()
		changed, err := s.changed, s.err
		n := min(len(s.records), 1+rand.IntN(5))
		dst = append(dst, s.records[:n]...)
		s.read = append(s.read, s.records[:n]...)
		s.records = s.records[n:]
		s.mu.Unlock()
		switch {
		case n > 0:
			return dst, nil
		case err != nil:
			return dst, err
		}
		select {
		case <-ctx.Done():
			return dst, ctx.Err()
		case <-changed:
		}
	}
}

func (s *fakeSession) Release(seq uint64) {
	s.set(func() {
		if seq < s.release {
			panic("release goes back")
		}
		for len(s.read) > 0 && s.read[0].Seq < seq {
			for i := range s.read[0].Payload {
				s.read[0].Payload[i] = 0xdd
			}
			s.read = s.read[1:]
		}
		s.release = seq
		s.releases = append(s.releases, seq)
	})
}

// engine writes the records of an engine with one layout into a fake session.
type engine struct {
	s      *fakeSession
	layout ring2.Layout
	steps  uint64
}

var testEntries = []ring2.LayoutEntry{
	{Hook: "token_ids", Layer: -1, DType: ring2.I32},
	{Hook: "resid_post", Layer: 0, DType: ring2.BF16, Shape: []uint32{4}},
	{Hook: "resid_post", Layer: 1, DType: ring2.BF16, Shape: []uint32{4}},
	{Hook: "logits", Layer: -1, DType: ring2.F32, Shape: []uint32{3}, Select: ring2.SelectSampled},
}

func newEngine(s *fakeSession, entries []ring2.LayoutEntry) *engine {
	e := &engine{s: s, layout: ring2.Layout{ID: 7, Entries: entries}}
	s.put(ring2.KindModel, ring2.AppendModel(nil, ring2.Model{Name: "test", WeightsDigest: "sha256:1"}))
	s.put(ring2.KindLayout, ring2.AppendLayout(nil, e.layout))
	return e
}

func (e *engine) open(number uint64, tenant string, prompt uint32) {
	e.s.put(ring2.KindRequestOpen, openRecord(number, tenant, prompt))
}

func openRecord(number uint64, tenant string, prompt uint32) []byte {
	return ring2.AppendRequestOpen(nil, ring2.RequestOpen{Number: number, ExternalID: fmt.Sprintf("req-%d", number),
		EngineID: fmt.Sprintf("engine-%d", number), Tenant: tenant, PromptTokens: prompt})
}

func (e *engine) finish(number uint64) {
	e.s.put(ring2.KindRequestEnd, ring2.AppendRequestEnd(nil, ring2.RequestEnd{Number: number}))
}

func decode(number uint64, position uint32) ring2.StepRange {
	return ring2.StepRange{Number: number, Position: position, Count: 1, Phase: ring2.PhaseDecode, Sampled: true,
		LayoutMask: 1}
}

func prefill(number uint64, count uint32) ring2.StepRange {
	return ring2.StepRange{Number: number, Count: count, LayoutMask: 1}
}

// step is a STEP record with one capture of the layout.
func (e *engine) step(ranges ...ring2.StepRange) { e.stepBut(func(*ring2.Record) {}, ranges...) }

// stepBut is a step whose capture is changed. Without a kind it is lost.
func (e *engine) stepBut(change func(*ring2.Record), ranges ...ring2.StepRange) {
	seq := e.s.ClaimSeq()
	st := ring2.Step{Step: e.steps, Ranges: ranges,
		Layouts: []ring2.StepLayout{{Layout: e.layout.ID, CaptureSeq: seq + 1}}}
	e.steps++
	e.s.put(ring2.KindStep, ring2.AppendStep(nil, st))
	e.s.set(func() {
		e.s.claim++
		c := e.capture(&st)
		if change(&c); c.Kind == 0 {
			e.s.lost = append(e.s.lost, seq+1)
			return
		}
		e.s.records = append(e.s.records, c)
	})
}

// dropped is a STEP record whose capture found no room.
func (e *engine) dropped(why ring2.Reason, ranges ...ring2.StepRange) {
	st := ring2.Step{Step: e.steps, Ranges: ranges, Layouts: []ring2.StepLayout{{Layout: e.layout.ID, Outcome: why}}}
	e.steps++
	e.s.put(ring2.KindStep, ring2.AppendStep(nil, st))
}

// capture is the CAPTURE record of a step. Its rows say what they mean.
func (e *engine) capture(st *ring2.Step) ring2.Record {
	var payload []byte
	for i := range e.layout.Entries {
		payload = append(payload, make([]byte, (64-len(payload)%64)%64)...)
		payload = append(payload, e.rows(st, &e.layout.Entries[i])...)
	}
	return ring2.Record{Seq: st.Layouts[0].CaptureSeq, Kind: ring2.KindCapture, Step: st.Step, Layout: e.layout.ID,
		CaptureNS: 5, Payload: payload}
}

func (e *engine) rows(st *ring2.Step, en *ring2.LayoutEntry) (out []byte) {
	for _, rg := range st.Ranges {
		for k := range rg.Count {
			if rg.LayoutMask == 0 || en.Select == ring2.SelectSampled && (!rg.Sampled || k < rg.Count-1) {
				continue
			}
			row := make([]byte, en.RowBytes())
			fillRow(row, rg.Number, int32(rg.Position+k), int32(rg.Pass), en.Hook, en.Layer)
			out = append(out, row...)
		}
	}
	return out
}

// world is an agent on a bus in memory.
type world struct {
	*testing.T
	bus   *bustest.Bus
	agent *Agent
	stop  func() // ends the agent, and waits
	tasks sync.WaitGroup
	ctx   context.Context
}

func newWorld(t *testing.T, o Options) *world {
	w := &world{T: t, bus: bustest.New()}
	t.Cleanup(func() { w.bus.Close() })
	w.start(o)
	return w
}

// start starts an agent, as after a restart.
func (w *world) start(o Options) {
	w.Helper()
	if o.Bus == nil {
		o.Bus = w.bus
	}
	if o.Logger == nil {
		o.Logger = quiet()
	}
	if o.LingerMS == 0 {
		o.LingerMS = 2
	}
	var err error
	if w.agent, err = New(o); err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.ctx = ctx
	agent := w.agent
	w.stop = func() {
		cancel()
		w.tasks.Wait()
		agent.stopServing()
		if err := agent.Close(); err != nil {
			w.Error(err)
		}
	}
	w.Cleanup(func() { w.stop() })
}

// attach gives a session to the agent.
func (w *world) attach(s Session) (done <-chan struct{}) {
	ended := make(chan struct{})
	w.tasks.Go(func() { defer close(ended); w.agent.Attach(w.ctx, s) })
	return ended
}

// await waits for the end of a session.
func (w *world) await(done <-chan struct{}) {
	w.Helper()
	select {
	case <-done:
	case <-deadline(w.T).Done():
		w.Fatalf("the session does not end; the ledger is %+v", w.agent.Snapshot().Total)
	}
}

// coverage is what the messages of a chain cover: everything below a watermark, and
// spans above it.
type coverage struct {
	mark  schema.Cursor
	spans [][2]schema.Cursor
}

func (c *coverage) covers(at schema.Cursor) bool {
	return at.Less(c.mark) || slices.ContainsFunc(c.spans, func(s [2]schema.Cursor) bool {
		return !at.Less(s[0]) && at.Less(s[1])
	})
}

func (c *coverage) add(from, to schema.Cursor) {
	c.spans = append(c.spans, [2]schema.Cursor{from, to})
	for joined := true; joined; {
		joined = false
		c.spans = slices.DeleteFunc(c.spans, func(s [2]schema.Cursor) bool {
			if c.mark.Less(s[0]) {
				return false
			}
			if c.mark.Less(s[1]) {
				c.mark, joined = s[1], true
			}
			return true
		})
	}
}

// stored is what a consumer keeps of the stream.
type stored struct {
	seen     map[string]string // by chain and (seq, row)
	chains   map[schema.ChainKey]*coverage
	tenants  map[string]string // of requests
	facts    []ledger.Fact
	rows     []ledger.Row
	vectors  map[string]schema.VectorRow // as seen
	stats    int
	requests []schema.RequestRow
	account  *ledger.Account
}

// consume reads the stream as a consumer does: it decodes each message, checks that
// copies of a row are equal, that tenants do not mix and that each row holds what
// its identity says, and accounts for every row.
func (w *world) consume() *stored {
	w.Helper()
	out := &stored{vectors: map[string]schema.VectorRow{}, seen: map[string]string{}, tenants: map[string]string{},
		chains: map[schema.ChainKey]*coverage{}}
	for _, d := range w.bus.Messages() {
		m, err := schema.Decode(d.Data)
		if err != nil {
			w.Fatal(err)
		}
		c := out.chains[m.Header.Chain()]
		if c == nil {
			c = &coverage{}
			out.chains[m.Header.Chain()] = c
		}
		for i := range m.Len() {
			w.take(out, c, m, i)
		}
		c.add(m.Header.Prev, m.Header.Last())
	}
	slices.SortStableFunc(out.facts, func(a, b ledger.Fact) int { return isLayout(b) - isLayout(a) })
	b := ledger.NewBuilder()
	for _, f := range out.facts {
		if err := b.Fact(f); err != nil {
			w.Error(err)
		}
	}
	for _, v := range out.rows {
		b.Stored(v)
	}
	out.account = b.Finish()
	return out
}

// take takes row i of a message, unless it is a copy.
func (w *world) take(out *stored, c *coverage, m *schema.Batch, i int) {
	w.Helper()
	h := &m.Header
	var at schema.VectorRow
	var text string
	switch h.Kind {
	case schema.KindVectors:
		at = m.Vector(i)
		text = fmt.Sprint(at)
		w.checkRow(h, &at)
	case schema.KindStats:
		at, text = tokenAt(m, i), fmt.Sprint(m.Stats(i))
	case schema.KindRequests:
		v := m.RequestAt(i)
		at, text = schema.VectorRow{Seq: v.Seq, Row: v.Row}, fmt.Sprint(v)
		out.tenants[v.Request] = v.Tenant
		if v.Tenant != h.Tenant {
			w.Errorf("request of tenant %q in a message of %q", v.Tenant, h.Tenant)
		}
	case schema.KindLedger:
		v := m.Ledger(i)
		at = schema.VectorRow{Seq: v.Seq, Row: v.Row}
	}
	if owner, known := out.tenants[at.Request]; known && owner != h.Tenant {
		w.Errorf("a row of %s, which belongs to %q, is in a message of %q", at.Request, owner, h.Tenant)
	}
	key := fmt.Sprint(h.Chain(), at.Seq, at.Row)
	if old, twice := out.seen[key]; twice {
		if old != text {
			w.Errorf("%s is published twice, as %s and as %s", key, old, text)
		}
		return
	}
	out.seen[key] = text
	if c.covers(schema.Cursor{Seq: at.Seq, Row: at.Row}) {
		// Of two agents, only one may have been over its budget.
		if w.agent.policy.budget == 0 || h.Kind == schema.KindLedger || h.Kind == schema.KindRequests {
			w.Errorf("%s is new, but consumers were told that it is not: they would drop it", key)
		}
		return
	}
	switch h.Kind {
	case schema.KindVectors, schema.KindStats:
		out.rows = append(out.rows, ledger.Row{Epoch: h.Epoch, Hook: h.Hook, Layer: h.Layer, Shard: h.Shard, Seq: at.Seq,
			Row: at.Row})
		if h.Kind == schema.KindStats {
			out.stats++
			break
		}
		out.vectors[key] = at
	case schema.KindRequests:
		out.requests = append(out.requests, m.RequestAt(i))
	case schema.KindLedger:
		out.facts = append(out.facts, ledger.Fact{Epoch: h.Epoch, Engine: h.Engine, Rank: h.Rank, Tenant: h.Tenant,
			LedgerRow: m.Ledger(i)})
	}
}

func isLayout(f ledger.Fact) int {
	if f.Fact == schema.FactLayout {
		return 1
	}
	return 0
}

func (w *world) checkRow(h *schema.Header, v *schema.VectorRow) {
	want := make([]byte, len(v.Vec))
	fillRow(want, v.Number, v.Position, v.Pass, h.Hook, h.Layer)
	if !bytes.Equal(want, v.Vec) || v.Request != fmt.Sprintf("req-%d", v.Number) {
		w.Errorf("row %d:%d of %s layer %d, request %s position %d: these are not its bytes", v.Seq, v.Row, h.Hook, h.Layer,
			v.Request, v.Position)
	}
}

// balanced checks both ledgers and returns what is stored.
func (w *world) balanced() *stored {
	w.Helper()
	s := w.consume()
	if err := s.account.Balance(); err != nil {
		w.Errorf("%v\n%v", err, s.account)
	}
	total := w.agent.Snapshot().Total
	if err := total.Balance(); err != nil {
		w.Error(err)
	}
	return s
}

// find lists the facts of a kind.
func (s *stored) find(fact string) (out []ledger.Fact) {
	for _, f := range s.facts {
		if f.Fact == fact {
			out = append(out, f)
		}
	}
	return out
}

func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
