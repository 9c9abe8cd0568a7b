package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"
)

// EmbeddedOptions configures a NATS server in this process.
type EmbeddedOptions struct {
	StoreDir   string // of the file store; made when it is missing
	Listen     string // host:port for other processes, "": this process alone
	SyncAlways bool   // fsync before each acknowledgement; else a power loss can take the last 2 minutes
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil: no metrics
}

// EmbeddedServer is a NATS server with JetStream in this process. When it gave up its
// store, as on a full disk, it is opened anew once the disk takes writes again.
type EmbeddedServer struct {
	o       EmbeddedOptions
	url     string
	lock    *os.File
	metrics *storeMetrics
	stop    context.CancelFunc // of the watch over the store
	watch   sync.WaitGroup

	mu      sync.Mutex     // a leaf
	s       *server.Server // nil while it is opened anew
	trouble string         // why the store takes nothing, "": it does
}

const (
	// maxPendingBytes is what the server buffers for one connection before it cuts
	// it off. One pull of pullBytes must fit several times.
	maxPendingBytes = 256 << 20
	// startTimeout covers reading a large store.
	startTimeout = 5 * time.Minute
	// noStoreLimit leaves the bound to the stream. The server's own default is three
	// quarters of the free disk, so that a stream no longer fits when it has grown.
	noStoreLimit = 1 << 50
)

// StartEmbedded starts a server and waits until it answers. Errors: a folder that
// another server uses, an address that is taken, a store that cannot be read.
func StartEmbedded(o EmbeddedOptions) (*EmbeddedServer, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.StoreDir == "" {
		return nil, errors.New("start the embedded bus: no store folder is given")
	}
	lock, err := lockStore(o.StoreDir)
	if err != nil {
		return nil, err
	}
	m, err := newStoreMetrics(o.Registerer)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s, err := startServer(o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the embedded bus in %s: %w", o.StoreDir, err), lock.Close())
	}
	e := &EmbeddedServer{o: o, lock: lock, metrics: m, s: s}
	if o.Listen != "" {
		// When it is opened anew, clients look for it at the same port.
		e.url, e.o.Listen = s.ClientURL(), s.Addr().String()
	}
	ctx, stop := context.WithCancel(context.Background())
	e.stop = stop
	e.watch.Go(func() { e.watchStore(ctx) })
	return e, nil
}

// lockStore keeps a second server off the folder. The lock goes with the process.
func lockStore(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the store folder of the bus: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the store folder: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errors.New("another server uses it: stop that one, or give this one a folder of its own")
	}
	return nil, errors.Join(fmt.Errorf("lock the store folder %s of the bus: %w", dir, err), f.Close())
}

func startServer(o EmbeddedOptions) (*server.Server, error) {
	opts := &server.Options{ServerName: "sonde", JetStream: true, StoreDir: o.StoreDir, SyncAlways: o.SyncAlways,
		JetStreamMaxStore: noStoreLimit, JetStreamMaxMemory: 64 << 20, MaxPayload: 32 << 20, MaxPending: maxPendingBytes,
		DontListen: o.Listen == "", NoSigs: true, NoLog: true}
	if o.Listen != "" {
		host, port, err := net.SplitHostPort(o.Listen)
		if err != nil {
			return nil, fmt.Errorf("listen on %q: want host:port: %w", o.Listen, err)
		}
		opts.Host = host
		if opts.Port, err = strconv.Atoi(port); err != nil {
			return nil, fmt.Errorf("listen on %q: the port is no number", o.Listen)
		}
		if opts.Port == 0 {
			opts.Port = server.RANDOM_PORT
		}
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return nil, err
	}
	l := &serverLog{log: o.Logger, fatal: make(chan string, 1)}
	s.SetLogger(l, false, false)
	go s.Start()
	for deadline := time.Now().Add(startTimeout); !s.ReadyForConnections(100 * time.Millisecond); {
		select {
		case why := <-l.fatal:
			err = errors.New(why)
		default:
			if time.Now().Before(deadline) {
				continue
			}
			err = fmt.Errorf("not ready after %s", startTimeout)
		}
		s.Shutdown()
		return nil, err
	}
	return s, nil
}

// URL is where other processes reach the server, empty when it does not listen.
func (e *EmbeddedServer) URL() string { return e.url }

// InProcessConn implements nats.InProcessConnProvider.
func (e *EmbeddedServer) InProcessConn() (net.Conn, error) {
	e.mu.Lock()
	s := e.s
	e.mu.Unlock()
	if s == nil {
		return nil, errors.New("connect to the embedded bus: its store is being opened anew")
	}
	return s.InProcessConn()
}

// Close stops the server and gives the folder back. Clients see a lost connection.
func (e *EmbeddedServer) Close() error {
	e.stop()
	e.watch.Wait()
	if e.s != nil {
		e.s.Shutdown()
		e.s.WaitForShutdown()
	}
	return e.lock.Close()
}

// serverLog passes the server's log on, without the notices that it writes about
// each connection and file.
type serverLog struct {
	log   *slog.Logger
	fatal chan string
}

func (l *serverLog) text(format string, v []any) string {
	return strings.TrimSpace(fmt.Sprintf(format, v...))
}

func (l *serverLog) Noticef(format string, v ...any) {
	l.log.Debug("bus server", "message", l.text(format, v))
}
func (l *serverLog) Debugf(string, ...any) {}
func (l *serverLog) Tracef(string, ...any) {}
func (l *serverLog) Warnf(format string, v ...any) {
	text := l.text(format, v)
	if strings.Contains(text, "max_payload") { // large on purpose
		return
	}
	l.log.Warn("bus server", "message", text)
}
func (l *serverLog) Errorf(format string, v ...any) {
	l.log.Error("bus server", "message", l.text(format, v))
}

// Fatalf is the server's last word before it gives up starting.
func (l *serverLog) Fatalf(format string, v ...any) {
	text := l.text(format, v)
	l.log.Error("bus server", "message", text)
	select {
	case l.fatal <- text:
	default:
	}
}
