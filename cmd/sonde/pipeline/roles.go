package pipeline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"sonde/bus"
	"sonde/config"
	"sonde/consumers/detector"
	"sonde/consumers/materializer"
	"sonde/producer"
	"sonde/ring2"
	"sonde/spool"
)

// openBus starts the embedded server, when this process has that role, and
// connects to it, or to the broker that the configuration names.
func (p *Pipeline) openBus(ctx context.Context) error {
	c := &p.o.Config.Bus
	if c.UsesKafka() {
		return p.openKafka(ctx)
	}
	if c.URL != "" && p.has(RoleBus) && len(p.o.Roles) == 1 {
		return errors.New("start the role bus: bus.url names a broker of your own, so there is nothing to run here")
	}
	var o bus.NATSOptions
	var err error
	if p.has(RoleBus) && c.URL == "" {
		p.server, err = bus.StartEmbedded(bus.EmbeddedOptions{StoreDir: c.Embedded.StoreDir, Listen: c.Embedded.Listen,
			SyncAlways: c.Embedded.Sync == "always", Logger: p.log, Registerer: p.registry})
		o = bus.NATSOptions{Embedded: p.server, Stream: c.Stream, Partitions: c.Partitions,
			MaxBytes: int64(c.Embedded.MaxBytes)}
	} else if o, err = NATSOptions(*c); err != nil {
		err = fmt.Errorf("start %s: %w", strings.Join(p.o.Roles, ","), err)
	}
	if err != nil {
		return err
	}
	o.WindowBytes, o.Logger, o.Registerer = int64(p.o.Config.Agent.InflightBytes), p.log, p.registry
	p.health.set("bus", func() string { return "not connected yet" })
	b, err := bus.OpenNATS(ctx, o)
	if err != nil {
		return err
	}
	p.use(b)
	return nil
}

// brokerBus is a bus that knows what is wrong with its broker.
type brokerBus interface {
	bus.Bus
	Trouble() string
}

// use makes a bus the one of the roles.
func (p *Pipeline) use(b brokerBus) {
	p.bus = b
	p.health.set("bus", func() string {
		if trouble := p.storeTrouble(); trouble != "" {
			return trouble
		}
		return b.Trouble()
	})
}

// storeTrouble says why the store of the embedded server takes nothing, "" when it
// does, or is none of this process.
func (p *Pipeline) storeTrouble() string {
	if p.server == nil {
		return ""
	}
	return p.server.Trouble()
}

// NATSOptions is how another process than that of the role bus reaches the broker.
func NATSOptions(c config.Bus) (bus.NATSOptions, error) {
	o := bus.NATSOptions{URL: c.URL, Stream: c.Stream, Partitions: c.Partitions}
	if c.URL == "" {
		if c.Embedded.Listen == "" {
			return o, errors.New("reach the bus: it is in another process, and bus.embedded.listen is empty; " +
				"set it to an address, or bus.url to a broker")
		}
		o.URL, o.MaxBytes = "nats://"+c.Embedded.Listen, int64(c.Embedded.MaxBytes)
		return o, nil
	}
	n := &c.NATS
	o.Replicas = n.Replicas // What bounds the stream is for the owner of the broker to say.
	o.Security = bus.NATSSecurity{TLS: c.NATSUsesTLS(), CAFile: n.TLS.CAFile, CertFile: n.TLS.CertFile,
		KeyFile: n.TLS.KeyFile, User: c.User, NKeyFile: n.NKeyFile, CredsFile: n.CredsFile, InboxPrefix: n.InboxPrefix}
	if c.User == "" {
		return o, nil
	}
	var err error
	o.Security.Password, err = loginPassword(c)
	return o, err
}

// loginPassword is the password of bus.user, which there must be.
func loginPassword(c config.Bus) (string, error) {
	password, err := c.Password()
	if err == nil && password == "" {
		err = fmt.Errorf("log in at the bus as %s: no password; set %s or bus.password_file", c.User, config.PasswordVariable)
	}
	return password, err
}

// listen opens the socket of the role agent.
func (p *Pipeline) listen() error {
	c := &p.o.Config.Agent
	if err := os.MkdirAll(filepath.Dir(c.Socket), 0o755); err != nil {
		return fmt.Errorf("make the folder of agent.socket: %w", err)
	}
	wait := ring2.WaitPoll
	if c.Wait == "event" {
		wait = ring2.WaitEvent
	}
	var err error
	p.listener, err = ring2.Listen(c.Socket, ring2.ListenerOptions{Name: "sonde agent", Wait: wait,
		QuarantineDir: filepath.Join(c.DeadLetter.Dir, "quarantine"), Logger: p.log})
	return err
}

func (p *Pipeline) startAgent(ctx context.Context) error {
	c := &p.o.Config.Agent
	var live []producer.HookLayer
	for _, d := range p.o.Config.Detectors {
		b, err := detector.Load(d.Bundle)
		if err != nil {
			return err
		}
		live = append(live, producer.HookLayer{Hook: b.Manifest.Binding.Hook, Layer: b.Manifest.Binding.Layer})
	}
	agentBus := p.bus
	if p.detector != nil {
		p.scored = &scoredBus{Bus: p.bus, detector: p.detector, filters: p.detector.Filters(),
			last: make([]atomic.Uint64, p.bus.Partitions())}
		agentBus = p.scored
	}
	var err error
	p.agent, err = producer.New(producer.Options{Spool: p.spoolOptions(), Listener: p.listener, Bus: agentBus,
		Policy: policyOf(p.o.Config.Policy), LingerMS: c.LingerMS, BatchBytes: int(c.BatchBytes),
		InflightBytes: int64(c.InflightBytes), Live: live, DeadLetterDir: c.DeadLetter.Dir,
		DeadLetterMaxBytes: int64(c.DeadLetter.MaxBytes),
		Registerer:         p.registry, Logger: p.log})
	if err != nil {
		return err
	}
	if !p.o.Replay {
		p.spawn(ctx, &p.agents, RoleAgent, p.agent.Run)
	}
	p.health.set(RoleAgent, func() string { return p.agent.Spool().Trouble })
	return nil
}

// spoolOptions are those of the agent. A replay has its rows in a file.
func (p *Pipeline) spoolOptions() producer.SpoolOptions {
	c := &p.o.Config.Agent
	dir := c.SpoolDir()
	if p.o.Replay || dir == "" {
		return producer.SpoolOptions{}
	}
	o := producer.SpoolOptions{Dir: dir, MaxBytes: int64(c.Spool.MaxBytes), SyncBytes: int64(c.Spool.SyncBytes),
		SyncInterval: time.Duration(c.Spool.SyncIntervalMS) * time.Millisecond,
		After:        time.Duration(c.Spool.AfterMS) * time.Millisecond}
	if c.Spool.WhenFull != "by_mode" {
		o.WhenFull = spool.WhenFull(c.Spool.WhenFull)
	}
	return o
}

func (p *Pipeline) startMaterializer(ctx context.Context) error {
	c := &p.o.Config.Materializer
	m, err := materializer.New(materializer.Options{Bus: p.bus, Lake: c.Lake,
		CommitInterval: time.Duration(c.CommitIntervalMS) * time.Millisecond, CommitBytes: int64(c.CommitBytes),
		RetainBytes: uint64(retainBytes(p.o.Config.Bus)), DeadLetterDir: c.DeadLetterDir, Registerer: p.registry,
		Logger: p.log})
	if err != nil {
		return err
	}
	p.lake = m
	p.spawn(ctx, &p.consumers, RoleMaterializer, m.Run)
	p.health.set(RoleMaterializer, m.Trouble)
	return nil
}

// startDetector does nothing without bundles, unless it was asked for by name.
func (p *Pipeline) startDetector(ctx context.Context) error {
	list := p.o.Config.Detectors
	if len(list) == 0 {
		if len(p.o.Roles) == len(Roles) {
			p.health.set(RoleDetector, func() string { return "" })
			return nil
		}
		return errors.New("start the role detector: the configuration names no bundle under detectors")
	}
	uses, err := detectorUses(list)
	if err != nil {
		return err
	}
	p.detector, err = detector.New(detector.Options{Bus: p.bus, Detectors: uses, OnScore: p.o.OnScore, Logger: p.log,
		Registerer: p.registry})
	if err != nil {
		return err
	}
	p.spawn(ctx, &p.consumers, RoleDetector, p.detector.Run)
	p.health.set(RoleDetector, func() string { return strings.Join(p.detector.Problems(), "; ") })
	return nil
}

func detectorUses(list []config.Detector) ([]detector.Use, error) {
	var uses []detector.Use
	for _, d := range list {
		b, err := detector.Load(d.Bundle)
		if err != nil {
			return nil, err
		}
		uses = append(uses, detector.Use{Bundle: b, Mode: d.Mode})
	}
	return uses, nil
}
