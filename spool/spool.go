// Package spool keeps what an agent publishes on disk while the bus is away. It
// stands between the agent and its bus. While the bus answers, messages pass through
// memory and no byte is written. When the bus has been silent for a while, everything
// that it did not acknowledge is appended to segments and synced, and the agent may
// let go of it; when the bus is back, it gets everything in the order of the calls.
//
// FORMAT.md has the bytes of a segment. A spool that finds segments publishes what
// they hold before anything else: what an agent that was killed had spooled.
package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/bus"
)

// Message is what a spool takes.
type Message struct {
	bus.Message
	Owner   string // whose rows they are, for Settled
	Rows    []Run  // rows that the ledger counts, in the order of the message; none: it is never discarded
	Barrier bool   // it is published only when everything before it is settled
}

// Run is rows of a message, one after the other, that have one priority.
type Run struct {
	Priority int32
	Count    uint32
}

// RowCount is the number of rows that the ledger counts.
func (m *Message) RowCount() (n uint64) {
	for _, r := range m.Rows {
		n += uint64(r.Count)
	}
	return n
}

// Outcome is the end of rows that were in the spool.
type Outcome uint8

// The outcomes.
const (
	Acknowledged Outcome = iota // the bus has them
	Discarded                   // the spool was full; facts name them
	Damaged                     // the disk gave back other bytes than it got; facts name what can be named
)

// WhenFull says what gives way in a full spool. Either way, the lowest priority
// does, before a higher one loses a row.
type WhenFull string

// The ways. Wait discards nothing: publishing waits.
const (
	DropOldest WhenFull = "drop_oldest"
	DropNewest WhenFull = "drop_newest"
	Wait       WhenFull = "wait"
)

// Handlers are what a spool asks its owner, who must not call the spool from them.
type Handlers struct {
	// Lessen takes the rows up to a priority out of a message. It returns the message of
	// the others, or nil when there are none, and messages of facts about those taken
	// out. Its error means that the message cannot be read: it is kept as it is.
	Lessen func(m Message, priority int32) (kept *Message, facts []bus.Message, err error)
	// Damaged makes facts about a message whose data cannot be trusted; the rest can.
	Damaged func(m Message) []bus.Message
	// Refused takes a message that the bus can never take, and makes facts about it. It
	// books its rows itself, which Settled is not told of.
	Refused func(m Message, why error) []bus.Message
	// Settled says what became of rows that done was told to be in the spool, or that
	// Found counts. It is called once for each of them, one call at a time.
	Settled func(owner string, rows uint64, what Outcome)
}

// Options configure a spool. Zero numbers mean the defaults in brackets.
type Options struct {
	Dir          string
	Bus          bus.Bus
	MaxBytes     int64         // of all segments [1 GiB]
	WindowBytes  int64         // in memory, neither answered nor synced [64 MiB]
	SyncBytes    int64         // synced at the latest when so many were written [4 MiB]
	SyncInterval time.Duration // synced at the latest so long after the first was written [50 ms]
	After        time.Duration // the bus is away when a message was not answered for so long [1 s]
	WhenFull     WhenFull      // [Wait]
	Handlers     Handlers
	Logger       *slog.Logger
	Registerer   prometheus.Registerer // nil: no metrics

	check func(step, path string) error // tests: asked before each step on the disk, which it can make fail
	retry time.Duration                 // how often a disk that takes nothing is tried again [1 s]
}

// Bounds beside those of Options.
const (
	maxRecords  = 1 << 18 // in all segments, facts included
	maxQueue    = 8192    // messages in memory
	minMaxBytes = 256 << 10
)

// Spool is a spool over a bus. Its methods may be called from any goroutine.
type Spool struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	lock    *os.File
	found   map[string]uint64
	owners  map[string]string // one copy of each name
	ctx     context.Context   // ends with Close
	stop    context.CancelFunc
	tasks   sync.WaitGroup
	toDrain chan struct{} // something for the drainer to look at
	toWrite chan struct{} // and for the writer

	doneMu sync.Mutex // serialises done and Settled. Order: doneMu → mu

	mu          sync.Mutex
	room        chan struct{} // closed and made anew when memory gets free and somebody waits
	waiting     bool
	segments    []*segment // oldest first; the last one may be open
	queue       []*item    // behind them: not on disk
	toHand      int        // of queue: all before it were handed to the bus, or need not be
	queueBytes  int64      // of those that done was not called for
	refused     []*item    // from the disk, by the bus
	outstanding int        // messages that the bus has and did not answer
	low         map[int32]int
	records     int   // in all segments
	used        int64 // bytes of all segments
	unhanded    int   // entries on disk that the bus does not have
	inBus       int64 // bytes of messages that the bus has and did not answer
	lastAnswer  time.Time
	spilling    bool
	closed      bool
	trouble     string // why the disk takes nothing, "": it does

	next   uint64     // number of the next segment; of the writer
	number uint64     // of the next record; of the writer
	files  sync.Mutex // guards reading a segment against its replacement. Order: files → mu
	buf    []byte     // of the writer
}

// item is a message in memory: of the queue, or handed to the bus.
type item struct {
	m        Message
	done     func(uint64, error) // nil once called, or when it came from the disk
	unwatch  func() bool
	cancel   context.CancelFunc // of its publication
	since    time.Time
	handed   bool   // to the bus
	bytes    int64  // as what it counts in inBus
	answered bool   // it leaves the queue
	writing  bool   // its data are being read by the writer
	claimed  bool   // the writer may take rows out of it: the bus does not get it meanwhile
	gone     error  // its caller gave up, or the bus refused it
	told     *told  // what the bus said while the writer read its data: done waits for the writer
	entry    *entry // of what is on disk
	instead  bool   // it is about the entry's message, and goes in its place
}

// told is an answer of the bus.
type told struct {
	seq uint64
	err error
}

func (o *Options) fill() error {
	if o.Bus == nil || o.Dir == "" {
		return errors.New("open a spool: it needs a bus and a folder")
	}
	setDefault(&o.MaxBytes, 1<<30)
	setDefault(&o.WindowBytes, 64<<20)
	setDefault(&o.SyncBytes, 4<<20)
	setDefault(&o.SyncInterval, 50*time.Millisecond)
	setDefault(&o.After, time.Second)
	setDefault(&o.WhenFull, Wait)
	setDefault(&o.retry, time.Second)
	if o.MaxBytes < minMaxBytes {
		return fmt.Errorf("open the spool %s: max_bytes is %d; at least %d", o.Dir, o.MaxBytes, minMaxBytes)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Open takes a folder and what it holds. Errors: another agent uses it, it cannot be
// written, a bound that makes no sense.
func Open(o Options) (*Spool, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	lock, err := lockFolder(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &Spool{o: o, log: o.Logger, metrics: m, lock: lock, found: map[string]uint64{}, owners: map[string]string{},
		toDrain: make(chan struct{}, 1), toWrite: make(chan struct{}, 1), room: make(chan struct{}),
		low: map[int32]int{}, lastAnswer: time.Now()}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if err := s.scan(); err != nil {
		return nil, errors.Join(err, s.release())
	}
	m.max.Set(float64(o.MaxBytes))
	s.measure()
	if s.records > 0 {
		s.log.Info("the spool holds what an agent before this one did not get to the bus; it is published first", "folder",
			o.Dir, "messages", s.records, "bytes", s.used)
	}
	s.tasks.Go(s.write)
	s.tasks.Go(s.drain)
	return s, nil
}

// Found is the rows that the spool held when it was opened, by owner. Each of them
// will be settled.
func (s *Spool) Found() map[string]uint64 { return s.found }

// Publish is as that of bus.Bus, but that done is also called with position 0 and no
// error: the message is in the spool, synced, and will be published by this process
// or by the next. Its data then belong to the spool for good. Its further fate is
// told to Settled, or to Refused.
func (s *Spool) Publish(ctx context.Context, m Message, done func(seq uint64, err error)) error {
	if n := headSize(&m); n > maxHead {
		done(0, fmt.Errorf("publish %d bytes of names to %.80s; at most %d: %w", n, m.Subject, maxHead, bus.ErrRefused))
		return nil
	}
	size := int64(len(m.Data))
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return bus.ErrClosed
		}
		if s.queueBytes == 0 || s.queueBytes+size <= s.o.WindowBytes && len(s.queue) < maxQueue {
			break
		}
		room := s.room
		s.waiting = true
		s.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
		}
	}
	it := &item{m: m, done: done, since: time.Now()}
	s.queue = append(s.queue, it)
	s.queueBytes += size
	it.unwatch = context.AfterFunc(ctx, func() { s.giveUp(it, ctx.Err()) })
	spilling := s.spilling
	s.mu.Unlock()
	wake(s.toDrain)
	if spilling {
		wake(s.toWrite)
	}
	return nil
}

func wake(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// giveUp ends the wait for a message that is neither answered nor in the spool.
func (s *Spool) giveUp(it *item, err error) {
	s.doneMu.Lock()
	defer s.doneMu.Unlock()
	s.mu.Lock()
	if it.done == nil || it.gone != nil || it.told != nil {
		s.mu.Unlock()
		return
	}
	it.gone = err
	cancel, call := it.cancel, !it.handed && !it.writing
	s.mu.Unlock()
	if call {
		s.call(it, 0, err)
	} else if cancel != nil {
		cancel() // the bus answers
	}
}

// call calls done, once: the message leaves the queue. Callers hold doneMu.
func (s *Spool) call(it *item, seq uint64, err error) {
	s.mu.Lock()
	done := it.done
	if done != nil {
		it.done, it.answered = nil, true
		s.queueBytes -= int64(len(it.m.Data))
	}
	s.trimQueue()
	s.mu.Unlock()
	if done != nil {
		it.unwatch()
		done(seq, err)
	}
}

// trimQueue forgets the front of the queue as far as it is answered. Callers hold mu.
func (s *Spool) trimQueue() {
	n := 0
	for n < len(s.queue) && s.queue[n].answered && !s.queue[n].writing {
		s.queue[n] = nil
		n++
	}
	s.queue, s.toHand = s.queue[n:], max(0, s.toHand-n)
	s.makeRoom()
}

// makeRoom tells who waits in Publish to look again. Callers hold mu.
func (s *Spool) makeRoom() {
	if s.waiting {
		close(s.room)
		s.room, s.waiting = make(chan struct{}), false
	}
}

// Stats is the state of a spool.
type Stats struct {
	Bytes, MaxBytes int64
	Messages        int    // on disk
	Memory          int64  // bytes of messages that are neither answered nor synced
	Trouble         string // why the disk takes nothing, "": it does
}

// Stats reads the state of the spool.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Bytes: s.used, MaxBytes: s.o.MaxBytes, Messages: s.records, Memory: s.queueBytes, Trouble: s.trouble}
}

// Close gives up what is not in the spool, with bus.ErrClosed; what is in it stays
// for the next one on this folder. The bus is closed afterwards, not before.
func (s *Spool) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.makeRoom()
	s.mu.Unlock()
	if closed {
		return nil
	}
	s.stop()
	s.tasks.Wait()
	s.doneMu.Lock()
	s.mu.Lock()
	queue := slices.Clone(s.queue)
	s.mu.Unlock()
	for _, it := range queue {
		s.call(it, 0, bus.ErrClosed)
	}
	s.doneMu.Unlock()
	return s.release()
}

// release closes files and lets go of the folder.
func (s *Spool) release() error {
	var err error
	for _, g := range s.segments {
		err = errors.Join(err, g.file.Close())
	}
	return errors.Join(err, s.lock.Close())
}

func clampRows(n uint64) uint32 { return uint32(min(n, math.MaxUint32)) }
