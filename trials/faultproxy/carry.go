package faultproxy

import (
	"errors"
	"io"
	"net"
	"time"
)

// pieceBytes is what is read at once, so that a delay is felt by each piece and a rate
// is even.
const pieceBytes = 16 << 10

// carry hands one direction of a connection on, as the fault of the moment says, until
// it ends. An orderly end is handed on as one.
func (p *Proxy) carry(l *link, from, to *net.TCPConn, up bool) {
	buf := make([]byte, pieceBytes)
	state := harm{}
	for {
		n, err := from.Read(buf)
		if n > 0 {
			ok := p.hand(l, to, buf[:n], up, &state)
			if !ok {
				return
			}
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			l.reset()
		} else if p.waitWhileHeld(l, up) {
			_ = to.CloseWrite() // The other end may be gone.
		}
		return
	}
}

// harm is how far a direction is with the fault that it feels.
type harm struct {
	changed chan struct{} // of the fault
	bytes   int           // since it began
}

// now is the fault of the moment.
func (p *Proxy) now(up bool) (f Fault, flow Flow, changed chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	flow = p.fault.Down
	if up {
		flow = p.fault.Up
	}
	return p.fault, flow, p.changed
}

// hand gives a piece to the other end. It reports false when the connection is over.
func (p *Proxy) hand(l *link, to *net.TCPConn, piece []byte, up bool, state *harm) bool {
	for {
		f, flow, changed := p.now(up)
		if changed != state.changed {
			*state = harm{changed: changed}
		}
		switch {
		case p.isDead(l):
			return true
		case flow == Swallow:
			p.kill(l)
			return true
		case flow == Hold:
			<-changed
			continue
		case flow == Harm:
			return p.hurt(l, to, piece, f, state)
		}
		_, err := to.Write(piece)
		return err == nil
	}
}

// hurt hands a piece on with what the fault does to it.
func (p *Proxy) hurt(l *link, to *net.TCPConn, piece []byte, f Fault, state *harm) bool {
	wait(f.Delay, state.changed)
	if f.BytesPerSecond > 0 {
		// Small pieces keep the rate even; a fault that ends lets the rest go at once.
		for len(piece) > 0 {
			n := min(len(piece), max(1, f.BytesPerSecond/20))
			if _, err := to.Write(piece[:n]); err != nil {
				return false
			}
			piece = piece[n:]
			wait(time.Second*time.Duration(n)/time.Duration(f.BytesPerSecond), state.changed)
		}
		return true
	}
	cut := f.CutAfter > 0 && state.bytes+len(piece) >= f.CutAfter
	if cut {
		piece = piece[:f.CutAfter-state.bytes]
	}
	if f.CorruptEvery > 0 {
		for at := f.CorruptEvery - state.bytes%f.CorruptEvery - 1; at < len(piece); at += f.CorruptEvery {
			piece[at] ^= 1 << (at % 8)
			p.corrupted.Add(1)
		}
	}
	state.bytes += len(piece)
	_, err := to.Write(piece)
	if cut {
		time.Sleep(time.Millisecond) // so that what came before the cut is delivered
		l.reset()
		return false
	}
	return err == nil
}

// wait waits, but not longer than the fault lasts.
func wait(d time.Duration, changed chan struct{}) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	}
}

// waitWhileHeld keeps the end of a direction back while it is held or dead, as it would
// not arrive, and reports whether it may be told.
func (p *Proxy) waitWhileHeld(l *link, up bool) bool {
	for {
		_, flow, changed := p.now(up)
		switch {
		case p.isDead(l) || flow == Swallow:
			return false
		case flow != Hold:
			return true
		}
		<-changed
	}
}

func (p *Proxy) isDead(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return l.dead
}

// kill marks a connection of which bytes are gone: what came behind them must never
// arrive, also after the fault.
func (p *Proxy) kill(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.dead = true
}
