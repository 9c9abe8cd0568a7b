package ring2

import (
	"fmt"
	"net"
	"sync/atomic"
	"time"
)

// refuseTimeout is how long a REFUSE may take to send.
const refuseTimeout = time.Second

// handshake turns a connection into a session, or ends it.
func (l *Listener) handshake(c *net.UnixConn) {
	s, buf, err := l.welcome(c)
	l.dismiss(c)
	if err == nil {
		go s.serve(buf) // until the connection ends, which Session.Close waits for
		select {
		case l.ready <- s:
			return
		default:
		}
		err = fmt.Errorf("%d ranks wait for the agent already", maxWaiting)
		_ = s.Close() // the engine dials again
	}
	l.refused.Add(1)
	l.warn("refuse a connection", err)
	// The peer may be gone, and it is told only as a courtesy; the handshake's
	// deadline may be what has passed.
	_ = c.SetWriteDeadline(time.Now().Add(refuseTimeout))
	_ = sendMessage(c, refuseMessage(err.Error()))
	_ = c.Close()
}

// welcome does the handshake. Its error is the sentence that the engine gets.
func (l *Listener) welcome(c *net.UnixConn) (*Session, []byte, error) {
	if err := c.SetDeadline(time.Now().Add(l.o.HandshakeTimeout)); err != nil {
		return nil, nil, err
	}
	buf := make([]byte, abiMessageMaxBytes)
	m, err := receiveMessage(c, buf)
	if err != nil {
		return nil, nil, fmt.Errorf("wait for HELLO: %w", err)
	}
	if m.typ != abiMessageHello {
		m.closeFDs()
		return nil, nil, fmt.Errorf("wait for HELLO: got %s", m.name())
	}
	library, err := parseHello(m.body)
	if err != nil {
		m.closeFDs()
		return nil, nil, err
	}
	memory, err := mapPeer(m.fds, uint64(l.o.MaxRingBytes))
	if err != nil {
		return nil, nil, err
	}
	s, err := l.attach(c, memory, buf)
	if err != nil {
		memory.close()
		return nil, nil, err
	}
	s.log.Info("rank attached", "library", library, "pid", s.config.ProducerPID)
	return s, buf, nil
}

// attach checks the ring that came with HELLO, answers, and takes the snapshot.
func (l *Listener) attach(c *net.UnixConn, memory *readerMemory, buf []byte) (*Session, error) {
	config, err := parseConfig(memory.ctl, uint64(len(memory.data)))
	if err != nil {
		return nil, err
	}
	r, err := ringOn(memory.ctl, memory.consumer, memory.data, config.DescCount)
	if err != nil {
		return nil, err
	}
	if err := l.reserve(config.Epoch); err != nil {
		return nil, err
	}
	s, err := l.snapshot(c, config, r, memory, buf)
	if err != nil {
		l.release(config.Epoch)
		return nil, err
	}
	return s, nil
}

func (l *Listener) snapshot(c *net.UnixConn, config Config, r ring, memory *readerMemory, buf []byte) (*Session,
	error) {
	if err := sendMessage(c, welcomeMessage(l.o.Name)); err != nil {
		return nil, err
	}
	records, start, err := receiveSnapshot(c, buf)
	if err != nil {
		return nil, err
	}
	if claim := atomic.LoadUint64(&r.producer.ClaimSeq); claim-start > config.DescCount {
		return nil, fmt.Errorf("receive snapshot: it starts at record %d; the engine claimed up to %d", start, claim)
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	s, err := newSession(config, records, memory, newReaderCore(r, start), c)
	if err != nil {
		return nil, err
	}
	s.wait, s.onClose, s.dump = l.o.Wait, l.forget, l.dumpCorrupt
	s.log = l.log.With("engine", config.EngineInstance, "rank", config.Rank, "epoch", fmt.Sprintf("%016x", config.Epoch))
	return s, nil
}

// receiveSnapshot reads the messages up to SNAPSHOT_END: records in the order of
// the ring, and the sequence number to start at.
func receiveSnapshot(c *net.UnixConn, buf []byte) ([]Record, uint64, error) {
	var records []Record
	for size := 0; ; {
		m, err := receiveMessage(c, buf)
		if err != nil {
			return nil, 0, fmt.Errorf("receive snapshot: %w", err)
		}
		switch m.typ {
		case abiMessageSnapshotItem:
			item, err := parseSnapshotItem(m.body)
			if err != nil {
				return nil, 0, err
			}
			if size += len(item.payload); len(records) >= maxSnapshotItems || size > maxSnapshotBytes {
				return nil, 0, fmt.Errorf("receive snapshot: more than %d records or %d bytes", maxSnapshotItems,
					maxSnapshotBytes)
			}
			records = append(records, Record{Seq: item.seq, Kind: item.kind, Flags: FlagPayloadCRC,
				Payload: append([]byte(nil), item.payload...)})
		case abiMessageSnapshotEnd:
			end, err := parseSnapshotEnd(m.body)
			if err == nil && int(end.count) != len(records) {
				err = fmt.Errorf("receive snapshot: %d records came; its end says %d", len(records), end.count)
			}
			return records, end.releaseSeq, err
		default:
			m.closeFDs()
			return nil, 0, fmt.Errorf("receive snapshot: got %s", m.name())
		}
	}
}

// reserve keeps a ring from being read twice, and a corrupt one from coming back.
func (l *Listener) reserve(epoch uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if why := l.quarantined[epoch]; why != nil {
		return fmt.Errorf("ring of epoch %016x is in quarantine: %w", epoch, why)
	}
	if l.attached[epoch] {
		return fmt.Errorf("ring of epoch %016x is attached already; dial again when that session has ended", epoch)
	}
	if len(l.attached) >= maxAttached {
		return fmt.Errorf("%d rings are attached already", maxAttached)
	}
	l.attached[epoch] = true
	return nil
}

func (l *Listener) release(epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.attached, epoch)
}

func (l *Listener) forget(s *Session) { l.release(s.config.Epoch) }
