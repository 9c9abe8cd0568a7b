// Package faultproxy stands between a client and a server on TCP and does to their
// connections what networks do: cuts them, with and without a word, slows them down,
// lets them hang half open, and changes bytes.
package faultproxy

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Fault is what a proxy does to the bytes of its connections. The zero value hands them
// on. Directions are named from the client: up is what it sends.
type Fault struct {
	Up, Down       Flow
	Delay          time.Duration // of each piece of data, in the chosen directions
	BytesPerSecond int           // 0: no limit
	CutAfter       int           // so many bytes more, then the connection is reset; 0: never
	CorruptEvery   int           // one bit of one byte in so many is turned; 0: none
}

// Flow says what becomes of one direction.
type Flow uint8

const (
	Pass    Flow = iota // handed on, unharmed
	Harm                // subject to delay, rate, cut and corruption
	Hold                // kept, and handed on when the fault ends, as a network does that comes back
	Swallow             // acknowledged by TCP, and gone: the other end died without a word
)

// Proxy listens at an address and connects each client to the target.
type Proxy struct {
	address, target string

	mu       sync.Mutex
	listener net.Listener // nil while nobody may connect
	fault    Fault
	changed  chan struct{} // closed when fault changes
	links    map[*link]bool
	closed   bool
	work     sync.WaitGroup

	corrupted, connections atomic.Int64
}

// link is one client and its server.
type link struct {
	client, server *net.TCPConn
	dead           bool // bytes were swallowed: nothing may pass any more
}

// Listen starts a proxy at address, host:port; port 0 is any. The target need not
// exist yet: a client that comes before it is reset.
func Listen(address, target string) (*Proxy, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("start the fault proxy: %w", err)
	}
	p := &Proxy{address: l.Addr().String(), target: target, listener: l, changed: make(chan struct{}),
		links: map[*link]bool{}}
	p.work.Go(func() { p.accept(l) })
	return p, nil
}

// Address is where clients connect to.
func (p *Proxy) Address() string { return p.address }

// Corrupted counts the bits that were turned.
func (p *Proxy) Corrupted() int64 { return p.corrupted.Load() }

// Connections counts the clients that came.
func (p *Proxy) Connections() int64 { return p.connections.Load() }

// Retarget sends clients that come from now on to another server.
func (p *Proxy) Retarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Set puts a fault in the place of the last one, for connections old and new.
func (p *Proxy) Set(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
	close(p.changed)
	p.changed = make(chan struct{})
}

// Clear ends the fault.
func (p *Proxy) Clear() { p.Set(Fault{}) }

// Reset cuts every connection with a RST. New ones are taken.
func (p *Proxy) Reset() { p.each(func(l *link) { l.reset() }) }

// Finish closes every connection in order, with a FIN to both ends.
func (p *Proxy) Finish() {
	p.each(func(l *link) {
		_ = l.client.Close() // It may be closed.
		_ = l.server.Close()
	})
}

func (p *Proxy) each(f func(*link)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		f(l)
	}
}

// Refuse resets every connection and lets nobody in until Admit.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	l := p.listener
	p.listener = nil
	p.mu.Unlock()
	if l != nil {
		_ = l.Close() // Nothing was written to it.
	}
	p.Reset()
}

// admitTries are made to listen again where Refuse has stopped.
const admitTries = 50

// Admit ends Refuse.
func (p *Proxy) Admit() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil || p.closed {
		return nil
	}
	l, err := net.Listen("tcp", p.address)
	for tries := 0; err != nil && tries < admitTries; tries++ { // somebody's connection may have taken the port
		time.Sleep(100 * time.Millisecond)
		l, err = net.Listen("tcp", p.address)
	}
	if err != nil {
		return fmt.Errorf("open the fault proxy again: %w", err)
	}
	p.listener = l
	p.work.Go(func() { p.accept(l) })
	return nil
}

// Close ends the proxy and its connections.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.Clear() // wakes who holds something
	p.Refuse()
	p.work.Wait()
}

func (p *Proxy) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // as without descriptors
			continue
		}
		p.connections.Add(1)
		p.work.Go(func() { p.serve(c.(*net.TCPConn)) })
	}
}

const dialTimeout = 5 * time.Second

// serve carries one connection until one of its ends is gone.
func (p *Proxy) serve(client *net.TCPConn) {
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := net.DialTimeout("tcp", target, dialTimeout)
	if err != nil {
		reset(client)
		return
	}
	l := &link{client: client, server: server.(*net.TCPConn)}
	p.mu.Lock()
	p.links[l] = true
	gone := p.closed || p.listener == nil
	p.mu.Unlock()
	if gone {
		l.reset()
	}
	var both sync.WaitGroup
	both.Go(func() { p.carry(l, l.client, l.server, true) })
	both.Go(func() { p.carry(l, l.server, l.client, false) })
	both.Wait()
	_ = client.Close() // Both directions ended.
	_ = server.Close()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

func (l *link) reset() {
	reset(l.client)
	reset(l.server)
}

// reset closes a connection with a RST.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // It may be closed.
	_ = c.Close()
}
