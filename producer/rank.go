package producer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"sonde/ring2"
	"sonde/schema"
)

// rank reads one ring. One goroutine owns it but for the marked fields.
type rank struct {
	agent   *Agent
	ctx     context.Context // of run: see part
	s       Session
	cfg     ring2.Config
	name    rankName
	owner   string // the name, for the spool
	log     *slog.Logger
	account *account // also read by Snapshot

	own  *epoch
	dead map[uint64]*epoch // told by obituaries; nil for those that are closed

	groups    []*group // not released, in the order of the ring
	freeGroup []*group
	heldBytes int64 // payload bytes of the groups
	nextSeq   uint64
	step      *openStep // whose captures are being read, or nil
	stepMem   openStep
	scratch   stepScratch
	open      []*chain  // that may hold an open batch, oldest first
	pinned    [2]*chain // that makeRoom must not forget
	clock     time.Time

	inflight     int64 // bytes published and not acknowledged
	freeMessages []*message
	buffers      buffers
	refused      []*message
	failed       error // the bus gave up on a message

	bye        *group // of the BYE record
	ended      bool   // EOF: nothing comes any more
	lastWords  bool   // what only the end of the epoch shows was published
	base       baseline
	namedRows  uint64
	quarantine error

	unanswered sync.WaitGroup // messages that the bus or the spool did not answer
	acks       ackQueue
	requests   requestTable  // also read by abort commands
	from       uint64        // release_seq when the agent attached
	readTo     atomic.Uint64 // nextSeq, for stageCounts
	heldNow    atomic.Int64  // for metrics: heldBytes, inflight, age of the oldest open batch
	inflightB  atomic.Int64
	oldestNS   atomic.Int64

	lastWarning  time.Time     // of warn
	replaced     chan struct{} // closed when the next epoch of this rank attaches
	replacedOnce sync.Once
	gone         chan struct{} // closed when the agent forgot it
}

// warn logs what the records of a rank can cause without end, at most once a
// second, so that a hostile engine does not fill the log. Counters tell the rest.
func (r *rank) warn(what string, args ...any) {
	if now := time.Now(); now.Sub(r.lastWarning) >= time.Second {
		r.lastWarning = now
		r.log.Warn(what, args...)
	}
}

// group is what is released together: a control record, or a STEP with its
// CAPTUREs.
type group struct {
	next   uint64 // release_seq once it is done
	bytes  int64
	refs   int  // batches and messages that hold rows of it
	inOpen int  // of them, open batches
	closed bool // every record of it was read and expanded
}

// baseline is what the writer had counted when the agent attached.
type baseline struct {
	claim uint64
	rows  uint64
}

func newRank(a *Agent, s Session, log *slog.Logger) *rank {
	c := s.Config()
	r := &rank{agent: a, s: s, cfg: c, name: rankName{c.EngineInstance, int(c.Rank)}, log: log, account: newAccount(),
		dead: map[uint64]*epoch{}, clock: a.now(), replaced: make(chan struct{}), gone: make(chan struct{}),
		nextSeq: s.ReleaseSeq()}
	r.from = r.nextSeq
	r.owner = ownerOf(r.name)
	r.acks.signal = make(chan struct{}, 1)
	r.requests.tenants = map[uint64]string{}
	r.own = newEpoch(r, c.Epoch, attachCursor(s.ReleaseSeq()))
	return r
}

// errQuarantined marks a ring whose records do not make sense.
type errQuarantined struct{ cause error }

func (e errQuarantined) Error() string { return e.cause.Error() }
func (e errQuarantined) Unwrap() error { return e.cause }

func quarantined(err error) bool {
	var q errQuarantined
	return errors.As(err, &q)
}

// batchOfRecords passes from the reading goroutine to the owner.
type batchOfRecords struct {
	records []ring2.Record
	err     error
}

// run reads until the epoch is closed, the ring is quarantined, the bus gives up,
// or ctx ends. With a ring that no other agent will read it goes on for a while.
func (r *rank) run(ctx context.Context) error {
	ctx, cancel := r.part(ctx)
	defer cancel()
	r.ctx = ctx
	if err := r.attach(); err != nil {
		return errQuarantined{err}
	}
	in, back, stopped := make(chan batchOfRecords), make(chan struct{}), make(chan struct{})
	go r.read(ctx, in, back, stopped)
	defer func() { cancel(); <-stopped }()
	linger := time.Duration(r.agent.o.LingerMS) * time.Millisecond
	ticker := time.NewTicker(max(linger/4, time.Millisecond))
	defer ticker.Stop()
	for {
		if done := r.finish(); r.failed != nil {
			return r.failed
		} else if done && r.quarantine != nil {
			return errQuarantined{r.quarantine}
		} else if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.acks.signal:
			r.takeAcks()
		case <-ticker.C:
			r.tick(linger)
		case b := <-in:
			r.clock = r.agent.now()
			if err := r.records(b); err != nil && r.failed == nil {
				r.quarantine, in = err, nil
			}
			if b.err != nil || in == nil {
				continue
			}
			select {
			case back <- struct{}{}:
			case <-stopped: // with ctx
			}
		}
	}
}

// read hands over records; the slice is reused when the owner gives it back.
func (r *rank) read(ctx context.Context, in chan<- batchOfRecords, back <-chan struct{}, stopped chan<- struct{}) {
	defer close(stopped)
	var records []ring2.Record
	for {
		var err error
		records, err = r.s.Next(ctx, records[:0])
		select {
		case in <- batchOfRecords{records, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
		select {
		case <-back:
		case <-ctx.Done():
			return
		}
	}
}

// attach takes the snapshot: what is alive below release_seq. Its layouts are
// published again; requests were acknowledged when they were opened.
func (r *rank) attach() error {
	r.base = readBaseline(r.s)
	e, prev := r.own, r.own.prev
	e.prev = schema.Cursor{}
	g := &group{closed: true}
	next := uint64(0)
	for _, rec := range r.s.Snapshot() {
		if rec.Seq < next || rec.Seq >= r.nextSeq {
			return fmt.Errorf("snapshot record %d, %s: want %d to below %d", rec.Seq, rec.Kind, next, r.nextSeq)
		}
		next = rec.Seq + 1
		if err := r.control(e, rec.Seq, rec.Kind, rec.Payload, g, true); err != nil {
			return fmt.Errorf("snapshot record %d, %s: %w", rec.Seq, rec.Kind, err)
		}
	}
	e.flushAll()
	e.prev = prev
	for _, c := range e.chains {
		c.prev = prev
	}
	return nil
}

// readBaseline reads counters and claim at one moment of the writer, or as close
// to one as a busy writer allows.
func readBaseline(s Session) baseline {
	for try := 0; ; try++ {
		claim := s.ClaimSeq()
		rows := s.Producer().CapturedRows
		if s.ClaimSeq() == claim || try == 100 {
			return baseline{claim: claim, rows: rows}
		}
	}
}

// records expands what was read. Its error quarantines the ring.
func (r *rank) records(b batchOfRecords) error {
	for i := range b.records {
		rec := &b.records[i]
		r.nextSeq = rec.Seq + 1
		if err := r.record(rec); err != nil {
			return fmt.Errorf("record %d, %s: %w", rec.Seq, rec.Kind, err)
		}
		if r.failed != nil {
			return nil
		}
	}
	r.readTo.Store(r.nextSeq)
	r.retire()
	r.relieve()
	switch {
	case b.err == nil, r.ctx.Err() != nil:
		return nil
	case errors.Is(b.err, io.EOF):
		r.ended = true
		return nil
	}
	return b.err
}

// record expands one record of the ring.
func (r *rank) record(rec *ring2.Record) error {
	if r.step != nil {
		return r.step.take(rec)
	}
	if r.bye != nil {
		return errors.New("it follows the BYE record")
	}
	g := r.newGroup(rec)
	var err error
	switch rec.Kind {
	case ring2.KindStep:
		err = r.beginStep(rec, g)
	case ring2.KindCapture:
		err = errors.New("no STEP announced it")
	case ring2.KindObituary:
		err = r.obituary(rec, g)
		g.closed = true
	case ring2.KindBye:
		g.refs++ // until the closed fact is acknowledged
		r.bye, g.closed = g, true
	default:
		err = r.control(r.own, rec.Seq, rec.Kind, rec.Payload, g, false)
		g.closed = true
	}
	return err
}

// control expands a control record of an epoch: of the ring, of the snapshot, or
// of an obituary. A kind that this version does not know is passed over.
func (r *rank) control(e *epoch, seq uint64, kind ring2.Kind, payload []byte, g *group, snapshot bool) error {
	switch kind {
	case ring2.KindModel:
		m, err := ring2.ParseModel(payload)
		if err != nil {
			return err
		}
		e.setModel(m)
	case ring2.KindLayout:
		l, err := ring2.ParseLayout(payload)
		if err != nil {
			return err
		}
		lay, err := e.addLayout(seq, l)
		if err != nil {
			return err
		}
		e.layoutFact(lay, g)
	case ring2.KindRequestOpen:
		o, err := ring2.ParseRequestOpen(payload)
		if err != nil {
			return err
		}
		q, err := e.openRequest(o)
		if err == nil && !snapshot {
			e.openRow(seq, q, g)
		}
		return err
	case ring2.KindRequestEnd:
		end, err := ring2.ParseRequestEnd(payload)
		if err != nil {
			return err
		}
		e.endRow(seq, end, g)
		e.endRequest(end.Number)
	case ring2.KindAmend:
		a, err := ring2.ParseAmend(payload)
		if err != nil {
			return err
		}
		e.amendFacts(seq, a, g)
	case ring2.KindMissing:
		m, err := ring2.ParseMissing(payload)
		if err != nil {
			return err
		}
		return e.missingFacts(seq, m, g)
	}
	return nil
}

func (r *rank) newGroup(rec *ring2.Record) *group {
	var g *group
	if n := len(r.freeGroup); n > 0 {
		g, r.freeGroup = r.freeGroup[n-1], r.freeGroup[:n-1]
	} else {
		g = &group{}
	}
	*g = group{next: rec.Seq + 1, bytes: int64(len(rec.Payload))}
	r.heldBytes += g.bytes
	r.groups = append(r.groups, g)
	return g
}

// retire releases the groups at the front that nothing holds any more.
func (r *rank) retire() {
	n := 0
	var next uint64
	for ; n < len(r.groups) && r.groups[n].closed && r.groups[n].refs == 0; n++ {
		next = r.groups[n].next
		r.heldBytes -= r.groups[n].bytes
		r.freeGroup = append(r.freeGroup, r.groups[n])
	}
	r.heldNow.Store(r.heldBytes)
	if n == 0 {
		return
	}
	r.groups = r.groups[:copy(r.groups, r.groups[n:])]
	r.s.Release(next)
}

// relieve closes the open batches when a ring that fills up waits for one of them.
func (r *rank) relieve() {
	if len(r.groups) == 0 || r.groups[0].inOpen == 0 {
		return
	}
	waiting := r.s.ClaimSeq() - r.s.ReleaseSeq()
	if waiting <= r.cfg.DescCount/2 && uint64(r.heldBytes) <= r.cfg.DataBytes/2 {
		return
	}
	r.own.flushAll()
	for _, e := range r.dead {
		if e != nil {
			e.flushAll()
		}
	}
}

// tick closes batches that lingered.
func (r *rank) tick(linger time.Duration) {
	r.clock = r.agent.now()
	oldest := time.Duration(0)
	for _, c := range r.takeOpen() {
		if age := r.clock.Sub(c.openedAt); age >= linger {
			c.flush()
		} else {
			oldest = max(oldest, age)
		}
	}
	r.oldestNS.Store(int64(oldest))
	r.relieve()
	r.buffers.trim(r.clock)
}

// takeOpen lists the chains with an open batch, and forgets the others. The
// slice is a copy: flushing may open batches.
func (r *rank) takeOpen() []*chain {
	kept := r.open[:0]
	for _, c := range r.open {
		if c.rows > 0 && !c.listed {
			c.listed = true
			kept = append(kept, c)
		}
	}
	clear(r.open[len(kept):])
	r.open = kept
	for _, c := range kept {
		c.listed = false
	}
	r.scratch.open = append(r.scratch.open[:0], kept...)
	return r.scratch.open
}
