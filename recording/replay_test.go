package recording

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sonde/bus/bustest"
	"sonde/consumers/materializer"
	"sonde/engine"
	"sonde/engine/arithmetic"
	"sonde/engine/model"
	"sonde/lakehouse"
	"sonde/producer"
	"sonde/ring2"
	"sonde/schema"
)

// live runs an engine of the arithmetic model, sends it some requests, stops it,
// and hands its session to serve meanwhile.
func live(t testing.TB, requests []string, hooks []string, serve func(*ring2.Session)) {
	t.Helper()
	dir := t.TempDir()
	o := engine.Defaults()
	o.Load = func() (model.Model, model.Tokenizer, error) {
		return arithmetic.New(arithmetic.Options{Layers: 1}), arithmetic.Tokenizer{}, nil
	}
	o.Listen, o.Logger, o.RingSocket, o.Instance = "127.0.0.1:0", quiet, filepath.Join(dir, "s"), "golden"
	o.KVBlocks, o.BlockTokens, o.PrefillChunk, o.MaxBatch, o.Hooks = 12, 4, 8, 4, hooks
	o.WaitAgent, o.PrefixCache, o.Version = time.Minute, true, "test"
	ready := make(chan string, 1)
	o.Ready = func(address string) { ready <- "http://" + address }
	listener, err := ring2.Listen(o.RingSocket, ring2.ListenerOptions{Name: "test", Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx, o) }()
	session, err := listener.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { serve(session) })
	address := <-ready
	var clients sync.WaitGroup
	for _, body := range requests {
		clients.Go(func() {
			resp, err := http.Post(address+"/v1/completions", "application/json", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s %v", body, text, err)
			}
		})
	}
	clients.Wait()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	serving.Wait()
}

// tee is a session that is recorded while an agent reads it. To the agent it is as
// it was when the recording began, until it is read: the engine goes on meanwhile.
type tee struct {
	*ring2.Session
	t     testing.TB
	w     *Writer
	start Start
	read  atomic.Bool
}

func (s *tee) ClaimSeq() uint64 {
	if !s.read.Load() {
		return s.start.Claim
	}
	return s.Session.ClaimSeq()
}

func (s *tee) Producer() ring2.ProducerCounters {
	if !s.read.Load() {
		return s.start.Counters.producer()
	}
	return s.Session.Producer()
}

func (s *tee) Next(ctx context.Context, dst []ring2.Record) ([]ring2.Record, error) {
	s.read.Store(true)
	before := len(dst)
	dst, err := s.Session.Next(ctx, dst)
	if err := s.w.Append(dst[before:]); err != nil {
		s.t.Error(err)
	}
	if errors.Is(err, io.EOF) {
		next := s.ClaimSeq()
		if err := s.w.Finish(End{Reason: ReasonEnded, Until: next, Claim: next,
			Counters: countersOf(s.Producer())}); err != nil {
			s.t.Error(err)
		}
	}
	return dst, err
}

var everywhere = producer.Layers{All: true}

// goldenPolicy leaves some rows as tensors, some as figures, and some out.
var goldenPolicy = producer.Policy{Mode: producer.Complete, Rules: []producer.Rule{
	{Name: "figures", Hooks: []string{"ln*", "mlp_*"}, Layers: everywhere, As: producer.AsStats, Stride: 2},
	{Name: "few", Hooks: []string{"z"}, Layers: everywhere, Requests: producer.Requests{Tenants: []string{"nobody"}}},
	{Name: "vectors", Hooks: []string{"resid_*", "q", "k", "v", "pattern", "token_ids", "final_*"}, Layers: everywhere},
}}

// attach has an agent read a session to its end, onto a bus. Batches close by size
// and at the end alone, so that they do not depend on time.
func attach(t testing.TB, b *bustest.Bus, s producer.Session) producer.Snapshot {
	t.Helper()
	agent, err := producer.New(producer.Options{Bus: b, Policy: goldenPolicy, LingerMS: 3600_000, BatchBytes: 8 << 10,
		Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	agent.Attach(t.Context(), s)
	return agent.Snapshot()
}

// digest hashes lines by kind. It does not depend on their order.
type digest map[string][]string

func (d digest) add(kind, format string, args ...any) {
	d[kind] = append(d[kind], fmt.Sprintf(format, args...))
}

// String is one line for each kind.
func (d digest) String() string {
	out := ""
	for _, kind := range slices.Sorted(maps.Keys(d)) {
		slices.Sort(d[kind])
		h := sha256.New()
		for _, line := range d[kind] {
			fmt.Fprintln(h, line)
		}
		out += fmt.Sprintf("%-9s %4d %s\n", kind, len(d[kind]), hex.EncodeToString(h.Sum(nil)))
	}
	return out
}

// messagesOf hashes what the agent published: subjects, identities and bytes.
func messagesOf(b *bustest.Bus) string {
	d := digest{}
	for _, m := range b.Messages() {
		d.add("message", "%s %x", m.Subject, sha256.Sum256(m.Data))
	}
	return d.String()
}

// rowsOf hashes each row with everything that gives it its meaning, however rows
// were put into messages.
func rowsOf(t testing.TB, b *bustest.Bus) string {
	t.Helper()
	d := digest{}
	for _, m := range b.Messages() {
		batch, err := schema.Decode(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		h := batch.Header
		h.Prev, h.Spans = schema.Cursor{}, nil
		for i := range batch.Len() {
			var row any
			switch h.Kind {
			case schema.KindVectors:
				row = batch.Vector(i)
			case schema.KindStats:
				row = batch.Stats(i)
			case schema.KindRequests:
				row = batch.RequestAt(i)
			default:
				row = batch.Ledger(i)
			}
			d.add(string(h.Kind), "%+v %+v", h, row)
		}
	}
	return d.String()
}

// lakeOf materializes a stream and hashes every table of the lake.
func lakeOf(t testing.TB, b *bustest.Bus) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "lake")
	m, err := materializer.New(materializer.Options{Bus: b, Lake: dir, CommitInterval: 10 * time.Millisecond,
		RetainBytes: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	info, err := b.Info(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	for m.Committed(0).Next <= info.Last && t.Context().Err() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	lake, err := lakehouse.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := digest{}
	all, ctx := lakehouse.Query{}, t.Context()
	err = errors.Join(
		lake.Requests(ctx, all, func(r *lakehouse.Request) error { d.add("requests", "%+v", *r); return nil }),
		lake.Tokens(ctx, all, func(r *lakehouse.Token) error { d.add("tokens", "%+v", *r); return nil }),
		lake.Vectors(ctx, all, func(r *lakehouse.Vector) error { d.add("vectors", "%+v", *r); return nil }),
		lake.VectorStats(ctx, all, func(r *lakehouse.VectorStats) error { d.add("stats", "%+v", *r); return nil }),
		lake.Ledger(ctx, all, func(r *lakehouse.Fact) error { d.add("ledger", "%+v", *r); return nil }))
	if err != nil {
		t.Fatal(err)
	}
	account, err := lake.Account(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := account.Balance(); err != nil {
		t.Errorf("the ledger of the lake: %v", err)
	}
	return d.String()
}

var goldenRequests = []string{
	`{"prompt":"one","max_tokens":7,"n":2,"seed":1,"sonde":{"request_id":"r-1","labels":{"kind":"golden"}}}`,
	`{"prompt":"two three","max_tokens":5,"seed":2,"sonde":{"request_id":"r-2","tenant":"acme"}}`,
	`{"prompt":"two three four","max_tokens":9,"seed":3,"sonde":{"request_id":"r-3","tenant":"acme"}}`,
}

// A replay that differs from the run it was recorded of proves nothing about it.
func TestReplayEqualsTheLiveRun(t *testing.T) {
	dir := t.TempDir()
	liveBus := bustest.New()
	defer liveBus.Close()
	var counted producer.Snapshot
	live(t, goldenRequests, nil, func(s *ring2.Session) {
		r, err := NewRecorder(dir, Options{}, quiet)
		if err != nil {
			t.Error(err)
			return
		}
		defer r.Close()
		start := startOf(s, "test")
		w, err := newWriter(dir, start, s.Snapshot(), r.o, &r.budget)
		if err != nil {
			t.Error(err)
			return
		}
		counted = attach(t, liveBus, &tee{Session: s, t: t, w: w, start: start})
	})
	replayBus := bustest.New()
	defer replayBus.Close()
	reader, err := mustOpen(t, dir).Sessions[0].Read(nil)
	if err != nil {
		t.Fatal(err)
	}
	again := attach(t, replayBus, reader)
	if got, want := rowsOf(t, replayBus), rowsOf(t, liveBus); got != want || !strings.Contains(want, "vectors") {
		t.Errorf("rows of the replay:\n%srows of the run:\n%s", got, want)
	}
	if got, want := messagesOf(replayBus), messagesOf(liveBus); got != want {
		t.Errorf("messages of the replay:\n%smessages of the run:\n%s", got, want)
	}
	if got, want := lakeOf(t, replayBus), lakeOf(t, liveBus); got != want {
		t.Errorf("lake of the replay:\n%slake of the run:\n%s", got, want)
	}
	if fmt.Sprint(again) != fmt.Sprint(counted) || counted.Total.Acknowledged == 0 || counted.Total.Balance() != nil {
		t.Errorf("the agent counted %+v, and %+v in the replay", counted.Total, again.Total)
	}
}
