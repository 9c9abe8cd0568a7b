package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sonde/catalogue"
)

// health knows what this process waits for. Readiness is about inputs and
// outputs; liveness is only about this process, so that an outage of the broker
// does not make an orchestrator restart everything that waits for it.
type health struct {
	mu     sync.Mutex
	checks map[string]func() string // part -> what it waits for now, "" when it is ready
}

func newHealth() *health { return &health{checks: map[string]func() string{}} }

// set says what a part waits for: a question that is asked at each probe. The
// part is one of the catalogue's.
func (h *health) set(part string, waiting func() string) {
	catalogue.CheckOf(part)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks[part] = waiting
}

// missing lists what is waited for, and what to do, one line each, sorted; empty
// is ready.
func (h *health) missing() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for part, waiting := range h.checks {
		if what := waiting(); what != "" {
			out = append(out, fmt.Sprintf("%s: %s; to do: %s", part, what, catalogue.CheckOf(part).Do))
		}
	}
	sort.Strings(out)
	return out
}

// httpServer serves /metrics, /livez and /readyz.
type httpServer struct {
	server   http.Server
	listener net.Listener
}

func serveHTTP(address string, registry *prometheus.Registry, h *health, log *slog.Logger) (*httpServer, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve HTTP on http.listen = %s: %w; choose another address", address, err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+catalogue.PathMetrics, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET "+catalogue.PathLive, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "live") })
	mux.HandleFunc("GET "+catalogue.PathReady, func(w http.ResponseWriter, _ *http.Request) {
		if missing := h.missing(); len(missing) > 0 {
			http.Error(w, strings.Join(missing, "\n"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	s := &httpServer{listener: listener, server: http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}}
	go func() {
		if err := s.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("HTTP stopped", "error", err)
		}
	}()
	return s, nil
}

func (s *httpServer) close(ctx context.Context) { _ = s.server.Shutdown(ctx) } // Nothing is lost with a scrape.
