package natstest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"sonde/bus/wiretest"
)

// Nodes is the number of servers of a cluster: one may be lost.
const Nodes = 3

// Cluster is three servers that replicate streams.
type Cluster struct {
	Servers [Nodes]*Server
}

// NeedCluster starts a cluster for a test, and kills it when the test ends.
func NeedCluster(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	c, err := StartCluster(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Kill)
	return c
}

// StartCluster starts three servers on folders below o.Dir, and returns once all are
// healthy.
func StartCluster(o Options) (*Cluster, error) {
	ports, err := wiretest.FreePorts(3 * Nodes)
	if err != nil {
		return nil, err
	}
	var routes []string
	for _, address := range ports[:Nodes] {
		routes = append(routes, "nats-route://"+address)
	}
	c := &Cluster{}
	for i := range c.Servers {
		lines := append([]string{"server_name: node" + strconv.Itoa(i+1),
			fmt.Sprintf("cluster { name: sonde, listen: %q, routes: [%s] }", ports[i], strings.Join(routes, ", "))},
			o.Lines...)
		dir := filepath.Join(o.Dir, "node"+strconv.Itoa(i+1))
		if c.Servers[i], err = newServer(Options{Dir: dir, Lines: lines}, ports[Nodes+i], ports[2*Nodes+i]); err != nil {
			return nil, err
		}
	}
	if err := c.Up(); err != nil {
		c.Kill()
		return nil, err
	}
	return c, nil
}

// URL is where a client finds the cluster: all its servers.
func (c *Cluster) URL() string {
	var urls []string
	for _, s := range c.Servers {
		urls = append(urls, s.URL)
	}
	return strings.Join(urls, ",")
}

// Up starts the servers that do not run, and returns once all are healthy.
func (c *Cluster) Up() error {
	var errs []error
	for _, s := range c.Servers {
		if s.PID() == 0 {
			errs = append(errs, s.start())
		}
	}
	for _, s := range c.Servers {
		if err := errors.Join(errs...); err != nil {
			return err
		}
		errs = append(errs, s.ready())
	}
	return errors.Join(errs...)
}

// Kill ends all servers with SIGKILL.
func (c *Cluster) Kill() {
	for _, s := range c.Servers {
		if s != nil {
			s.Kill()
		}
	}
}

// Leader is the server that leads a stream: what is published goes through it. login
// is how a client reaches the stream's account.
func (c *Cluster) Leader(ctx context.Context, stream string, login ...nats.Option) (*Server, error) {
	for {
		name, err := c.leader(ctx, stream, login)
		if err == nil {
			i, err := strconv.Atoi(strings.TrimPrefix(name, "node"))
			if err != nil || i < 1 || i > Nodes {
				return nil, fmt.Errorf("stream %s is led by %q, which is none of ours", stream, name)
			}
			return c.Servers[i-1], nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("find the leader of stream %s: %w", stream, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *Cluster) leader(ctx context.Context, stream string, login []nats.Option) (string, error) {
	nc, err := nats.Connect(c.URL(), append([]nats.Option{nats.NoReconnect()}, login...)...)
	if err != nil {
		return "", err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return "", err
	}
	once, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := js.Stream(once, stream)
	if err != nil {
		return "", err
	}
	if info := s.CachedInfo().Cluster; info != nil && info.Leader != "" {
		return info.Leader, nil
	}
	return "", errors.New("it has none")
}
