package server

import (
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sonde/catalogue"
	"sonde/engine/model"
	"sonde/engine/scheduler"
)

// Options of the server.
type Options struct {
	Scheduler *scheduler.Scheduler
	Info      *model.Info
	Tokenizer model.Tokenizer
	Seed      uint64              // of requests without one, with their id
	Gatherer  prometheus.Gatherer // served at /metrics
	Logger    *slog.Logger
}

// maxInFlight bounds the calls that are served at once; beyond it the answer is
// 429.
const maxInFlight = 2048

// writeTimeout is how long a client may not take what is written to it before
// it counts as gone.
const writeTimeout = 30 * time.Second

type server struct {
	o        Options
	started  time.Time
	inFlight chan struct{}
}

// New makes the handler of all endpoints.
func New(o Options) http.Handler {
	s := &server{o: o, started: time.Now(), inFlight: make(chan struct{}, maxInFlight)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/completions", s.bounded(s.complete))
	mux.HandleFunc("POST /v1/abort", s.bounded(s.abort))
	mux.HandleFunc("GET /v1/models", s.models)
	mux.HandleFunc("GET "+catalogue.PathHealth, s.health)
	mux.Handle("GET "+catalogue.PathMetrics, promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{}))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		f := invalid("", "there is no %s %s", r.Method, r.URL.Path)
		f.status = http.StatusNotFound
		f.write(w)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A deadline outlives its request on a kept connection, so each sets its own.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(bodyTimeout + writeTimeout))
		mux.ServeHTTP(w, r)
	})
}

func (s *server) bounded(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case s.inFlight <- struct{}{}:
			defer func() { <-s.inFlight }()
			h(w, r)
		default:
			(&failure{status: http.StatusTooManyRequests, kind: kindLimit, message: "too many calls at once"}).write(w)
		}
	}
}

func (s *server) complete(w http.ResponseWriter, r *http.Request) {
	var c completion
	if f := readJSON(w, r, &c); f != nil {
		f.write(w)
		return
	}
	request, f := s.request(&c)
	if f != nil {
		f.write(w)
		return
	}
	ticket, err := s.o.Scheduler.Submit(request)
	if err != nil {
		refusal(err).write(w)
		return
	}
	defer s.o.Scheduler.Withdraw(ticket) // It has ended already, unless the client is gone.
	a := &answer{info: s.o.Info, ticket: ticket, request: &request, usage: c.StreamOptions.IncludeUsage}
	if c.Stream {
		err = a.stream(w, r)
	} else {
		err = a.whole(w, r)
	}
	if err != nil {
		s.o.Logger.Info("a client left before its answer was complete", "request", request.ID, "error", err)
	}
}

// abort ends a request, or one sample of it.
func (s *server) abort(w http.ResponseWriter, r *http.Request) {
	var c struct {
		RequestID string `json:"request_id"`
		Sample    *int   `json:"sample"`
	}
	if f := readJSON(w, r, &c); f != nil {
		f.write(w)
		return
	}
	switch {
	case c.RequestID == "":
		invalid("request_id", "request_id is missing").write(w)
		return
	case c.Sample != nil && *c.Sample < 0:
		invalid("sample", "sample is %d; want 0 or more, or none for all", *c.Sample).write(w)
		return
	}
	outcome, length := s.o.Scheduler.Abort(c.RequestID, either(c.Sample, -1))
	writeJSON(w, map[string]any{"outcome": outcome.String(), "final_length": length})
}

func (s *server) models(w http.ResponseWriter, _ *http.Request) {
	i := s.o.Info
	writeJSON(w, map[string]any{"object": "list", "data": []any{map[string]any{"id": i.Name, "object": "model",
		"created": s.started.Unix(), "owned_by": "sonde", "max_model_len": s.o.Scheduler.Context(),
		"sonde": map[string]any{"revision": i.Revision, "weights_digest": i.WeightsDigest, "layers": i.Layers,
			"d_model": i.DModel, "vocab": i.Vocab}}}})
}

func (s *server) health(w http.ResponseWriter, _ *http.Request) {
	if s.o.Scheduler.Stopping() {
		refusal(scheduler.ErrStopping).write(w)
		return
	}
	_, _ = io.WriteString(w, "ok\n") // A client that is gone needs no answer.
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(encode(v)) // A client that is gone needs no answer.
}
