// Package pipeline puts the roles of `sonde run` together: bus, agent,
// materializer and detectors, in one process or some of them in each.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"sonde/bus"
	"sonde/config"
	"sonde/consumers/detector"
	"sonde/consumers/materializer"
	"sonde/producer"
	"sonde/ring2"
)

// The roles, in the order in which they start.
const (
	RoleBus          = "bus"
	RoleAgent        = "agent"
	RoleMaterializer = "materializer"
	RoleDetector     = "detector"
)

// Roles lists all roles.
var Roles = []string{RoleBus, RoleAgent, RoleMaterializer, RoleDetector}

// CheckRoles refuses a role that does not exist.
func CheckRoles(roles []string) error {
	for _, r := range roles {
		if !slices.Contains(Roles, r) {
			return fmt.Errorf("role %q does not exist; use %s", r, strings.Join(Roles, ", "))
		}
	}
	return nil
}

// drainLimit bounds how long a stop waits for what was published to be stored.
const drainLimit = 20 * time.Second

// Options configures a pipeline.
type Options struct {
	Config  config.Config
	Roles   []string // empty: all
	Log     *slog.Logger
	OnScore func(detector.Score) // called for each scored token; nil: nobody listens
	Replay  bool                 // the agent has no socket: it reads what Attach gives it
}

// Pipeline is the running roles of this process.
type Pipeline struct {
	o        Options
	log      *slog.Logger
	registry *prometheus.Registry
	health   *health
	http     *httpServer
	server   *bus.EmbeddedServer // of the role bus
	bus      bus.Bus
	listener *ring2.Listener
	agent    *producer.Agent
	lake     *materializer.Materializer
	detector *detector.Detector
	scored   *scoredBus // of the agent, when this process has a detector

	stopAgent, stopConsumers context.CancelFunc
	agents, consumers        sync.WaitGroup
	failed                   chan error // a role that ended by itself
}

// Start starts the roles. It returns once every one of them runs, which needs the
// broker: until ctx ends, it is waited for.
func Start(ctx context.Context, o Options) (*Pipeline, error) {
	if err := CheckRoles(o.Roles); err != nil {
		return nil, err
	}
	if len(o.Roles) == 0 {
		o.Roles = Roles
	}
	p := &Pipeline{o: o, log: o.Log, registry: prometheus.NewRegistry(), health: newHealth(),
		failed: make(chan error, len(Roles)), stopAgent: func() {}, stopConsumers: func() {}}
	p.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := p.start(ctx); err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

func (p *Pipeline) has(role string) bool { return slices.Contains(p.o.Roles, role) }

func (p *Pipeline) start(ctx context.Context) error {
	c := &p.o.Config
	for _, role := range p.o.Roles {
		p.health.set(role, func() string { return "starting" })
	}
	if c.HTTP.Listen != "" {
		var err error
		if p.http, err = serveHTTP(c.HTTP.Listen, p.registry, p.health, p.log); err != nil {
			return err
		}
	}
	if p.has(RoleAgent) && !p.o.Replay {
		// Before the bus, so that engines find the agent even while the broker is away.
		if err := p.listen(); err != nil {
			return err
		}
	}
	if err := p.openBus(ctx); err != nil {
		return err
	}
	// The roles outlive ctx: Stop ends them in order.
	agents, stopAgent := context.WithCancel(context.WithoutCancel(ctx))
	consumers, stopConsumers := context.WithCancel(context.WithoutCancel(ctx))
	p.stopAgent, p.stopConsumers = stopAgent, stopConsumers
	for _, role := range []struct {
		name string
		run  func(context.Context) error
		ctx  context.Context
		wg   *sync.WaitGroup
	}{{RoleMaterializer, p.startMaterializer, consumers, &p.consumers}, {RoleDetector, p.startDetector, consumers,
		&p.consumers}, {RoleAgent, p.startAgent, agents, &p.agents}} {
		if !p.has(role.name) {
			continue
		}
		if err := role.run(role.ctx); err != nil {
			return err
		}
	}
	p.log.Info("running", "roles", strings.Join(p.o.Roles, ","))
	return nil
}

// spawn runs a role until ctx ends. A role that ends before is a failure of the
// whole process: its supervisor then starts it anew.
func (p *Pipeline) spawn(ctx context.Context, wg *sync.WaitGroup, role string, run func(context.Context) error) {
	wg.Go(func() {
		err := run(ctx)
		if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
			return
		}
		if err == nil {
			err = errors.New("it ended without a reason")
		}
		p.failed <- fmt.Errorf("%s: %w", role, err)
	})
}

// Run waits until ctx ends or a role fails, and stops everything in order.
func (p *Pipeline) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		p.log.Info("stopping")
		p.Stop()
		return nil
	case err := <-p.failed:
		p.Stop()
		return err
	}
}

// Failed gives the error of a role that ended by itself.
func (p *Pipeline) Failed() <-chan error { return p.failed }

// Ledger is the live ledger of the agent in this process.
func (p *Pipeline) Ledger() producer.Snapshot { return p.agent.Snapshot() }

// Drain waits until everything that was published has been scored and stored,
// verdicts included, as far as this process has the roles for it.
func (p *Pipeline) Drain(ctx context.Context) error {
	return p.drain(ctx, func() string { return "" })
}

// drain gives up when hopeless says why nothing more will be stored.
func (p *Pipeline) drain(ctx context.Context, hopeless func() string) error {
	if p.scored != nil {
		if err := p.await(ctx, p.scored.settled); err != nil {
			return fmt.Errorf("drain: not everything is scored: %w", err)
		}
	}
	if p.lake == nil {
		return nil
	}
	for partition := range p.bus.Partitions() {
		info, err := p.bus.Info(ctx, partition)
		if err != nil {
			return fmt.Errorf("drain: ask the bus for its last position: %w", err)
		}
		why := ""
		err = p.await(ctx, func() bool {
			why = hopeless()
			return why != "" || p.stored(info)
		})
		if err == nil && why != "" {
			err = errors.New(why)
		}
		if err != nil {
			return fmt.Errorf("drain: the dataset is at position %d of partition %d and the stream at %d: %w",
				p.lake.Committed(partition).Next, partition, info.Last, err)
		}
	}
	return nil
}

// stored reports whether the dataset has all of a partition, whichever process wrote it.
func (p *Pipeline) stored(info bus.StreamInfo) bool {
	at := p.lake.Committed(info.Partition)
	return info.Last == 0 || at.Incarnation == info.Incarnation && at.Next > info.Last // 0: nothing was ever published
}

// await waits until something holds, a role fails, or ctx ends.
func (p *Pipeline) await(ctx context.Context, holds func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-p.failed:
			return err
		case <-tick.C:
		}
	}
	return nil
}

// Stop ends the roles from left to right: the agent first, then, when what it
// published is stored, the consumers, and the bus last.
func (p *Pipeline) Stop() {
	p.stopAgent()
	if p.listener != nil {
		p.listener.Close()
	}
	p.agents.Wait()
	if p.agent != nil {
		if err := p.agent.Close(); err != nil {
			p.log.Warn("close the spool", "error", err)
		}
	}
	if p.server != nil && p.bus != nil && p.lake != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainLimit)
		if err := p.drain(ctx, p.lake.Trouble); err != nil {
			p.log.Warn("not everything is stored yet; the next start goes on here", "error", err)
		}
		cancel()
	}
	p.stopConsumers()
	p.consumers.Wait()
	if p.bus != nil {
		p.bus.Close()
	}
	if p.server != nil {
		p.server.Close()
	}
	if p.http != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		p.http.close(ctx)
		cancel()
	}
}
