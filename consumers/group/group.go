// Package group shares the partitions of a stream among processes that do the same
// work. Members tell each other by broadcast that they live and what they hold, and
// each of them computes from that, alone, what is its own. This is a hint and no lock:
// for a moment two may hold one partition. Whoever must not do work twice is fenced
// elsewhere, as writers are by the log of a lake.
package group

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/bus"
)

// ErrFenced: another member took the partition over. A Hold wraps it.
var ErrFenced = errors.New("another member of the group took the partition over")

// Bounds and times of a group. A period is Options.Period.
const (
	maxMembers    = 256 // further ones are not heard
	deadAfter     = 5   // periods of silence after which a member counts as dead
	handoverLimit = 30  // periods after which a partition is taken from a living member that does not give it up
	rememberFor   = 60  // periods for which the positions of other groups hold
)

// Options configure a Member. Bus and Name are needed.
type Options struct {
	Bus  bus.Bus
	Kind string // what the group does: the label of its metrics
	Name string // of the group: members of one Kind and Name share the partitions

	Period time.Duration // between two heartbeats [1 s]
	Settle time.Duration // how long a start waits for the answer of others [200 ms]; below 0: not at all

	// Positions, when not nil, says how far the group has come in the partitions that
	// this member holds; other groups read it by Slowest. It is asked with each heartbeat.
	Positions func() map[int]uint64

	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Hold works on a partition until ctx ends, gives it up in order, and returns nil. It
// calls holds once it has it; token rises with each holder of the partition, 0: there
// is none. An ErrFenced means that another member has it; any other error ends Run.
type Hold func(ctx context.Context, partition int, holds func(token uint64)) error

// Member is this process in a group. Run it once.
type Member struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	id      string
	since   int64 // ns since 1970: orders the members

	heard chan heartbeat // of all groups, from the bus
	tell  chan heartbeat // the latest to send
	ended chan ending
	poke  chan struct{} // a partition is held now

	mu      sync.Mutex // a leaf; guards what follows
	tokens  map[int]uint64
	others  map[string]map[int]position // of other groups
	foreign map[int]bool                // partitions that another member of this group holds
	trouble string

	// Of the goroutine of Run.
	age      int // periods: own heartbeats of ticks that came back
	silent   int // ticks since then
	joined   bool
	peers    map[string]*peer
	holdings map[int]*holding
	beat     int         // number of the last heartbeat
	echo     int         // number of the last own one that came back
	intents  map[int]int // partition that will be taken -> heartbeat that says so
	cool     map[int]int // partition -> age before which it is not taken again
	patience map[int]int // partition -> age since which another member should have given it up
}

// peer is another member.
type peer struct {
	heartbeat
	seen int // age when it was last heard
}

// holding is a partition that this member works on.
type holding struct {
	cancel    context.CancelFunc
	releasing bool
}

// ending is the end of a Hold.
type ending struct {
	partition int
	err       error
}

// position is how far another group has come.
type position struct {
	next uint64
	seen int
}

// New makes a member; it joins by Run.
func New(o Options) (*Member, error) {
	if o.Bus == nil || o.Name == "" || len(o.Name) > maxName || o.Kind == "" || len(o.Kind) > maxName {
		return nil, fmt.Errorf("join group %.40q of kind %.40q: it needs a bus, a kind and a name of up to %d bytes", o.Name,
			o.Kind, maxName)
	}
	if o.Period == 0 {
		o.Period = time.Second
	}
	if o.Settle == 0 {
		o.Settle = 200 * time.Millisecond
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails: it ends the program instead
	return &Member{o: o, log: o.Logger.With("group", o.Kind), metrics: newMetrics(o.Registerer, o.Kind),
		id: hex.EncodeToString(id[:]), heard: make(chan heartbeat, 4*maxMembers), tell: make(chan heartbeat, 1),
		ended: make(chan ending), poke: make(chan struct{}, 1), tokens: map[int]uint64{},
		others: map[string]map[int]position{},
		peers:  map[string]*peer{}, holdings: map[int]*holding{}, intents: map[int]int{}, cool: map[int]int{},
		patience: map[int]int{}}, nil
}

// Trouble says why the member does not share in the work yet, "" when it does. It may
// be called from any goroutine.
func (m *Member) Trouble() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.trouble
}

// Held is how many partitions this member has. It may be called from any goroutine.
func (m *Member) Held() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.tokens)
}

// Elsewhere reports whether another member holds a partition, as far as is known. It
// may be called from any goroutine.
func (m *Member) Elsewhere(partition int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.foreign[partition]
}

// Slowest is the lowest position that another group of the same kind told for a
// partition in the last minute. It may be called from any goroutine.
func (m *Member) Slowest(partition int) (next uint64, known bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, at := range m.others {
		if p, ok := at[partition]; ok && (!known || p.next < next) {
			next, known = p.next, true
		}
	}
	return next, known
}

// Run takes part until ctx ends, gives up what it holds, and tells the others. It
// returns the first error of hold that is not ErrFenced.
func (m *Member) Run(ctx context.Context, hold Hold) error {
	stop, err := m.o.Bus.Listen(Subject, m.listen)
	if err != nil {
		return fmt.Errorf("join group %s: %w", m.o.Name, err)
	}
	defer stop()
	m.since = time.Now().UnixNano()
	sending, stopSending := context.WithCancel(ctx)
	var sender sync.WaitGroup
	sender.Go(func() { m.send(sending) })
	err = m.loop(ctx, hold)
	stopSending()
	sender.Wait()
	last := m.heartbeat()
	last.Left = true
	m.broadcast(last)
	return err
}

// loop decides until ctx ends or a hold fails, and then waits for all holds.
func (m *Member) loop(ctx context.Context, hold Hold) error {
	working, stopWork := context.WithCancel(ctx)
	defer stopWork()
	tick := time.NewTicker(m.o.Period)
	defer tick.Stop()
	var settled <-chan time.Time
	m.queue(m.heartbeat())
	if m.o.Settle < 0 {
		m.join()
		m.decide(working, hold)
	}
	for {
		select {
		case <-ctx.Done():
			return m.leave(stopWork, nil)
		case h := <-m.heard:
			if m.hear(h) && !m.joined && settled == nil {
				settled = time.After(m.o.Settle)
			}
		case <-settled:
			settled = nil
			m.join()
		case <-tick.C:
			m.tick()
		case <-m.poke:
			m.queue(m.heartbeat())
		case e := <-m.ended:
			if err := m.end(e); err != nil {
				return m.leave(stopWork, err)
			}
		}
		if m.joined {
			m.decide(working, hold)
		}
	}
}

// leave ends all holds and waits for them.
func (m *Member) leave(stopWork context.CancelFunc, err error) error {
	stopWork()
	for len(m.holdings) > 0 {
		if e := m.end(<-m.ended); err == nil {
			err = e
		}
	}
	return err
}

// join ends the wait for others.
func (m *Member) join() {
	m.joined = true
	m.mu.Lock()
	m.trouble = ""
	m.mu.Unlock()
}

// tick sends the heartbeat of a period. Time goes on only by own heartbeats that come
// back: while the bus is away, or this process stood still, nobody is taken for dead.
// A bus that is there and brings none back, as one that withholds the right to, does
// not hold up the work.
func (m *Member) tick() {
	h := m.heartbeat()
	h.Tick = true
	m.queue(h)
	if m.silent++; !m.joined && m.silent > 1 {
		m.mu.Lock()
		m.trouble = "it does not know yet who else does this work: own heartbeats do not come back"
		m.mu.Unlock()
	}
	if m.silent <= deadAfter || !m.o.Bus.Connected() {
		return
	}
	if m.silent == deadAfter+1 {
		m.log.Warn("own heartbeats do not come back: working as if alone; is there a right to publish and to subscribe?",
			"subject", Subject)
	}
	m.age++
	m.forget()
	m.join()
}

// end takes note of a hold that ended.
func (m *Member) end(e ending) error {
	delete(m.holdings, e.partition)
	m.mu.Lock()
	delete(m.tokens, e.partition)
	held := len(m.tokens)
	m.mu.Unlock()
	m.metrics.partitions.Set(float64(held))
	m.queue(m.heartbeat())
	if errors.Is(e.err, ErrFenced) {
		m.metrics.fenced.Inc()
		m.cool[e.partition] = m.age + deadAfter
		m.log.Warn("another member took a partition over", "partition", e.partition)
		return nil
	}
	return e.err
}

// decide starts and ends holds, as follows from what is known of the members now.
func (m *Member) decide(ctx context.Context, hold Hold) {
	members, holders := m.view()
	owners := assign(members, holders, m.o.Bus.Partitions())
	m.metrics.members.Set(float64(len(members)))
	foreign := map[int]bool{}
	for partition, holder := range holders {
		foreign[partition] = holder != m.id
	}
	m.mu.Lock()
	m.foreign = foreign
	m.mu.Unlock()
	for partition, owner := range owners {
		h, mine := m.holdings[partition], owner == m.id
		switch {
		case h != nil && !mine && !h.releasing:
			h.releasing = true
			h.cancel()
			m.metrics.rebalances.Inc()
			m.log.Info("giving a partition to another member", "partition", partition, "member", owner)
		case h == nil && mine && m.mayTake(partition) && m.announced(partition):
			m.take(ctx, partition, hold)
		}
		if !mine {
			delete(m.intents, partition)
		}
		if !mine || h != nil {
			delete(m.patience, partition)
		}
	}
}

// mayTake reports whether a partition that falls to this member is free: nobody else
// holds it, or is about to, or they do not give it up.
func (m *Member) mayTake(partition int) bool {
	if m.age < m.cool[partition] {
		return false
	}
	if !m.elsewhere(partition) {
		return true
	}
	since, waits := m.patience[partition]
	if !waits {
		m.patience[partition] = m.age
	}
	return waits && m.age-since > handoverLimit
}

// announced reports whether the others were told that this member is about to take a
// partition: by a heartbeat that came back. Who hears of another's wish before its own
// came back gives way, so that members who know of different others do not take one
// partition at the same time.
func (m *Member) announced(partition int) bool {
	told, announced := m.intents[partition]
	if !announced {
		m.intents[partition] = m.beat + 1
		m.queue(m.heartbeat())
	}
	return announced && told <= m.echo || m.silent > deadAfter
}

// take starts a hold.
func (m *Member) take(ctx context.Context, partition int, hold Hold) {
	ctx, cancel := context.WithCancel(ctx)
	delete(m.intents, partition)
	m.holdings[partition] = &holding{cancel: cancel}
	m.metrics.rebalances.Inc()
	go func() {
		defer cancel()
		err := hold(ctx, partition, func(token uint64) {
			m.mu.Lock()
			m.tokens[partition] = token
			held := len(m.tokens)
			m.mu.Unlock()
			m.metrics.partitions.Set(float64(held))
			select {
			case m.poke <- struct{}{}:
			default:
			}
		})
		m.ended <- ending{partition, err}
	}()
}
