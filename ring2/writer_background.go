package ring2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// The background of a writer.
const (
	tickEvery       = 5 * time.Millisecond
	sweepEvery      = 20              // ticks between looks for stuck copies
	takeOverEvery   = 100             // ticks between looks for writers that died
	obituaryBurst   = 32              // obituaries put under one hold of the lock
	obituaryBursts  = 8               // in one tick
	rotateRetry     = 5 * time.Second // after a segment could not be made
	firstBackoff    = 20 * time.Millisecond
	longestBackoff  = time.Second
	refusedBackoff  = 5 * time.Second
	attachTimeout   = 10 * time.Second // of one handshake
	abortAckTimeout = 5 * time.Second
)

// library names this writer in HELLO, for people.
const library = "sonde ring2 (Go)"

// tick does what must go on while the engine is idle: it moves waiting control
// records into the ring, gives up stuck copies, tells obituaries, and shows that
// the writer lives.
func (w *Writer) tick(ctx context.Context) {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		w.tend(n%sweepEvery == 0)
		if n%takeOverEvery == 0 {
			if err := w.dead.takeOver(); err != nil {
				w.o.Logger.Warn("journal of a dead writer stays untold", "error", err)
			}
		}
		for i := 0; i < obituaryBursts && w.tellObituaries(); i++ {
		}
	}
}

// tend is one tick.
func (w *Writer) tend(sweep bool) {
	w.mu.Lock()
	w.refresh()
	before := w.core.claim
	empty := w.flush()
	w.countLater()
	news := w.core.claim != before
	if sweep && w.detached.Load() > 0 {
		news = w.core.abortStuck(w.core.now()-uint64(w.o.CopyTimeout)) || news
		w.core.refresh()
	}
	atomic.StoreUint64(&w.core.producer.BeatNS, w.core.now()) // pairs with the load in readerCore.counters
	if news {                                                 // else an idle reader would be woken by every tick
		w.wakeReader()
	}
	release, claim := w.core.release, w.core.claim
	old := w.journal.settle(empty, release, claim)
	rotate := w.journal.full(w.alive.bytes)
	w.mu.Unlock()
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			w.o.Logger.Warn("segment of the journal stays", "error", err)
		}
	}
	// The release word was read before retell was looked at, and a reader that
	// attaches sets retell before it can release anything: what was released then
	// was released by a reader that was told all of it.
	if w.retell.Swap(false) {
		w.dead.retell()
	} else {
		w.dead.released(release, claim)
	}
	if rotate && time.Now().After(w.rotateAfter) {
		w.rotate()
	}
}

// rotate begins a new segment of the journal. What is alive is written without
// the lock; what began to live meanwhile is added with it.
func (w *Writer) rotate() {
	w.mu.Lock()
	since := w.core.claim
	list := w.alive.all(func(r *aliveRecord) bool { return r.published }, since)
	w.mu.Unlock()
	f, size, err := w.journal.nextSegment(list)
	if err != nil {
		w.o.Logger.Warn("journal goes on without a new segment", "error", err)
		w.rotateAfter = time.Now().Add(rotateRetry)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.journal.begin(f, size)
	claim := w.core.claim
	for _, r := range w.alive.all(func(r *aliveRecord) bool { return r.published && claim-r.seq <= claim-since }, claim) {
		w.journal.append(r.ordinal, r.seq, r.kind, 0, r.payload)
	}
	for _, list := range [][]queued{w.queue.opens, w.queue.ends} {
		for i := range list {
			q := &list[i]
			w.journal.append(q.ordinal, claim, q.kind, ObituaryNeverPut, q.payload)
		}
	}
}

// tellObituaries puts some obituaries into the ring and says whether more could
// follow. They are in no hurry: they leave the reserve to control records, and
// half of the descriptors to captures.
func (w *Writer) tellObituaries() bool {
	if !w.attached.Load() || w.retell.Load() || !w.dead.ahead(obituaryBurst) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.core.refresh()
	if w.closing || !w.flush() {
		return false
	}
	before := w.core.claim
	for len(w.dead.next) > 0 && w.tellOne() {
	}
	if w.core.claim != before {
		w.wakeReader()
	}
	return len(w.dead.next) == 0
}

// tellOne puts the next obituary into the ring, or passes over one that never
// fits. It is false when there is no room for it now.
func (w *Writer) tellOne() bool {
	d, o := w.dead.dead[0], w.dead.next[0]
	if !d.begun {
		o.Flags |= ObituaryFirst
	}
	w.scratch = AppendObituary(w.scratch[:0], o)
	_, why := w.core.place(cursor{w.core.claim, w.core.head}, uint64(len(w.scratch)), false)
	if why == ReasonOversize {
		w.untold++
		w.dead.sent(w.core.claim)
		return true
	}
	if why != ReasonNone || w.core.claim-w.core.tail >= uint64(len(w.core.descs))/2 {
		return false
	}
	seq, ok := w.core.putControl(KindObituary, 0, w.scratch)
	if !ok {
		panic("BUG: a record that fits was not put")
	}
	d.begun = true
	w.dead.sent(seq)
	w.told++
	return true
}

// stayAttached keeps a connection to an agent, for ever.
func (w *Writer) stayAttached(ctx context.Context) {
	backoff := firstBackoff
	var said string
	for ctx.Err() == nil {
		err := w.attach(ctx)
		if w.attached.Swap(false) {
			backoff, said = firstBackoff, ""
			if errors.Is(err, io.EOF) {
				w.o.Logger.Info("agent is gone; capture goes on until the ring is full")
			} else if ctx.Err() == nil {
				w.o.Logger.Warn("connection to the agent failed; capture goes on until the ring is full", "error", err)
			}
		}
		var refused *refusedError
		if errors.As(err, &refused) && refused.sentence != said {
			said = refused.sentence
			w.o.Logger.Warn("agent refuses this engine", "error", err)
		}
		// Many ranks of many engines dial again when an agent restarts.
		nap := backoff/2 + rand.N(backoff/2)
		backoff = min(2*backoff, longestBackoff)
		if refused != nil {
			backoff = min(4*backoff, refusedBackoff)
		}
		select {
		case <-ctx.Done():
		case <-time.After(nap):
		}
	}
}

// refusedError is the agent's REFUSE.
type refusedError struct{ sentence string }

func (e *refusedError) Error() string { return "agent refused: " + e.sentence }

// attach dials the agent and serves it until the connection ends.
func (w *Writer) attach(ctx context.Context) error {
	var d net.Dialer
	dialed, err := d.DialContext(ctx, socketNetwork, w.o.Socket)
	if err != nil {
		return fmt.Errorf("dial agent: %w", err)
	}
	c := dialed.(*net.UnixConn)
	defer func() { _ = c.Close() }() // its end was seen before
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := c.SetDeadline(time.Now().Add(attachTimeout)); err != nil {
		return err
	}
	// A message is sent whole or not at all, also where the system's default
	// buffer is smaller than one.
	if err := c.SetWriteBuffer(abiMessageMaxBytes); err != nil {
		return err
	}
	buf := make([]byte, abiMessageMaxBytes)
	if err := w.shakeHands(c, buf); err != nil {
		return err
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	w.attaches.Add(1)
	w.attached.Store(true)
	for {
		m, err := receiveMessage(c, buf)
		if err != nil {
			return err
		}
		if m.typ != abiMessageAbort {
			m.closeFDs()
			return fmt.Errorf("agent sent %s after the handshake", m.name())
		}
		a, err := parseAbort(m.body)
		if err != nil {
			return err
		}
		if err := c.SetWriteDeadline(time.Now().Add(abortAckTimeout)); err != nil {
			return err
		}
		if err := sendMessage(c, abortAckMessage(w.answer(a))); err != nil {
			return err
		}
	}
}

// shakeHands passes the ring on and sends the snapshot.
func (w *Writer) shakeHands(c *net.UnixConn, buf []byte) error {
	if err := sendMessage(c, helloMessage(library), w.memory.ctlFD, w.memory.dataFD, w.memory.wk); err != nil {
		return err
	}
	m, err := receiveMessage(c, buf)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("agent closed the connection during the handshake")
		}
		return err
	}
	switch m.typ {
	case abiMessageRefuse:
		sentence, err := parseRefuse(m.body)
		return errors.Join(&refusedError{sentence}, err)
	case abiMessageWelcome:
		if _, err := parseWelcome(m.body); err != nil {
			return err
		}
	default:
		m.closeFDs()
		return fmt.Errorf("agent answered HELLO with %s", m.name())
	}
	// The reader before this one is gone, and the new one starts with the end of
	// the snapshot: in between nobody moves the release word.
	w.mu.Lock()
	w.retell.Store(true)
	w.core.resetReader()
	start, claim := w.core.release, w.core.claim
	alive := w.alive.snapshot(start, claim)
	w.mu.Unlock()
	for _, r := range alive {
		b, err := snapshotItemMessage(snapshotItem{seq: r.seq, kind: r.kind, payload: r.payload})
		if err != nil {
			panic("BUG: a control record outgrew its bound: " + err.Error())
		}
		if err := sendMessage(c, b); err != nil {
			return err
		}
	}
	return sendMessage(c, snapshotEndMessage(snapshotEnd{releaseSeq: start, count: uint32(len(alive))}))
}

// answer decides what an abort does. It can only hit the request that it means:
// one of this epoch, before it expires, if it ever does.
func (w *Writer) answer(a Abort) abortAck {
	ack := abortAck{id: a.ID, outcome: AbortUnknown}
	expired := a.ExpiresWallNS != 0 && a.ExpiresWallNS < uint64(time.Now().UnixNano())
	if a.Epoch != w.config.Epoch || expired || w.o.OnAbort == nil {
		return ack
	}
	ack.outcome, ack.finalLength = w.o.OnAbort(a)
	return ack
}
