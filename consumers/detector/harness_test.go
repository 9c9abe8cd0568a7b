package detector

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/schema"
)

const testEpoch = 0xe1

// engine makes the messages that an agent would publish about one engine.
type engine struct {
	t      testing.TB
	header schema.Header
	seq    uint64
	prev   schema.Cursor
	now    int64 // capture clock, ns since 1970
}

func newEngine(t testing.TB, epoch uint64) *engine {
	return &engine{t: t, now: time.Now().UnixNano(), header: schema.Header{Tenant: "acme", Engine: "llm", Epoch: epoch,
		Hook: "resid_post", Layer: 2, DType: "f32", Shape: []int{4}, WeightsDigest: "sha256:abc"}}
}

func (e *engine) delivery(data []byte) bus.Delivery {
	h, err := schema.DecodeHeader(data)
	if err != nil {
		e.t.Fatal(err)
	}
	return bus.Delivery{Subject: schema.Subject(h), Data: data}
}

// request is a message about one request that opened or ended.
func (e *engine) request(row schema.RequestRow) bus.Delivery {
	e.seq++
	row.Seq = e.seq
	data, err := schema.EncodeRequests(e.header, []schema.RequestRow{row})
	if err != nil {
		e.t.Fatal(err)
	}
	return e.delivery(data)
}

func (e *engine) open(number uint64, request string, prompt int32) bus.Delivery {
	return e.request(schema.RequestRow{Event: schema.EventOpen, Number: number, Request: request,
		EngineID: request + "-engine", PromptTokens: prompt})
}

func (e *engine) end(number uint64, request string, prompt, generated int32) bus.Delivery {
	return e.request(schema.RequestRow{Event: schema.EventEnd, Number: number, Request: request, PromptTokens: prompt,
		GeneratedTokens: generated, Reason: "stop"})
}

// token is one row of a step; its score is what the test bundle makes of it.
type token struct {
	number   uint64
	request  string
	position int32
	score    float32
	pass     int32
	phase    uint8
}

// step is the message of one step.
func (e *engine) step(tokens ...token) bus.Delivery {
	e.seq++
	encoder, err := schema.NewVectorEncoder(e.header)
	if err != nil {
		e.t.Fatal(err)
	}
	for i, k := range tokens {
		if err := encoder.Append(schema.VectorRow{Seq: e.seq, Row: uint32(i), Number: k.number, Request: k.request,
			Position: k.position, Pass: k.pass, Phase: k.phase, CaptureNS: e.now, Vec: e.vec(k.score)}); err != nil {
			e.t.Fatal(err)
		}
	}
	data, h, err := encoder.Encode(e.prev)
	if err != nil {
		e.t.Fatal(err)
	}
	e.prev = h.Last()
	return e.delivery(data)
}

func (e *engine) vec(score float32) []byte {
	row := make([]float32, e.header.Shape[0])
	row[0] = score
	return f32Row(row...)
}

// text is a request's tokens from a position on, one step each.
func (e *engine) text(number uint64, request string, position int32, scores ...float32) []bus.Delivery {
	var out []bus.Delivery
	for i, s := range scores {
		out = append(out, e.step(token{number: number, request: request, position: position + int32(i), score: s,
			phase: schema.PhaseDecode}))
	}
	return out
}

// desk runs a runtime by hand, without its loop.
type desk struct {
	t      testing.TB
	r      *Detector
	b      *bustest.Bus
	scores []Score
	rows   []schema.DetectionRow
	mu     sync.Mutex
}

func newBus(t testing.TB) *bustest.Bus {
	b := bustest.New()
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func newDesk(t testing.TB, mode string, d Draft) *desk {
	t.Helper()
	return newDeskOn(t, newBus(t), Use{Bundle: write(t, d), Mode: mode})
}

func newDeskOn(t testing.TB, b *bustest.Bus, uses ...Use) *desk {
	t.Helper()
	k := &desk{t: t, b: b}
	r, err := New(Options{Bus: b, Detectors: uses, Settle: -1, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Registerer: prometheus.NewRegistry(), OnScore: func(s Score) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.scores = append(k.scores, s)
		}, OnDetection: func(row schema.DetectionRow) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.rows = append(k.rows, row)
		}})
	if err != nil {
		t.Fatal(err)
	}
	k.r = r
	r.parts[0] = r.newPart(0, 0) // for tests that feed it without its loop
	return k
}

func (k *desk) feed(deliveries ...bus.Delivery) {
	for _, d := range deliveries {
		k.r.handle(context.Background(), d)
	}
}

// alerts waits for the commands and takes what was to be published.
func (k *desk) alerts() []schema.DetectionRow {
	k.r.running.Wait()
	for {
		select {
		case out := <-k.r.queue:
			k.rows = append(k.rows, out.row)
		default:
			rows := k.rows
			k.rows = nil
			return rows
		}
	}
}

func (k *desk) positions() []int32 {
	var out []int32
	for _, s := range k.scores {
		out = append(out, s.Position)
	}
	return out
}

// serveAborts answers the commands of the test engine.
func serveAborts(t testing.TB, b *bustest.Bus, answer func(c schema.AbortCommand) schema.AbortReply) {
	t.Helper()
	stop, err := b.Serve(schema.AbortSubject("acme", "llm", 0), func(data []byte) []byte {
		c, err := schema.ParseAbortCommand(data)
		if err != nil {
			t.Errorf("command cannot be read: %v", err)
		}
		return answer(c).Encode()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
}

func levels(rows []schema.DetectionRow) []string {
	var out []string
	for _, r := range rows {
		out = append(out, r.Level)
	}
	return out
}
