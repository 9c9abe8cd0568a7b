package oracle

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/consumers/materializer"
	"sonde/engine/arithmetic"
	"sonde/engine/model"
	"sonde/engine/witness"
	"sonde/lakehouse"
	"sonde/schema"
)

// lakeWorld is a lake on disk with 2 requests of 40 tokens, made by the real
// materializer, and the engine's witness of it.
type lakeWorld struct {
	*testing.T
	lake, witness string
	hooks         []model.Hook
	bus           *bustest.Bus
	harm          func(hook string, row uint32, vec []byte) []byte // of stored rows
}

const lakeTokens = 40

func newLakeWorld(t *testing.T, harm func(string, uint32, []byte) []byte) *lakeWorld {
	dir := t.TempDir()
	w := &lakeWorld{T: t, lake: filepath.Join(dir, "lake"), witness: filepath.Join(dir, "witness"), bus: bustest.New(),
		harm: harm}
	t.Cleanup(func() { w.bus.Close() })
	for _, h := range []hook{{"token_ids", -1}, {"resid_post", 0}, {"pattern", 1}} {
		of, ok := arithmetic.HookOf(h.name, h.layer)
		if !ok {
			t.Fatalf("no hook %v", h)
		}
		w.hooks = append(w.hooks, of)
	}
	return w
}

func (w *lakeWorld) row(h *model.Hook, request string, position int) []byte {
	if h.Name == "token_ids" {
		return []byte{byte(position), request[0], 0, 0}
	}
	return arithmetic.Row(nil, *h, request, 0, position, 0)
}

// tell lets the engine witness one step of both requests.
func (w *lakeWorld) tell() {
	e, err := witness.Create(w.witness, testEpoch, w.hooks)
	if err != nil {
		w.Fatal(err)
	}
	tokens := make([]int32, lakeTokens)
	ranges := []model.Range{{Request: "a", Tokens: tokens}, {Request: "b", Tokens: tokens}}
	e.Step(ranges)
	for i := range w.hooks {
		for _, rg := range ranges {
			for position := range rg.Tokens {
				e.Row(w.row(&w.hooks[i], rg.Request, position))
			}
		}
	}
	if err := e.End(); err != nil {
		w.Fatal(err)
	}
	if err := e.Close(); err != nil {
		w.Fatal(err)
	}
}

func (w *lakeWorld) publish(h schema.Header, data []byte, err error) {
	if err != nil {
		w.Fatal(err)
	}
	done := make(chan error, 1)
	err = w.bus.Publish(context.Background(), bus.Message{Subject: schema.Subject(h), Data: data},
		func(_ uint64, err error) { done <- err })
	if err == nil {
		err = <-done
	}
	if err != nil {
		w.Fatal(err)
	}
}

// send publishes what an agent would: the rows, and the facts about them.
func (w *lakeWorld) send() {
	for i := range w.hooks {
		h := &w.hooks[i]
		header := schema.Header{Kind: schema.KindVectors, Engine: "test", Epoch: testEpoch, Hook: h.Name, Layer: h.Layer,
			DType: h.DType.String(), Ragged: h.Ragged}
		for _, d := range h.Shape {
			header.Shape = append(header.Shape, int(d))
		}
		e, err := schema.NewVectorEncoder(header)
		if err != nil {
			w.Fatal(err)
		}
		for row := range uint32(2 * lakeTokens) {
			request, position := string("ab"[row/lakeTokens]), int(row%lakeTokens)
			vec := w.row(h, request, position)
			if w.harm != nil {
				vec = w.harm(h.Name, row, vec)
			}
			if vec == nil {
				continue
			}
			v := schema.VectorRow{Seq: 3, Row: row, Request: request, Position: int32(position), Vec: vec}
			if err := e.Append(v); err != nil {
				w.Fatal(err)
			}
		}
		data, _, err := e.Encode(schema.Cursor{})
		w.publish(header, data, err)
	}
	facts := []schema.LedgerRow{{Seq: 1, Fact: schema.FactLayout, Layer: -1,
		Detail: `[{"hook":"token_ids","layer":-1},{"hook":"resid_post","layer":0},{"hook":"pattern","layer":1}]`}}
	for i, request := range []string{"a", "b"} {
		facts = append(facts, schema.LedgerRow{Seq: 2, Row: uint32(2 * i), Fact: schema.FactExpected, Request: request,
			Count: lakeTokens, Stride: 1, Entries: "0-2", Rows: 3 * lakeTokens, Outcome: schema.OutcomeCaptured, CaptureSeq: 3,
			FirstRow: uint32(i * lakeTokens), Layer: -1})
	}
	facts = append(facts, schema.LedgerRow{Seq: 4, Fact: schema.FactClosed, Reason: "bye", Layer: -1})
	header := schema.Header{Kind: schema.KindLedger, Engine: "test", Epoch: testEpoch, Hook: schema.Hookless, Layer: -1}
	data, err := schema.EncodeLedger(header, facts)
	w.publish(header, data, err)
}

func (w *lakeWorld) materialize() (stop func()) {
	m, err := materializer.New(materializer.Options{Bus: w.bus, Lake: w.lake, CommitInterval: 20 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			w.Error(err)
		}
	}
}

func TestALakeAtRestIsComparedWithItsWitness(t *testing.T) {
	w := newLakeWorld(t, nil)
	w.tell()
	if _, err := AwaitRest(context.Background(), w.lake, w.witness, time.Millisecond); err == nil {
		t.Error("a lake that does not exist is at rest")
	}
	stop := w.materialize()
	w.send()
	a, err := AwaitRest(context.Background(), w.lake, w.witness, 20*time.Second)
	stop()
	if err != nil {
		t.Fatal(err)
	}
	w.awaitObituaries()
	if err := a.Balance(); err != nil || a.Expected != 6*lakeTokens || a.Stored != a.Expected {
		t.Errorf("balance %v of\n%v", err, a)
	}
	var page strings.Builder
	r, err := CompareWithWitness(context.Background(), &page, w.lake, w.witness)
	if err != nil || r.Matched != 6*lakeTokens || r.Recomputed != 4*lakeTokens {
		t.Errorf("%v, %+v\n%s", err, r, &page)
	}
	w.readBack()
}

// awaitObituaries adds newer engines that computed nothing: nobody waits for them.
func (w *lakeWorld) awaitObituaries() {
	for i := range 2 {
		e, err := witness.Create(w.witness, testEpoch+1+uint64(i), nil)
		if err == nil {
			err = e.Close()
		}
		if err != nil {
			w.Fatal(err)
		}
		later := time.Now().Add(time.Duration(i+1) * time.Minute)
		name := filepath.Join(w.witness, fmt.Sprintf("%016x.witness", testEpoch+1+i))
		if err := os.Chtimes(name, later, later); err != nil {
			w.Fatal(err)
		}
		if newest, err := newestEpoch(w.witness); err != nil || newest != fmt.Sprintf("%016x", testEpoch+1+i) {
			w.Errorf("the newest epoch is %q, %v, want %x", newest, err, testEpoch+1+i)
		}
	}
	if err := AwaitObituaries(context.Background(), w.lake, 20*time.Second, w.witness); err != nil {
		w.Error(err)
	}
}

// readBack lets the checker expect something else than the lake holds.
func (w *lakeWorld) readBack() {
	lake, err := lakehouse.Open(w.lake)
	if err != nil {
		w.Fatal(err)
	}
	for what, spoil := range map[string]func(*stripe){"": nil, "other bytes": func(s *stripe) { s.hashes[5][0] ^= 1 },
		"not stored":    func(s *stripe) { s.state[9] = witnessed },
		"not in tensor": func(s *stripe) { s.hashes, s.state = append(s.hashes, Hash{}), append(s.state, witnessed) }} {
		c := NewChecker()
		err := witness.Read(w.witness, func(r witness.Row) error {
			c.Witness(Key{r.Epoch, r.Request, r.Sample, r.Position, r.Pass, r.Hook, r.Layer}, r.Hash)
			return nil
		})
		if err == nil {
			err = feed(context.Background(), c, lake)
		}
		if err != nil {
			w.Fatal(err)
		}
		for _, s := range c.stripes {
			if spoil != nil {
				spoil(s)
			}
		}
		rows, err := c.CheckTensors(context.Background(), lake, 9)
		if (err == nil) != (spoil == nil) || err == nil && rows != 2*lakeTokens {
			w.Errorf("%s: %d rows, %v", what, rows, err)
		}
	}
}

// The swap is in the messages: everything behind them stores it faithfully.
func TestASwapOfTwoStoredRowsNamesExactlyThese(t *testing.T) {
	const a, b = 7, lakeTokens + 21
	var w *lakeWorld
	w = newLakeWorld(t, func(hook string, row uint32, vec []byte) []byte {
		if hook != "resid_post" || row != a && row != b {
			return vec
		}
		if row == a {
			return w.row(&w.hooks[1], "b", b-lakeTokens)
		}
		return w.row(&w.hooks[1], "a", a)
	})
	w.tell()
	stop := w.materialize()
	w.send()
	account, err := AwaitRest(context.Background(), w.lake, w.witness, 20*time.Second)
	stop()
	if err != nil || account.Balance() != nil {
		t.Fatalf("%v, %v", err, account)
	}
	var page strings.Builder
	r, err := CompareWithWitness(context.Background(), &page, w.lake, w.witness)
	if err == nil {
		t.Fatal("no error")
	}
	want(t, r, map[Defect]int{Wrong: 2})
	first := Key{testEpoch, "a", 0, a, 0, "resid_post", 0}.String()
	second := Key{testEpoch, "b", 0, b - lakeTokens, 0, "resid_post", 0}.String()
	for _, text := range []string{first + " has other bytes than its place says: it has those of " + second,
		second + " has other bytes than its place says: it has those of " + first} {
		if !strings.Contains(page.String(), text) {
			t.Errorf("the page lacks %q:\n%s", text, &page)
		}
	}
}

func TestAMissingRowOfTheLakeIsFoundByTheAccount(t *testing.T) {
	w := newLakeWorld(t, func(hook string, row uint32, vec []byte) []byte {
		if hook == "token_ids" && row == 11 {
			return nil
		}
		return vec
	})
	w.tell()
	stop := w.materialize()
	w.send()
	a, err := AwaitRest(context.Background(), w.lake, w.witness, 20*time.Second)
	stop()
	if err != nil {
		t.Fatal(err)
	}
	if a.Unexplained != 1 || !strings.Contains(a.Balance().Error(), "hook token_ids layer -1 seq 3 row 11 (request a ") {
		t.Errorf("%v", a)
	}
}
