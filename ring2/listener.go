package ring2

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ListenerOptions configures a listener.
type ListenerOptions struct {
	Name             string // of the agent, for logs of the engine
	Wait             WaitMode
	QuarantineDir    string        // for dumps of corrupt rings, "": none
	HandshakeTimeout time.Duration // 0: 5 s
	MaxRingBytes     int           // of both memfds, 0: 16 GiB
	Logger           *slog.Logger  // nil: slog.Default
}

// Bounds of a listener.
const (
	maxHandshakes  = 64   // at once; one more ends the oldest
	maxWaiting     = 256  // sessions that Accept has not taken; more are closed, and dial again
	maxAttached    = 1024 // rings with a session or a handshake under way; more are refused, and dial again
	maxQuarantined = 1024 // epochs that are refused because their ring is corrupt; the oldest is forgotten
	maxSocketPath  = 103  // bytes, with room for a suffix in the kernel's 108
	socketMode     = 0o660
)

// ListenerStats are counters of a listener.
type ListenerStats struct {
	Refused     uint64 // connections that did not become a session
	Evicted     uint64 // of them, those that made room for newer ones
	Quarantined uint64 // rings found corrupt
	Dumps       uint64 // of them, those that were dumped
}

// Listener accepts the ranks of engines on a unix socket. A slow or hostile peer
// keeps nobody else waiting: each handshake has a goroutine and a timeout.
type Listener struct {
	path  string
	o     ListenerOptions
	log   *slog.Logger
	lock  *os.File
	inode uint64
	l     *net.UnixListener
	ready chan *Session
	stop  chan struct{}
	slots chan struct{} // of handshakes, also of those that were evicted
	tasks sync.WaitGroup

	mu          sync.Mutex
	closed      bool
	handshakes  []*net.UnixConn // oldest first
	attached    map[uint64]bool // epochs with a session or a handshake under way
	quarantined map[uint64]error
	order       []uint64 // of quarantined, oldest first

	refused, evicted, corrupt, dumps atomic.Uint64
	lastWarning                      atomic.Int64
}

// Listen binds the socket at path, whose folder must exist. A socket file that a
// dead agent left is replaced; a living agent on the same path is an error. A
// lock file beside the socket tells them apart. Owner and group of the socket
// may connect.
func Listen(path string, o ListenerOptions) (*Listener, error) {
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 5 * time.Second
	}
	if o.MaxRingBytes == 0 {
		o.MaxRingBytes = 16 << 30
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if len(path) > maxSocketPath || len(path) == 0 {
		return nil, fmt.Errorf("listen on %q: the path has %d bytes; use 1 to %d", path, len(path), maxSocketPath)
	}
	l := &Listener{path: path, o: o, log: o.Logger, ready: make(chan *Session, maxWaiting), stop: make(chan struct{}),
		slots:    make(chan struct{}, 2*maxHandshakes),
		attached: map[uint64]bool{}, quarantined: map[uint64]error{}}
	if err := l.bind(); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.tasks.Go(l.acceptAll)
	return l, nil
}

// bind makes the socket under another name and moves it to its place with its
// final permissions, so that nobody connects before and a stale file does no harm.
func (l *Listener) bind() error {
	var err error
	if l.lock, err = os.OpenFile(l.path+".lock", os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("open the lock file: %w; the folder must exist and be writable", err)
	}
	if err = unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = l.lock.Close()
		return fmt.Errorf("another agent is running on this socket: stop it or choose another path (%w)", err)
	}
	fresh := l.path + ".new"
	if err = l.place(fresh); err != nil {
		if l.l != nil {
			_ = l.l.Close()
		}
		_ = os.Remove(fresh)
		_ = l.lock.Close()
	}
	return err
}

func (l *Listener) place(fresh string) error {
	if info, err := os.Lstat(l.path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return errors.New("a file that is not a socket stands there: remove it or choose another path")
	}
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var err error
	if l.l, err = net.ListenUnix(socketNetwork, &net.UnixAddr{Name: fresh, Net: socketNetwork}); err != nil {
		return err
	}
	l.l.SetUnlinkOnClose(false)
	if err := os.Chmod(fresh, socketMode); err != nil {
		return err
	}
	if l.inode, err = inodeOf(fresh); err != nil {
		return err
	}
	return os.Rename(fresh, l.path)
}

func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return st.Ino, err
}

// Accept returns the next rank that completed its handshake. It ends with the
// context's error, or with net.ErrClosed.
func (l *Listener) Accept(ctx context.Context) (*Session, error) {
	select {
	case <-l.stop:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	case s := <-l.ready:
		return s, nil
	}
}

// Stats returns the counters.
func (l *Listener) Stats() ListenerStats {
	return ListenerStats{Refused: l.refused.Load(), Evicted: l.evicted.Load(), Quarantined: l.corrupt.Load(),
		Dumps: l.dumps.Load()}
}

// Close stops listening and removes the socket. Sessions that Accept returned go
// on.
func (l *Listener) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.stop)
	for _, c := range l.handshakes {
		_ = c.Close() // its goroutine reports it
	}
	l.mu.Unlock()
	err := l.l.Close()
	l.tasks.Wait()
	for {
		select {
		case s := <-l.ready:
			_ = s.Close() // nobody ever used it
			continue
		default:
		}
		break
	}
	if inode, statErr := inodeOf(l.path); statErr == nil && inode == l.inode {
		err = errors.Join(err, os.Remove(l.path))
	}
	// The lock file stays: removing it would let two agents lock two files.
	return errors.Join(err, l.lock.Close())
}

func (l *Listener) acceptAll() {
	for {
		c, err := l.l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			l.warn("accept a connection", err)
			select {
			case <-l.stop:
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors: some will be closed
			}
		case l.admit(c):
			l.slots <- struct{}{} // those that were evicted are about to leave theirs
			l.tasks.Go(func() {
				l.handshake(c)
				<-l.slots
			})
		default:
			_ = c.Close() // the listener is closed
		}
	}
}

// admit takes a connection in. It ends the oldest handshake when there are too
// many: an honest one takes a millisecond, so that a flood cannot shut it out.
func (l *Listener) admit(c *net.UnixConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	if len(l.handshakes) >= maxHandshakes {
		_ = l.handshakes[0].Close() // its goroutine reports it
		l.handshakes = append(l.handshakes[:0], l.handshakes[1:]...)
		l.evicted.Add(1)
	}
	l.handshakes = append(l.handshakes, c)
	return true
}

func (l *Listener) dismiss(c *net.UnixConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, other := range l.handshakes {
		if other == c {
			l.handshakes = append(l.handshakes[:i], l.handshakes[i+1:]...)
			return
		}
	}
}

// warn logs at most once a second, so that a flood of bad peers does not fill the
// log. The counters tell the rest.
func (l *Listener) warn(what string, err error) {
	now := int64(monotonicNS()) // a wall clock that steps back would silence it for long
	last := l.lastWarning.Load()
	if last > 0 && now-last < int64(time.Second) || !l.lastWarning.CompareAndSwap(last, now) {
		return
	}
	l.log.Warn(what, "socket", filepath.Base(l.path), "error", err)
}
