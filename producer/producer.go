// Package producer is the agent: it moves rows from the rings of engine ranks to
// the bus. Per rank, one goroutine expands STEP and CAPTURE records into rows,
// asks the policy about each, collects them in one open batch per chain, encodes
// and publishes the batches, and releases a step in the ring when everything that
// came from it is acknowledged. What became of each chosen row is published as
// facts of the ledger.
package producer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/bus"
	"sonde/deadletter"
	"sonde/ring2"
	"sonde/schema"
	"sonde/spool"
	"sonde/tally"
)

// Bounds of the agent.
const (
	maxChains        = 16384     // per epoch: beyond, idle chains are forgotten, then everything is flushed
	maxLayouts       = 4096      // per epoch: beyond, the rank is quarantined
	maxLayoutText    = 4 << 20   // bytes of hook names in one layout: beyond, the rank is quarantined
	maxPlans         = 1 << 16   // per epoch: beyond, they are worked out anew
	maxEndedRequests = 4096      // ended requests still known, for late corrections
	maxOpenRequests  = 1 << 18   // per epoch: beyond, the rank is quarantined
	maxDeadEpochs    = 64        // journals of dead epochs told at the same time: beyond, the rank is quarantined
	maxUnput         = 64 << 20  // bytes of records that were never put: beyond, their rows are counted, not named
	maxMissingKnown  = 1 << 16   // ranges of MISSING records of a dead epoch that are remembered
	maxClosedEpochs  = 1024      // epochs that this agent closed and whose obituaries it ignores
	maxRanks         = 1024      // sessions at the same time: beyond, a rank is refused
	maxAbortSubjects = 4096      // tenants x ranks whose aborts are served: beyond, they are not
	maxStepTokens    = 1 << 20   // of one step: beyond, the rank is quarantined
	maxStepChoices   = 1 << 23   // tokens x layouts x groups of one step: beyond, the rank is quarantined
	maxMissingTokens = 1 << 24   // of one MISSING record: beyond, the rank is quarantined
	maxMissingRows   = 1 << 40   // of one range of it: beyond, the rank is quarantined
	maxBatchRows     = 1 << 14   // of one message, so that spans stay short
	maxRowBytes      = 30 << 20  // of one row: beyond, it is dropped as oversize; a message takes 32 MiB
	defaultLingerMS  = 250       //
	defaultBatch     = 256 << 10 //
	defaultInflight  = 64 << 20  //
	defaultDead      = 256 << 20 //
)

// HookLayer names the chains of one hook and layer.
type HookLayer struct {
	Hook  string
	Layer int // -1: none
}

// Options configures an agent. Zero numbers mean the defaults in brackets.
type Options struct {
	Listener           *ring2.Listener
	Bus                bus.Bus
	Policy             Policy
	LingerMS           int         // oldest age of an open batch [250]
	BatchBytes         int         // size at which a batch closes [256 KiB]
	InflightBytes      int64       // published and not acknowledged, all ranks [64 MiB]
	Live               []HookLayer // batches of these close at the end of each step
	DeadLetterDir      string      // "": nothing is kept of a refused message
	DeadLetterMaxBytes int64       // [256 MiB]
	Spool              SpoolOptions
	Registerer         prometheus.Registerer
	Logger             *slog.Logger
}

// Agent serves the ranks that connect to its listener.
type Agent struct {
	o      Options
	log    *slog.Logger
	policy *compiledPolicy
	budget *budget
	dead   *deadletter.Folder
	spool  *spool.Spool // nil: there is none
	now    func() time.Time

	dyingEngine, longestParting time.Duration // tests shorten them

	counters counters

	servedMu sync.Mutex        // taken before mu, never the other way round
	served   map[string]func() // stops, by abort subject

	mu     sync.Mutex          // taken before the locks of accounts
	before map[rankName]Counts // what ranks that are gone counted, and what is or was in the spool
	ranks  map[*rank]bool
	closed []uint64 // epochs, oldest first
}

// rankName identifies a rank over restarts of its writer.
type rankName struct {
	engine string
	rank   int
}

// New checks the options and opens the dead-letter directory and the spool, which
// Close lets go of.
func New(o Options) (*Agent, error) {
	if o.Bus == nil {
		return nil, errors.New("producer needs a bus")
	}
	fill(&o.LingerMS, defaultLingerMS)
	fill(&o.BatchBytes, defaultBatch)
	fill(&o.InflightBytes, defaultInflight)
	fill(&o.DeadLetterMaxBytes, defaultDead)
	if o.BatchBytes < 1 || o.BatchBytes > schema.MaxMessageBytes/2 || o.LingerMS < 1 || o.InflightBytes < 1 {
		return nil, fmt.Errorf("batch_bytes %d, linger_ms %d, inflight_bytes %d: want 1 to %d, and 1 or more", o.BatchBytes,
			o.LingerMS, o.InflightBytes, schema.MaxMessageBytes/2)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	policy, err := compilePolicy(o.Policy)
	if err != nil {
		return nil, err
	}
	dead, err := deadletter.Open(o.DeadLetterDir, o.DeadLetterMaxBytes)
	if err != nil {
		return nil, err
	}
	a := &Agent{o: o, log: o.Logger, policy: policy, dead: dead, now: time.Now, served: map[string]func(){},
		before: map[rankName]Counts{}, ranks: map[*rank]bool{}, dyingEngine: dyingEngine, longestParting: longestParting}
	a.budget = newBudget(policy.budget, a.now)
	if o.Registerer != nil {
		if err := o.Registerer.Register(&collector{a}); err != nil {
			return nil, fmt.Errorf("register the metrics of the producer: %w", err)
		}
	}
	if err := a.openSpool(); err != nil {
		return nil, err
	}
	return a, nil
}

func fill[N int | int64](v *N, standard N) {
	if *v == 0 {
		*v = standard
	}
}

// Run accepts ranks until ctx ends, or the listener is closed, which is an error.
// Rows that are not acknowledged by then stay in their rings for the next agent. The
// ring of an engine that is gone has no next agent: it is read to its end, which
// takes up to 5 s more.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var ranks sync.WaitGroup
	defer a.stopServing()
	defer ranks.Wait()
	defer cancel()
	ranks.Go(func() { tally.Tell(ctx, a.o.Bus, a.log, a.stageCounts) })
	for {
		s, err := a.o.Listener.Accept(ctx)
		if ctx.Err() != nil {
			if err == nil { // it came at the last moment
				err = s.Close()
			}
			if err != nil && !errors.Is(err, ctx.Err()) {
				a.log.Warn("close session", "error", err)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept a rank: %w", err)
		}
		ranks.Add(1)
		go func() {
			defer ranks.Done()
			a.Attach(ctx, s)
		}()
	}
}

// Session is what the agent needs of a ring2.Session.
type Session interface {
	Config() ring2.Config
	Snapshot() []ring2.Record
	Next(ctx context.Context, dst []ring2.Record) ([]ring2.Record, error)
	Release(seq uint64)
	ReleaseSeq() uint64
	ClaimSeq() uint64
	Producer() ring2.ProducerCounters
	WallNS(captureNS uint64) int64
	Abort(ctx context.Context, a ring2.Abort) (ring2.AbortOutcome, uint32, error)
	Lost() []uint64
	Quarantined() error
	Gone() <-chan struct{} // closed when the engine's connection has ended; nil: there is none
	Close() error
}

// Attach serves one session until its epoch is closed or ctx ends, and closes it.
func (a *Agent) Attach(ctx context.Context, s Session) {
	c := s.Config()
	log := a.log.With("engine", c.EngineInstance, "rank", c.Rank, "epoch", fmt.Sprintf("%016x", c.Epoch))
	r, err := a.register(s, log)
	if err != nil {
		log.Warn("rank refused", "error", err)
		if err := s.Close(); err != nil {
			log.Warn("close session", "error", err)
		}
		return
	}
	if want := a.o.Policy.Mode; want != "" && string(want) != c.Mode.String() {
		log.Warn("the engine's ring has another mode than the policy: start the engine with that ring mode",
			"ring_mode", c.Mode, "policy_mode", want)
	}
	err = r.run(ctx)
	r.unanswered.Wait() // so that rows are not returned to the ring and in the spool
	switch {
	case quarantined(err):
		// The peer would redial with the same ring: the session is kept until the
		// rank's next epoch or the end of the agent.
		a.counters.quarantined.Add(1)
		if s.Quarantined() == nil { // A corrupt ring was logged where it was found.
			log.Error("ring quarantined: this rank is not read any more", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-r.replaced:
		}
	case err != nil && ctx.Err() == nil:
		log.Warn("rank detached; it will be read again when it redials", "error", err)
		a.counters.detached.Add(1)
	}
	if r.abandoned() {
		log.Warn("rows of an engine that is gone are lost with this agent; an engine that has a state folder names them "+
			"at its next start", "rows_in_flight", r.account.snapshot().InFlight, "records_unread", s.ClaimSeq()-r.nextSeq)
	}
	a.unregister(r)
	if err := s.Close(); err != nil {
		log.Warn("close session", "error", err)
	}
}

func (a *Agent) register(s Session, log *slog.Logger) (*rank, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := newRank(a, s, log)
	if len(a.ranks) >= maxRanks {
		return nil, fmt.Errorf("%d ranks are attached; at most %d", len(a.ranks), maxRanks)
	}
	if _, known := a.before[r.name]; !known {
		if len(a.before) >= 4*maxRanks {
			return nil, fmt.Errorf("%d ranks were attached since the start; at most %d", len(a.before), 4*maxRanks)
		}
		a.before[r.name] = Counts{Dropped: map[string]uint64{}}
	}
	for old := range a.ranks {
		if old.name == r.name {
			old.replacedOnce.Do(func() { close(old.replaced) })
		}
	}
	a.ranks[r] = true
	a.counters.attached.Add(1)
	return r, nil
}

func (a *Agent) unregister(r *rank) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.abandoned() {
		r.account.surrendered() // the engine is dead: nobody will read its ring again
	} else {
		r.account.returned()
	}
	delete(a.ranks, r)
	before, now := a.before[r.name], r.account.snapshot()
	before.add(&now)
	a.before[r.name] = before
	close(r.gone)
}

// close remembers an epoch whose closed fact is acknowledged.
func (a *Agent) close(epoch uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed = append(a.closed, epoch); len(a.closed) > maxClosedEpochs {
		a.closed = slices.Delete(a.closed, 0, len(a.closed)-maxClosedEpochs)
	}
}

// knows reports whether the agent closed an epoch, and which other rank reads it.
func (a *Agent) knows(epoch uint64, but *rank) (closed bool, reader *rank) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Contains(a.closed, epoch) {
		return true, nil
	}
	for r := range a.ranks {
		if r != but && r.own.id == epoch {
			return false, r
		}
	}
	return false, nil
}

// inflightShare is what one rank may have in flight.
func (a *Agent) inflightShare() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.o.InflightBytes / int64(max(1, len(a.ranks)))
}

// RankCounts is the live ledger of one rank, over all its epochs.
type RankCounts struct {
	Engine string
	Rank   int
	Counts
}

// Snapshot is the live ledger of the agent.
type Snapshot struct {
	Total Counts
	Ranks []RankCounts // by engine and rank
}

// Snapshot reads the live ledger. In each part, and so in the total, the law of
// Counts holds.
func (a *Agent) Snapshot() Snapshot {
	a.mu.Lock()
	counts := make(map[rankName]*Counts, len(a.before))
	for name, before := range a.before {
		c := Counts{Dropped: map[string]uint64{}}
		c.add(&before)
		counts[name] = &c
	}
	for r := range a.ranks {
		now := r.account.snapshot()
		counts[r.name].add(&now)
	}
	a.mu.Unlock()
	s := Snapshot{Total: Counts{Dropped: map[string]uint64{}}}
	for name, c := range counts {
		s.Ranks = append(s.Ranks, RankCounts{Engine: name.engine, Rank: name.rank, Counts: *c})
		s.Total.add(c)
	}
	slices.SortFunc(s.Ranks, func(x, y RankCounts) int {
		return cmp.Or(cmp.Compare(x.Engine, y.Engine), cmp.Compare(x.Rank, y.Rank))
	})
	return s
}
