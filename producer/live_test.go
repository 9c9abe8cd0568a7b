package producer

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/internal/notrun"
	"sonde/ring2"
	"sonde/schema"
)

// live runs agents, one after the other, on a socket.
type live struct {
	*world
	socket  string
	options Options
	current atomic.Pointer[Agent]
	listen  *ring2.Listener
}

func newLive(t *testing.T, o Options) *live {
	l := &live{world: &world{T: t, bus: bustest.New()}, socket: filepath.Join(t.TempDir(), "s"), options: o}
	t.Cleanup(func() { l.bus.Close() })
	l.begin()
	t.Cleanup(func() { l.stop() })
	return l
}

func (l *live) begin() {
	var err error
	l.listen, err = ring2.Listen(l.socket, ring2.ListenerOptions{Name: "test", Logger: quiet()})
	if err != nil {
		l.Fatal(err)
	}
	o := l.options
	o.Listener = l.listen
	l.start(o)
	l.current.Store(l.agent)
	agent, ctx, stop := l.agent, l.ctx, l.stop
	l.tasks.Go(func() {
		if err := agent.Run(ctx); err != nil {
			l.Errorf("the agent ended with %v", err)
		}
	})
	l.stop = func() { stop(); l.listen.Close() }
}

// model computes steps of random requests and captures them.
type model struct {
	t       *testing.T
	rng     *rand.Rand
	w       *ring2.Writer
	layouts []ring2.Layout
	ids     []uint32
	alive   []*sequence
	number  uint64
	copies  sync.WaitGroup
}

type sequence struct {
	number             uint64
	next, prompt, pass uint32
}

var liveLayouts = [][]ring2.LayoutEntry{testEntries,
	{{Hook: "pattern", Layer: 3, DType: ring2.U8, Ragged: true},
		{Hook: "mlp_out", Layer: 3, DType: ring2.F16, Shape: []uint32{5}}}}

func newModel(t *testing.T, rng *rand.Rand, socket string) *model {
	w, err := ring2.NewWriter(ring2.WriterOptions{Socket: socket, EngineInstance: "engine", RankCount: 1, DescCount: 256,
		DataBytes: 256 << 10, StateDir: t.TempDir(), Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	m := &model{t: t, rng: rng, w: w}
	m.must(w.SetModel(ring2.Model{Name: "live"}))
	for _, entries := range liveLayouts {
		id, err := w.DefineLayout(entries)
		m.must(err)
		m.ids = append(m.ids, id)
		m.layouts = append(m.layouts, ring2.Layout{ID: id, Entries: entries})
	}
	return m
}

func (m *model) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) open() {
	m.number++
	s := &sequence{number: m.number, prompt: 1 + m.rng.Uint32N(12)}
	tenant := []string{"", "acme", "other"}[m.number%3]
	o, err := ring2.ParseRequestOpen(openRecord(s.number, tenant, s.prompt))
	m.must(err)
	if m.w.OpenRequest(o) == nil { // else the queue of a full ring is full, too
		m.alive = append(m.alive, s)
	}
}

// step computes one token or chunk of some requests.
func (m *model) step() {
	if len(m.alive) == 0 || len(m.alive) < 5 && m.rng.IntN(4) == 0 {
		m.open()
	}
	var ranges []ring2.StepRange
	for _, s := range m.alive {
		if m.rng.IntN(3) == 0 {
			continue
		}
		if m.rng.IntN(40) == 0 { // preempted: all is computed anew
			s.next, s.pass = 0, s.pass+1
		}
		r := ring2.StepRange{Number: s.number, Position: s.next, Count: 1, Pass: s.pass, Phase: ring2.PhaseDecode,
			LayoutMask: m.rng.Uint64N(4)}
		if s.next < s.prompt {
			r.Count, r.Phase = min(1+m.rng.Uint32N(8), s.prompt-s.next), ring2.PhasePrefill
		}
		s.next += r.Count
		r.Sampled = s.next >= s.prompt
		ranges = append(ranges, r)
	}
	if len(ranges) == 0 {
		return
	}
	m.capture(ranges)
	for i, s := range m.alive {
		if m.rng.IntN(60) == 0 {
			m.must(m.w.EndRequest(ring2.RequestEnd{Number: s.number, GeneratedTokens: s.next}))
			m.alive = append(m.alive[:i:i], m.alive[i+1:]...)
			break
		}
	}
}

func (m *model) capture(ranges []ring2.StepRange) {
	var ragged ring2.RaggedBytes
	ragged.Layout = 1
	for _, r := range ranges {
		for k := uint32(0); k < r.Count && r.LayoutMask&2 != 0; k++ {
			ragged.Bytes += int(r.Position+k) % 7
		}
	}
	st, err := m.w.BeginStep(ranges, m.ids, ragged)
	m.must(err)
	for li := range m.layouts {
		if !st.Captured(li) {
			continue
		}
		for e := range m.layouts[li].Entries {
			m.fill(st.Span(li, e), ranges, li, e)
		}
		switch m.rng.IntN(12) {
		case 0:
			st.Abort(li)
		case 1:
			p, late, abort := st.Detach(li), time.Duration(m.rng.IntN(3))*time.Millisecond, m.rng.IntN(4) == 0
			m.copies.Go(func() {
				time.Sleep(late)
				if abort {
					p.Abort()
				} else {
					p.Commit()
				}
			})
		}
	}
	st.Commit()
}

// fill writes the rows of an entry, each of which says what it means.
func (m *model) fill(span []byte, ranges []ring2.StepRange, li, entry int) {
	en := &m.layouts[li].Entries[entry]
	var rows [][]byte
	for _, r := range ranges {
		for k := range r.Count {
			if r.LayoutMask>>li&1 == 0 || en.Select == ring2.SelectSampled && (!r.Sampled || k < r.Count-1) {
				continue
			}
			row := make([]byte, en.RowBytes())
			if en.Ragged {
				row = make([]byte, int(r.Position+k)%7)
			}
			fillRow(row, r.Number, int32(r.Position+k), int32(r.Pass), en.Hook, en.Layer)
			rows = append(rows, row)
		}
	}
	at := 0
	if en.Ragged {
		at = 8 * (len(rows) + 1)
	}
	base := at
	for i, row := range rows {
		if en.Ragged {
			binary.LittleEndian.PutUint64(span[8*i:], uint64(at-base))
			binary.LittleEndian.PutUint64(span[8*i+8:], uint64(at-base+len(row)))
		}
		at += copy(span[at:], row)
	}
}

// choosy is a policy with all that a policy can have.
var choosy = Policy{BudgetBytesPerS: 1 << 20, Rules: []Rule{
	{Hooks: []string{"resid_post"}, Layers: Layers{Ranges: [][2]int{{0, 0}}}, As: AsStats, Stride: 2},
	{Hooks: []string{"token_ids", "pattern", "logits"}, Layers: Layers{All: true}, Window: Window{Prompt: "last:3"}},
	{Hooks: []string{"mlp_*"}, Layers: Layers{All: true}, Requests: Requests{Tenants: []string{"acme"}}, Priority: 1}}}

func TestTheLedgersBalanceWhateverHappens(t *testing.T) {
	rng := random(t)
	seed := [2]uint64{rng.Uint64(), rng.Uint64()}
	policy := everything()
	if rng.IntN(2) == 0 {
		policy = choosy
	}
	t.Logf("policy %s", policy.Version())
	l := newLive(t, Options{Policy: policy, BatchBytes: 1500, InflightBytes: 20 << 10, DeadLetterDir: t.TempDir(),
		DeadLetterMaxBytes: 40 << 10, Live: []HookLayer{{"mlp_out", 3}}})
	fates := rand.New(rand.NewPCG(seed[0], 0))
	l.bus.OnPublish(func(m bus.Message, attempt int) bustest.Fate {
		switch n := fates.IntN(100); {
		case n < 8:
			return bustest.Fail
		case n < 12:
			return bustest.Duplicate
		case n < 14:
			return bustest.LoseAcks
		case n < 16 && attempt == 1 && strings.Contains(m.Subject, ".vectors."):
			return bustest.Refuse
		}
		return bustest.Take
	})
	ended := make(chan struct{})
	var readers sync.WaitGroup
	readers.Go(func() { // the law holds at every moment
		for {
			select {
			case <-ended:
				return
			default:
			}
			s := l.current.Load().Snapshot()
			for _, c := range append(s.Ranks, RankCounts{Counts: s.Total}) {
				if err := c.Balance(); err != nil {
					t.Error(err)
					return
				}
			}
			time.Sleep(50 * time.Microsecond)
		}
	})
	m := newModel(t, rand.New(rand.NewPCG(seed[1], 0)), l.socket)
	for range 1500 {
		m.step()
		switch n := rng.IntN(400); {
		case n < 2:
			l.stop()
			l.begin()
		case n == 2:
			l.bus.Stop()
			time.AfterFunc(20*time.Millisecond, l.bus.Start)
		}
		for s := m.w.Stats(); s.Claim-s.Release > 100 && rng.IntN(20) > 0; s = m.w.Stats() { // seldom is it too fast
			time.Sleep(time.Millisecond)
		}
	}
	m.copies.Wait()
	if err := m.w.Close(deadline(t)); err != nil {
		t.Error(err)
	}
	until(t, "the epoch is closed", func() bool { return l.current.Load().counters.epochsClosed.Load() > 0 })
	close(ended)
	readers.Wait()
	a := l.balanced().account
	if t.Logf("%v", a); a.Stored == 0 || a.Aborted == 0 || !a.AtRest() {
		t.Errorf("account %v", a)
	}
}

// A stranger's engine in C, written from the page of the ABI, is served like ours.
func TestAnEngineInCIsServed(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		notrun.Mark(t, "there is no C compiler")
	}
	peer := filepath.Join(t.TempDir(), "peer")
	if out, err := exec.Command(gcc, "-std=c11", "-O1", "-I../ring2", "-o", peer, "../ring2/testdata/peer/peer.c").
		CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l := newLive(t, Options{Policy: everything()})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	run := exec.CommandContext(ctx, peer, l.socket, "acme", "req-7", "60")
	run.Stderr = os.Stderr
	if err := run.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			t.Fatal(err)
		}
		t.Errorf("the peer ends with %v", err)
	}
	until(t, "the epoch is closed", func() bool { return l.agent.counters.epochsClosed.Load() == 1 })
	rows := 0
	for _, d := range l.bus.Messages() {
		b, err := schema.Decode(d.Data)
		if err != nil {
			t.Fatal(err)
		}
		if b.Header.Kind != schema.KindVectors {
			continue
		}
		for i := range b.Len() {
			if v := b.Vector(i); v.Request != "req-7" || b.Header.Tenant != "acme" || len(v.Vec) == 0 {
				t.Errorf("row %+v of tenant %s", v, b.Header.Tenant)
			}
			rows++
		}
	}
	total := l.agent.Snapshot().Total
	if err := total.Balance(); err != nil || uint64(rows) != total.Acknowledged || rows < 3*60 {
		t.Errorf("%d rows, live ledger %+v, %v", rows, total, err)
	}
}
