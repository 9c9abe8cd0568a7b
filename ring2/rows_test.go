package ring2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// heapAlloc is the memory of a ring where the race detector sees it.
func heapAlloc(wake int) func(descs, bytes uint64) (*ringMemory, error) {
	return func(descs, bytes uint64) (*ringMemory, error) {
		m := &ringMemory{ctl: heapMemory(int(ctlBytes(descs))), data: heapMemory(int(bytes)), ctlFD: -1, dataFD: -1, wk: wake}
		m.unmap = func() {}
		return m, nil
	}
}

// heapPair is a writer and a session on the same heap memory. engine is the
// engine's end of the socket: closing it is the engine's death.
type heapPair struct {
	w      *Writer
	s      *Session
	engine *net.UnixConn
}

func newHeapPair(t *testing.T, o WriterOptions, startSeq, startPos uint64) *heapPair {
	t.Helper()
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWriter(o, heapAlloc(wake), startSeq, startPos)
	if err != nil {
		t.Fatal(err)
	}
	p := &heapPair{w: w}
	p.attach(t)
	t.Cleanup(func() {
		_ = p.s.Close()
		_ = w.Close(context.Background())
	})
	return p
}

// attach makes a session on the writer's memory, as a new agent does.
func (p *heapPair) attach(t *testing.T) {
	t.Helper()
	wake, err := unix.FcntlInt(uintptr(p.w.memory.wk), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	m := &readerMemory{ctl: p.w.memory.ctl, consumer: p.w.memory.ctl[abiConsumerOff:], data: p.w.memory.data,
		wake: os.NewFile(uintptr(wake), "eventfd")}
	m.unmap = func() { _ = m.wake.Close() }
	agent, engine := socketPair(t)
	p.w.mu.Lock()
	p.w.core.resetReader()
	start, claim := p.w.core.release, p.w.core.claim
	var snapshot []Record
	for _, r := range p.w.alive.snapshot(start, claim) {
		snapshot = append(snapshot, Record{Seq: r.seq, Kind: r.kind, Payload: r.payload})
	}
	p.w.mu.Unlock()
	r, err := ringOn(m.ctl, m.consumer, m.data, p.w.config.DescCount)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSession(p.w.config, snapshot, m, newReaderCore(r, start), agent)
	if err != nil {
		t.Fatal(err)
	}
	go s.serve(make([]byte, abiMessageMaxBytes))
	p.s, p.engine = s, engine
}

// seeded is a source of chance that says how to get the same again.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("RING2_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("RING2_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

var (
	denseLayout = []LayoutEntry{
		{Hook: "resid_post", Layer: 0, DType: F32, Shape: []uint32{6}},
		{Hook: "resid_post", Layer: 1, DType: BF16, Shape: []uint32{33}},
		{Hook: "logits_top", Layer: -1, DType: I32, Shape: []uint32{2, 2}, Select: SelectSampled},
	}
	raggedLayout = []LayoutEntry{
		{Hook: "attn", Layer: 0, DType: U8, Ragged: true},
		{Hook: "token_ids", Layer: -1, DType: I32},
	}
)

// fillRow writes what a row must hold: a function of its meaning.
func fillRow(row []byte, number uint64, position, pass uint32, entry int) {
	var key [24]byte
	binary.LittleEndian.PutUint64(key[:], number)
	binary.LittleEndian.PutUint32(key[8:], position)
	binary.LittleEndian.PutUint32(key[12:], pass)
	binary.LittleEndian.PutUint64(key[16:], uint64(entry))
	x := uint64(1469598103934665603)
	for _, b := range key {
		x = (x ^ uint64(b)) * 1099511628211
	}
	for i := range row {
		x = x*6364136223846793005 + 1442695040888963407
		row[i] = byte(x >> 56)
	}
}

// raggedRowBytes is the length of a ragged row.
func raggedRowBytes(position uint32) int { return int(position%7) * 3 }

// fillEntry writes one entry of one layout of a step into its span.
func fillEntry(span []byte, l *Layout, layoutIndex, entry int, ranges []StepRange) {
	e := &l.Entries[entry]
	var rows []struct{ number, position, pass uint64 }
	for _, r := range ranges {
		if r.LayoutMask>>layoutIndex&1 == 0 {
			continue
		}
		for k := range r.Count {
			if e.Select == SelectAll || r.Sampled && k == r.Count-1 {
				rows = append(rows, struct{ number, position, pass uint64 }{r.Number, uint64(r.Position + k), uint64(r.Pass)})
			}
		}
	}
	at := 0
	if e.Ragged {
		at = 8 * (len(rows) + 1)
	}
	base := at
	for i, r := range rows {
		n := e.RowBytes()
		if e.Ragged {
			binary.LittleEndian.PutUint64(span[8*i:], uint64(at-base))
			n = raggedRowBytes(uint32(r.position))
		}
		fillRow(span[at:at+n], r.number, uint32(r.position), uint32(r.pass), entry)
		at += n
	}
	if e.Ragged {
		binary.LittleEndian.PutUint64(span[8*len(rows):], uint64(at-base))
	}
}

func raggedBytes(l *Layout, layoutIndex int, ranges []StepRange) []RaggedBytes {
	var out []RaggedBytes
	for entry := range l.Entries {
		if !l.Entries[entry].Ragged {
			continue
		}
		n := 0
		for _, r := range ranges {
			for k := range r.Count {
				if r.LayoutMask>>layoutIndex&1 == 1 {
					n += raggedRowBytes(r.Position + k)
				}
			}
		}
		out = append(out, RaggedBytes{Layout: layoutIndex, Entry: entry, Bytes: n})
	}
	return out
}

// checker reads records as an agent does and keeps the books of what they say.
type checker struct {
	t         *testing.T
	layouts   map[uint32]*Layout
	open      map[uint64]RequestOpen
	ended     map[uint64]bool
	steps     map[uint64]*Step
	next      uint64 // sequence number
	any       bool
	committed uint64 // rows
	dropped   [ReasonCount]uint64
	aborted   uint64
	expected  uint64 // rows of STEPs and MISSINGs
	bye       bool
	kinds     map[Kind]int
	holes     map[uint64]bool // sequence numbers that were lost
}

func newChecker(t *testing.T, s *Session) *checker {
	c := &checker{t: t, layouts: map[uint32]*Layout{}, open: map[uint64]RequestOpen{}, ended: map[uint64]bool{},
		steps: map[uint64]*Step{}, kinds: map[Kind]int{}, holes: map[uint64]bool{}}
	for _, r := range s.Snapshot() {
		c.control(&r)
	}
	return c
}

func (c *checker) record(r *Record) {
	c.t.Helper()
	for c.any && c.holes[c.next] {
		c.next++
	}
	if c.any && r.Seq != c.next {
		c.t.Fatalf("record %d follows %d", r.Seq, c.next-1)
	}
	c.any, c.next = true, r.Seq+1
	if r.Kind == KindCapture {
		c.capture(r)
		return
	}
	c.control(r)
}

func (c *checker) control(r *Record) {
	c.t.Helper()
	c.kinds[r.Kind]++
	must := func(err error) {
		c.t.Helper()
		if err != nil {
			c.t.Fatalf("record %d, %s: %v", r.Seq, r.Kind, err)
		}
	}
	switch r.Kind {
	case KindLayout:
		l, err := ParseLayout(r.Payload)
		must(err)
		c.layouts[l.ID] = &l
	case KindRequestOpen:
		o, err := ParseRequestOpen(r.Payload)
		must(err)
		c.open[o.Number] = o
	case KindRequestEnd:
		e, err := ParseRequestEnd(r.Payload)
		must(err)
		if _, ok := c.open[e.Number]; !ok {
			c.t.Fatalf("request %d ends and was never announced", e.Number)
		}
		c.ended[e.Number] = true
	case KindStep:
		s, err := ParseStep(r.Payload)
		must(err)
		c.step(&s)
	case KindMissing:
		m, err := ParseMissing(r.Payload)
		must(err)
		for _, x := range m.Ranges {
			c.named(x.Number, x.Layout)
			c.dropped[x.Reason] += x.Rows
			c.expected += x.Rows
		}
	case KindBye:
		c.bye = true
	}
}

func (c *checker) named(number uint64, layout uint32) {
	c.t.Helper()
	if _, ok := c.open[number]; !ok || c.ended[number] {
		c.t.Fatalf("rows of request %d, which is not open", number)
	}
	if c.layouts[layout] == nil {
		c.t.Fatalf("rows of layout %d, which was never announced", layout)
	}
}

func (c *checker) step(s *Step) {
	c.t.Helper()
	for i, l := range s.Layouts {
		rows := c.ledgerRows(s, i)
		c.expected += rows
		if l.Outcome != ReasonNone {
			c.dropped[l.Outcome] += rows
		}
		for _, r := range s.Ranges {
			c.named(r.Number, l.Layout)
		}
	}
	c.steps[s.Step] = s
}

func (c *checker) ledgerRows(s *Step, i int) uint64 {
	n := 0
	for _, e := range c.layouts[s.Layouts[i].Layout].Entries {
		n += s.EntryRows(i, e.Select)
	}
	return uint64(n)
}

func (c *checker) capture(r *Record) {
	c.t.Helper()
	s := c.steps[r.Step]
	if s == nil {
		c.t.Fatalf("capture %d of step %d, which was never announced", r.Seq, r.Step)
	}
	i := 0
	for i < len(s.Layouts) && s.Layouts[i].CaptureSeq != r.Seq {
		i++
	}
	if i == len(s.Layouts) || s.Layouts[i].Layout != r.Layout || s.Layouts[i].Outcome != ReasonNone {
		c.t.Fatalf("capture %d was not announced by step %d", r.Seq, r.Step)
	}
	if r.Aborted() {
		c.aborted += c.ledgerRows(s, i)
		return
	}
	l := c.layouts[r.Layout]
	entries, err := SplitCapture(l, s, i, r.Payload)
	if err != nil {
		c.t.Fatalf("capture %d: %v", r.Seq, err)
	}
	for e := range entries {
		c.entry(r.Seq, l, s, i, &entries[e])
	}
}

func (c *checker) entry(seq uint64, l *Layout, s *Step, i int, rows *EntryRows) {
	c.t.Helper()
	at := 0
	for _, r := range s.Ranges {
		if r.LayoutMask>>i&1 == 0 {
			continue
		}
		for k := range r.Count {
			if l.Entries[rows.Entry].Select == SelectSampled && (!r.Sampled || k != r.Count-1) {
				continue
			}
			got := rows.Row(at)
			want := make([]byte, len(got))
			fillRow(want, r.Number, r.Position+k, r.Pass, rows.Entry)
			if string(got) != string(want) || l.Entries[rows.Entry].Ragged && len(got) != raggedRowBytes(r.Position+k) {
				c.t.Fatalf("capture %d, entry %d: row of request %d, position %d holds other bytes", seq, rows.Entry, r.Number,
					r.Position+k)
			}
			at++
			c.committed++
		}
	}
	if at != rows.Rows {
		c.t.Fatalf("capture %d, entry %d: %d rows; want %d", seq, rows.Entry, rows.Rows, at)
	}
}

// balance checks the first law at the end of an epoch.
func (c *checker) balance(s WriterStats) {
	c.t.Helper()
	dropped := uint64(0)
	for reason, n := range c.dropped {
		if reason != int(ReasonControlFull) && n != s.DroppedRows[reason] ||
			reason == int(ReasonControlFull) && n+s.UnnamedRows != s.DroppedRows[reason] {
			c.t.Errorf("dropped for %s: records say %d rows, the writer counted %d (unnamed %d)", Reason(reason), n,
				s.DroppedRows[reason], s.UnnamedRows)
		}
		dropped += n
	}
	if c.aborted != s.AbortedRows {
		c.t.Errorf("aborted: records say %d rows, the writer counted %d", c.aborted, s.AbortedRows)
	}
	if sum := c.committed + dropped + c.aborted; sum+s.UnnamedRows != s.CapturedRows || sum != c.expected {
		c.t.Errorf("captured %d rows = committed %d + dropped %d + aborted %d + unnamed %d does not hold; expected %d",
			s.CapturedRows, c.committed, dropped, c.aborted, s.UnnamedRows, c.expected)
	}
}

// drain reads until the end of the engine, releasing as it goes when it should.
func (c *checker) drain(s *Session, release bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		records, err := s.Next(ctx, nil)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			c.t.Fatalf("read after record %d: %v", c.next, err)
		}
		for _, seq := range s.Lost() {
			c.holes[seq] = true
		}
		for i := range records {
			c.record(&records[i])
			if release {
				s.Release(records[i].Seq + 1)
			}
		}
	}
}
