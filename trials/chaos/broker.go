package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"sonde/bus"
	"sonde/bus/kafkatest"
	"sonde/bus/natstest"
	"sonde/bus/wiretest"
	"sonde/trials/faultproxy"
	"sonde/trials/fleet"
)

// The links to the broker, each with proxies of its own.
const (
	agentLink = iota
	consumerLink
	linkCount
)

// broker is the bus of a world, in processes that can be killed one by one.
type broker interface {
	// config is the YAML of the section bus for those behind a link.
	config(link int) string
	nodes() int
	kill(node int) error
	up(node int) error // starts a node and waits until it answers
	signal(node int, s syscall.Signal) error
	pid(node int) int   // 0: it does not run
	well(node int) bool // what its health check says, where there is one
	// leader is the node that leads a partition of the stream.
	leader(ctx context.Context, partition int) (int, error)
	// open connects past the proxies.
	open(ctx context.Context) (bus.Bus, error)
	close()
}

func newBroker(ctx context.Context, w *world) (broker, error) {
	switch w.on {
	case onNATS:
		return newEmbedded(ctx, w)
	case onCluster:
		return newCluster(w)
	case onKafka:
		return newKafka(w)
	}
	panic("BUG: no bus " + string(w.on))
}

// newLink makes a proxy before a server; its address is for the configuration.
func (w *world) newLink(target string) (*faultproxy.Proxy, error) {
	p, err := faultproxy.Listen("127.0.0.1:0", target)
	if err == nil {
		w.links = append(w.links, p)
	}
	return p, err
}

// alive says whether a process exists.
func alive(pid int) bool { return pid > 0 && syscall.Kill(pid, 0) == nil }

// embedded is `sonde run --role bus`.
type embedded struct {
	process *fleet.Process
	address string
	http    string
	proxies [linkCount]*faultproxy.Proxy
	store   string
}

const embeddedConfig = `  embedded: {store_dir: %q, listen: %q, max_bytes: 96MiB, retain_bytes: 16MiB}
`

func newEmbedded(ctx context.Context, w *world) (broker, error) {
	e := &embedded{store: filepath.Join(w.folder("store"), "bus")}
	var err1, err2 error
	e.address, err1 = fleet.FreeAddress()
	e.http, err2 = fleet.FreeAddress()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	for i := range e.proxies {
		p, err := w.newLink(e.address)
		if err != nil {
			return nil, err
		}
		e.proxies[i] = p
	}
	file := filepath.Join(w.dir, "bus.yaml")
	text := fmt.Sprintf("bus:\n  partitions: %d\n%shttp: {listen: %q}\n", partitions,
		fmt.Sprintf(embeddedConfig, e.store, e.address), e.http)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return nil, err
	}
	e.process = fleet.NewProcess("bus", w.dir, w.binary, "run", "--config", file, "--role", "bus")
	return e, e.up(0)
}

func (e *embedded) config(link int) string {
	return fmt.Sprintf(embeddedConfig, e.store, e.proxies[link].Address())
}

func (e *embedded) nodes() int     { return 1 }
func (e *embedded) kill(int) error { return e.process.Kill() }
func (e *embedded) up(int) error   { return e.process.Start() }
func (e *embedded) close()         { e.stop() }
func (e *embedded) url() string    { return "nats://" + e.address }
func (e *embedded) pid(int) int    { return runningPID(e.process) }

func (e *embedded) stop() {
	if e.process.Running() {
		_ = e.process.Kill() // It may have ended by now.
	}
}

func (e *embedded) well(int) bool { return true }

func runningPID(p *fleet.Process) int {
	if !p.Running() {
		return 0
	}
	return p.PID()
}

func (e *embedded) signal(_ int, s syscall.Signal) error     { return e.process.Signal(s) }
func (e *embedded) leader(context.Context, int) (int, error) { return 0, nil }
func (e *embedded) open(ctx context.Context) (bus.Bus, error) {
	return openNATS(ctx, e.url(), bus.NATSSecurity{})
}

func openNATS(ctx context.Context, url string, security bus.NATSSecurity) (bus.Bus, error) {
	return bus.OpenNATS(ctx, bus.NATSOptions{URL: url, Partitions: partitions, Security: security,
		Logger: slog.New(slog.DiscardHandler)})
}

// cluster is three nats-servers that speak TLS: NATS itself has no checksums, and would
// not notice turned bits.
type cluster struct {
	servers *natstest.Cluster
	urls    [linkCount]string // of the proxies
	ca      string            // file of the authority
}

func newCluster(w *world) (broker, error) {
	dir := filepath.Join(w.dir, "cluster")
	// One node has its store on the disk that faults are made on; a cluster is for that.
	ill := filepath.Join(w.folder("store"), "node1")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.MkdirAll(ill, 0o755),
		os.Symlink(ill, filepath.Join(dir, "node1"))); err != nil {
		return nil, err
	}
	if err := wiretest.Certificates(dir); err != nil {
		return nil, err
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	servers, err := natstest.StartCluster(natstest.Options{Dir: dir, Lines: []string{
		fmt.Sprintf("tls { cert_file: %q, key_file: %q }", file("server.pem"), file("server.key"))}})
	if err != nil {
		return nil, err
	}
	c := &cluster{servers: servers, ca: file("ca.pem")}
	for link := range c.urls {
		var urls []string
		for _, s := range servers.Servers {
			p, err := w.newLink(s.Address)
			if err != nil {
				servers.Kill()
				return nil, err
			}
			urls = append(urls, "nats://"+p.Address())
		}
		c.urls[link] = strings.Join(urls, ",")
	}
	return c, nil
}

func (c *cluster) config(link int) string {
	return fmt.Sprintf("  url: %q\n  nats: {replicas: %d, tls: {enabled: true, ca_file: %q}}\n", c.urls[link],
		natstest.Nodes, c.ca)
}

func (c *cluster) nodes() int                              { return natstest.Nodes }
func (c *cluster) kill(node int) error                     { c.servers.Servers[node].Kill(); return nil }
func (c *cluster) up(node int) error                       { return c.servers.Servers[node].Up() }
func (c *cluster) signal(node int, s syscall.Signal) error { return c.servers.Servers[node].Signal(s) }
func (c *cluster) pid(node int) int                        { return c.servers.Servers[node].PID() }
func (c *cluster) well(node int) bool                      { return c.servers.Servers[node].Healthy() }
func (c *cluster) close()                                  { c.servers.Kill() }

func (c *cluster) leader(ctx context.Context, partition int) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	s, err := c.servers.Leader(ctx, fmt.Sprintf("SONDE-%d", partition), nats.RootCAs(c.ca))
	for i := range c.servers.Servers {
		if c.servers.Servers[i] == s {
			return i, err
		}
	}
	return 0, err
}

func (c *cluster) open(ctx context.Context) (bus.Bus, error) {
	return openNATS(ctx, c.servers.URL(), bus.NATSSecurity{TLS: true, CAFile: c.ca})
}

// realKafka is a Kafka broker with a listener for each link, which it advertises as the
// proxy before it.
type realKafka struct {
	*kafkatest.Broker
	proxies [linkCount]*faultproxy.Proxy
	address string
}

func newKafka(w *world) (broker, error) {
	if why := kafkatest.Missing(); why != "" {
		return nil, fmt.Errorf("%w: %s", fleet.ErrNotHere, why)
	}
	k := &realKafka{}
	var ports [2 + linkCount]string
	for i := range ports {
		var err error
		if ports[i], err = fleet.FreeAddress(); err != nil {
			return nil, err
		}
	}
	k.address = ports[0]
	listeners, advertised := "PLAINTEXT://"+ports[0], "PLAINTEXT://"+ports[0]
	protocols := "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"
	for i := range k.proxies {
		p, err := w.newLink(ports[2+i])
		if err != nil {
			return nil, err
		}
		k.proxies[i] = p
		name := [linkCount]string{"AGENT", "CONSUMER"}[i]
		listeners += "," + name + "://" + ports[2+i]
		advertised += "," + name + "://" + p.Address()
		protocols += "," + name + ":PLAINTEXT"
	}
	var err error
	k.Broker, err = kafkatest.Start(kafkatest.Options{Dir: filepath.Join(w.dir, "kafka"), Lines: []string{
		"listeners=" + listeners + ",CONTROLLER://" + ports[1], "advertised.listeners=" + advertised,
		"listener.security.protocol.map=" + protocols, "controller.quorum.voters=1@" + ports[1],
		"log.dirs=" + filepath.Join(w.folder("store"), "logs")}})
	return k, err
}

func (k *realKafka) config(link int) string {
	return fmt.Sprintf("  kafka: {brokers: [%q], max_bytes: 1GiB, retain_bytes: 64MiB}\n", k.proxies[link].Address())
}

func (k *realKafka) nodes() int                               { return 1 }
func (k *realKafka) kill(int) error                           { k.Kill(); return nil }
func (k *realKafka) up(int) error                             { return k.Up() }
func (k *realKafka) signal(_ int, s syscall.Signal) error     { return k.Signal(s) }
func (k *realKafka) pid(int) int                              { return k.PID() }
func (k *realKafka) well(int) bool                            { return true }
func (k *realKafka) leader(context.Context, int) (int, error) { return 0, nil }
func (k *realKafka) close() {
	if k.Broker != nil {
		k.Kill()
	}
}

func (k *realKafka) open(ctx context.Context) (bus.Bus, error) {
	return bus.OpenKafka(ctx, bus.KafkaOptions{Brokers: []string{k.address}, Stream: "SONDE", Partitions: partitions,
		Logger: slog.New(slog.DiscardHandler)})
}
