// Package materializer turns the stream into the lake: it reads messages from the
// position in the table's log, drops rows that the table has, and commits files,
// position and chain states at once. Nothing is kept anywhere else, so a crash at
// any moment repeats no row and loses none. Several processes may do so for one lake:
// they share the partitions of the stream, and the log fences each partition.
package materializer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/bus"
	"sonde/consumers/group"
	"sonde/deadletter"
	"sonde/lakehouse/commitlog"
	"sonde/lakehouse/table"
	"sonde/schema"
	"sonde/tally"
)

// Options configure a Materializer. Bus and Lake are needed; other zero values mean
// the defaults of CONFIG.md.
type Options struct {
	Bus                bus.Bus
	Lake               string        // folder
	CommitInterval     time.Duration // longest time between commits
	CommitBytes        int64         // commit earlier when messages of so many bytes are open
	RetainBytes        uint64        // about so much of the stream is kept behind the committed position
	DeadLetterDir      string        // "": messages that cannot be decoded are only counted
	DeadLetterMaxBytes int64
	Logger             *slog.Logger
	Registerer         prometheus.Registerer

	Heartbeat time.Duration // between those by which materializers of a lake share its work [1 s]
	Settle    time.Duration // how long a start waits for the answers of others [200 ms]; below 0: not at all

	now   func() time.Time                // tests
	check func(step, path string) error   // tests: see commitlog.WriterOptions
	retry func(ctx context.Context) error // tests: the pause between two attempts to commit
}

// Bounds of what is open between two commits, beside CommitBytes. Each of them
// makes a commit. Of all three, each partition that this process has gets an equal
// share.
const (
	maxPendingRows     = 1 << 20
	maxPendingMessages = 1 << 15
)

// busTimeout bounds questions to the bus that the next commit can ask again.
const busTimeout = 5 * time.Second

func (o *Options) setDefaults() error {
	if o.Bus == nil || o.Lake == "" {
		return errors.New("start the materializer: it needs a bus and the folder of a lake")
	}
	setDefault(&o.CommitInterval, time.Second)
	setDefault(&o.CommitBytes, 64<<20)
	setDefault(&o.DeadLetterMaxBytes, 256<<20)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Registerer == nil {
		o.Registerer = prometheus.NewRegistry()
	}
	if o.now == nil {
		o.now = time.Now
	}
	if o.retry == nil {
		o.retry = func(ctx context.Context) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
				return nil
			}
		}
	}
	return nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Materializer writes one lake. Run it once.
type Materializer struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	dead    *deadletter.Folder

	lake   atomic.Pointer[commitlog.Log] // set by Run
	member atomic.Pointer[group.Member]  // set by Run
	first  *commitlog.Writer             // the claim that made the lake, until it is used
	sweeps sweeps
	book   *tally.Book // rows of vectors and stats: taken from the bus, stored

	mu      sync.Mutex // a leaf; guards parts
	parts   map[int]*part
	working atomic.Int64 // how many there are
}

// New prepares a materializer; Run opens the lake.
func New(o Options) (*Materializer, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	dead, err := deadletter.Open(o.DeadLetterDir, o.DeadLetterMaxBytes)
	if err != nil {
		return nil, err
	}
	m := &Materializer{o: o, log: o.Logger, dead: dead, parts: map[int]*part{},
		book: tally.NewBook(schema.StageMaterializer)}
	m.metrics = newMetrics(o.Registerer, m.oldestAge, m.chainCount)
	return m, nil
}

// Committed is the position in a partition up to which the lake holds everything: its
// Next is that of the first message that it does not hold. It is zero when nobody has
// read there yet, or Run has not opened the lake. It may be called from any goroutine.
func (m *Materializer) Committed(partition int) commitlog.Source {
	m.mu.Lock()
	p := m.parts[partition]
	m.mu.Unlock()
	if p != nil {
		if at := p.committed.Load(); at != nil {
			return *at
		}
	}
	lake := m.lake.Load()
	if lake == nil {
		return commitlog.Source{}
	}
	if err := lake.Refresh(); err != nil {
		m.log.Warn("read what other materializers committed", "error", err)
	}
	return lake.Source(partition)
}

// Trouble says why nothing is committed, "" when all is well. It may be called from
// any goroutine.
func (m *Materializer) Trouble() string {
	if member := m.member.Load(); member != nil && member.Trouble() != "" {
		return member.Trouble()
	}
	for _, p := range m.held() {
		if what := p.trouble.Load(); what != nil {
			return *what
		}
	}
	return ""
}

// held is the partitions that this process has now.
func (m *Materializer) held() []*part {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.parts))
}

// positions are told to materializers of other lakes, which trim the stream no
// further.
func (m *Materializer) positions() map[int]uint64 {
	out := map[int]uint64{}
	for _, p := range m.held() {
		if at := p.committed.Load(); at != nil {
			out[p.partition] = at.Next
		}
	}
	return out
}

// Run reads and commits until ctx ends, then commits what is open and returns nil.
// It shares the partitions of the stream with other materializers of the lake. Its
// errors are that the lake cannot be used. Failures to write, of a full disk for
// example, are tried again: nothing more is read meanwhile.
func (m *Materializer) Run(ctx context.Context) error {
	if err := m.run(ctx); err != nil && !(ctx.Err() != nil && errors.Is(err, ctx.Err())) {
		return fmt.Errorf("materialize into %s: %w", m.o.Lake, err)
	}
	return nil
}

func (m *Materializer) run(ctx context.Context) error {
	names := make([]string, len(table.Names))
	for i, n := range table.Names {
		names[i] = string(n)
	}
	lake, err := commitlog.OpenLog(m.o.Lake, commitlog.Options{Tables: names, Logger: m.log, Check: m.o.check})
	if err != nil {
		return err
	}
	if lake.Version() == 0 { // its first entry gives the lake its name
		if m.first, err = lake.Claim(ctx, 0); err != nil {
			return err
		}
	}
	m.lake.Store(lake)
	m.metrics.version.Set(float64(lake.Version()))
	member, err := group.New(group.Options{Bus: m.o.Bus, Kind: "materializer", Name: m.groupName(lake),
		Period: m.o.Heartbeat, Settle: m.o.Settle, Positions: m.positions, Logger: m.log, Registerer: m.o.Registerer})
	if err != nil {
		return err
	}
	m.member.Store(member)
	telling, stop := context.WithCancel(ctx)
	var teller sync.WaitGroup
	teller.Go(func() { tally.Tell(telling, m.o.Bus, m.log, m.book.Counts) })
	defer teller.Wait()
	defer stop()
	return member.Run(ctx, func(hold context.Context, partition int, holds func(uint64)) error {
		return m.hold(ctx, hold, partition, holds)
	})
}

// groupName is the same for all materializers of a lake, wherever its folder is
// mounted.
func (m *Materializer) groupName(lake *commitlog.Log) string {
	if name := lake.Lake(); name != "" {
		return name
	}
	name, err := filepath.Abs(m.o.Lake)
	if err != nil {
		name = m.o.Lake
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte(name))) // the log lost its first entry
}

// hold works on a partition until hold ends, or ctx does, which ends the process.
func (m *Materializer) hold(ctx, hold context.Context, partition int, holds func(uint64)) error {
	p := m.newPart(partition)
	m.mu.Lock()
	m.parts[partition] = p
	m.mu.Unlock()
	m.working.Add(1)
	err := p.run(hold, holds)
	m.mu.Lock()
	delete(m.parts, partition)
	m.mu.Unlock()
	m.working.Add(-1)
	m.metrics.lag.DeleteLabelValues(strconv.Itoa(partition))
	switch {
	case errors.Is(err, commitlog.ErrFenced):
		return fmt.Errorf("%w: %w", group.ErrFenced, err)
	case err != nil && hold.Err() != nil && ctx.Err() == nil:
		p.log.Warn("a partition was given up without a last commit; who has it now reads the rest again", "error", err)
		return nil
	}
	return err
}

// share is what one of the partitions of this process gets of a bound.
func (m *Materializer) share(bound int64) int64 { return bound / m.working.Load() }

// sweeps has the leftovers of dead writers removed once for all claims that were made
// before.
type sweeps struct {
	claims atomic.Uint64
	mu     sync.Mutex // held while the folders are read
	swept  uint64     // claims that the last sweep knew of
}

// sweep is called after a claim. Leftovers that stay do no harm.
func (m *Materializer) sweep() {
	own := m.sweeps.claims.Add(1)
	m.sweeps.mu.Lock()
	defer m.sweeps.mu.Unlock()
	if m.sweeps.swept >= own {
		return
	}
	known := m.sweeps.claims.Load()
	n, err := m.lake.Load().Sweep()
	m.metrics.swept.Add(float64(n))
	if err != nil {
		m.log.Warn("remove what dead writers left behind", "error", err)
	}
	m.sweeps.swept = known
}
