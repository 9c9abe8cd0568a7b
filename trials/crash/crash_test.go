package crash

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/lakehouse/account"
	"sonde/producer"
	"sonde/ring2"
	"sonde/schema"
	"sonde/trials/oracle"
)

// world is a broker, perhaps an agent, and perhaps an engine.
type world struct {
	*testing.T
	dir    string
	seed   uint64
	r      *rand.Rand
	bus    *bustest.Bus
	starts uint64

	engine *exec.Cmd
	input  io.WriteCloser
	said   *bytes.Buffer

	stopAgent context.CancelFunc
	agentDone chan struct{}
	policy    producer.Policy
	chosen    func(oracle.Key) bool // what the policy chooses, by another way of thinking
}

func (w *world) startEngine() {
	w.starts++
	w.engine, w.said = exec.Command(os.Args[0]), &bytes.Buffer{}
	w.engine.Env = append(os.Environ(), orders+"="+w.dir, fmt.Sprintf("%s_SEED=%d", orders, w.seed+w.starts))
	w.engine.Stderr = w.said
	var err error
	if w.input, err = w.engine.StdinPipe(); err != nil {
		w.Fatal(err)
	}
	if err := w.engine.Start(); err != nil {
		w.Fatal(err)
	}
}

func (w *world) killEngine() {
	_ = w.engine.Process.Kill() // An engine that ended by itself fails the test at the end.
	_ = w.engine.Wait()
	if w.said.Len() > 0 {
		w.Fatalf("the engine ended by itself: %s", w.said)
	}
}

func (w *world) startAgent() {
	quiet := slog.New(slog.DiscardHandler)
	l, err := ring2.Listen(filepath.Join(w.dir, "sock"), ring2.ListenerOptions{Name: "crash", Logger: quiet})
	if err != nil {
		w.Fatal(err)
	}
	a, err := producer.New(producer.Options{Listener: l, Bus: w.bus, Policy: w.policy, LingerMS: 4, BatchBytes: 2048,
		InflightBytes: 16 << 10, DeadLetterDir: filepath.Join(w.dir, "dead"), DeadLetterMaxBytes: 64 << 10, Logger: quiet})
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	w.stopAgent, w.agentDone = cancel, done
	go func() {
		defer close(done)
		defer l.Close()
		if err := a.Run(ctx); err != nil {
			w.Errorf("the agent ended with %v", err)
		}
		total := a.Snapshot().Total
		if err := total.Balance(); err != nil {
			w.Errorf("live ledger: %v", err)
		}
	}()
}

func (w *world) killAgent() {
	w.stopAgent()
	<-w.agentDone
}

// fate lets the broker fail in each way that it can.
func (w *world) fate(r *rand.Rand) func(bus.Message, int) bustest.Fate {
	return func(m bus.Message, attempt int) bustest.Fate {
		switch n := r.IntN(200); {
		case n < 10:
			return bustest.Fail
		case n < 20:
			return bustest.Duplicate
		case n < 24:
			return bustest.LoseAcks
		case n < 26 && attempt == 1 && strings.Contains(m.Subject, ".vectors."):
			return bustest.Refuse
		}
		return bustest.Take
	}
}

// attack does one random harm.
func (w *world) attack() {
	pause := func(ms int) { time.Sleep(time.Duration(w.r.IntN(ms)) * time.Millisecond) }
	pause(60)
	switch w.r.IntN(8) {
	case 0, 1:
		w.killEngine()
		w.startEngine()
	case 2, 3:
		w.killAgent()
		pause(30)
		w.startAgent()
	case 4:
		w.killAgent()
		w.killEngine()
		w.startEngine()
		pause(40)
		w.startAgent()
	case 5:
		w.killEngine()
		w.killAgent()
		w.startAgent()
		w.startEngine()
	case 6: // some engines die without ever meeting an agent
		w.killAgent()
		for range 1 + w.r.IntN(3) {
			w.killEngine()
			w.startEngine()
			pause(40)
		}
		w.startAgent()
	case 7:
		w.bus.Stop()
		pause(100)
		w.bus.Start()
	}
}

func TestNoRowVanishesSilentlyWhenBothEndsDie(t *testing.T) {
	all := producer.Layers{All: true}
	t.Run("every row", func(t *testing.T) {
		w := &world{T: t, policy: producer.Policy{Rules: []producer.Rule{{Hooks: []string{"*"}, Layers: all}}}}
		a := w.survive(60)
		if a.Stored == 0 || a.DroppedRows() == 0 || a.Lost == 0 || a.Aborted == 0 || a.DeadLettered == 0 {
			t.Errorf("seed %d: a class is empty, so nothing was learnt about it", w.seed)
		}
	})
	t.Run("some rows", func(t *testing.T) {
		w := &world{T: t, chosen: chosen, policy: producer.Policy{Rules: []producer.Rule{
			{Hooks: []string{"token_ids"}, Layers: all},
			{Hooks: []string{"resid_*"}, Layers: producer.Layers{Ranges: [][2]int{{0, 0}}},
				Window: producer.Window{Prompt: "first:4", Decode: "every:3"}},
			{Hooks: []string{"resid_*"}, Layers: all, Requests: producer.Requests{Tenants: []string{"acme"}}, Stride: 2},
			{Hooks: []string{"mlp_out"}, Layers: all, As: producer.AsStats},
			{Hooks: []string{"final_logits"}, Layers: all, Window: producer.Window{Decode: "first:5"}}}}}
		if a := w.survive(50); a.Filtered == 0 || a.Stored == 0 {
			t.Errorf("seed %d: a class is empty, so nothing was learnt about it", w.seed)
		}
	})
	t.Run("over the budget", func(t *testing.T) {
		w := &world{T: t, policy: producer.Policy{BudgetBytesPerS: 5_000, Rules: []producer.Rule{
			{Hooks: []string{"token_ids"}, Layers: all, Priority: 1}, {Hooks: []string{"*"}, Layers: all}}}}
		if a := w.survive(30); a.Dropped["budget"] == 0 {
			t.Errorf("seed %d: nothing was over the budget", w.seed)
		}
	})
}

// chosen says which rows the policy of "some rows" is about. The request's id
// gives its prompt and its tenant.
func chosen(k oracle.Key) bool {
	part := strings.Split(k.Request, "-")
	prompt, err := strconv.Atoi(part[2])
	if err != nil {
		panic("an id without its prompt: " + k.Request)
	}
	generated := k.Position - prompt
	switch k.Hook {
	case "token_ids", "mlp_out":
		return true
	case "final_logits":
		return generated < 5
	case "resid_post":
		if k.Layer == 0 && (generated < 0 && k.Position < 4 || generated >= 0 && generated%3 == 0) {
			return true
		}
		return part[3] == "acme" && (generated < 0 && k.Position%2 == 0 || generated >= 0 && generated%2 == 0)
	}
	return false
}

// survive lets a world suffer a number of attacks, and judges what is left.
func (w *world) survive(attacks int) *account.Account {
	seed := rand.Uint64()
	if text := os.Getenv("SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			w.Fatal(err)
		}
	}
	w.Logf("seed %d", seed)
	w.dir, w.seed, w.r, w.bus = w.TempDir(), seed, rand.New(rand.NewPCG(seed, 0)), bustest.New()
	defer w.bus.Close()
	w.bus.OnPublish(w.fate(rand.New(rand.NewPCG(seed, 2))))
	w.startAgent()
	w.startEngine()
	for range attacks {
		w.attack()
	}
	if _, err := w.input.Write([]byte{0}); err != nil {
		w.Fatal(err)
	}
	w.awaitClosed(1)
	w.input.Close() // goodbye
	if err := w.engine.Wait(); err != nil {
		w.Fatalf("the engine did not say goodbye: %v: %s", err, w.said)
	}
	w.awaitClosed(0)
	w.killAgent()
	return w.judge()
}

// awaitClosed waits until every witnessed epoch is closed, but for those of
// engines that still run.
func (w *world) awaitClosed(running int) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		open, told, unnamed := map[uint64]bool{}, map[uint64]bool{}, map[uint64]bool{}
		w.witness(func(k oracle.Key, _ oracle.Hash) { open[k.Epoch] = true })
		for _, d := range w.bus.Messages() {
			b, err := schema.Decode(d.Data)
			if err != nil {
				w.Fatalf("message %d: %v", d.Seq, err)
			}
			for i := 0; b.Header.Kind == schema.KindLedger && i < b.Len(); i++ {
				f := b.Ledger(i)
				if f.Fact == schema.FactClosed {
					delete(open, b.Header.Epoch)
					told[b.Header.Epoch] = told[b.Header.Epoch] || account.ToldByObituary(f.Detail)
				}
				unnamed[b.Header.Epoch] = unnamed[b.Header.Epoch] || f.Reason == account.ReasonUnnamed
			}
		}
		for id := range unnamed {
			if unnamed[id] && !told[id] {
				open[id] = true // its obituary will have the names
			}
		}
		if len(open) <= running {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("seed %d: %d of %d epochs were never closed: %v", w.seed, len(open), w.starts, open)
		}
	}
}

func (w *world) witness(f func(oracle.Key, oracle.Hash)) {
	text, err := os.ReadFile(filepath.Join(w.dir, "witness"))
	if err != nil {
		w.Fatal(err)
	}
	for _, line := range strings.SplitAfter(string(text), "\n") {
		var k oracle.Key
		var sum string
		n, _ := fmt.Sscan(line, &k.Epoch, &k.Request, &k.Position, &k.Pass, &k.Hook, &k.Layer, &sum)
		raw, err := hex.DecodeString(sum)
		if n < 7 || err != nil || len(raw) < 16 {
			continue // a line that a death cut short
		}
		f(k, oracle.Hash(raw))
	}
}

// judge reads the stream as a consumer does, and accounts for every row.
func (w *world) judge() *account.Account {
	c := oracle.NewChecker()
	w.witness(func(k oracle.Key, h oracle.Hash) {
		if w.chosen == nil || w.chosen(k) {
			c.Witness(k, h)
		}
	})
	b := account.NewBuilder()
	s := newStore(w.policy.BudgetBytesPerS > 0)
	for _, d := range w.bus.Messages() {
		batch, err := schema.Decode(d.Data)
		if err != nil {
			w.Fatalf("message %d: %v", d.Seq, err)
		}
		if err := s.take(batch); err != nil {
			w.Errorf("seed %d, message %d: %v", w.seed, d.Seq, err)
		}
	}
	for _, layouts := range []bool{true, false} {
		for i := range s.facts {
			f := &s.facts[i]
			if (f.Fact == schema.FactLayout) != layouts {
				continue
			}
			if err := c.Fact(f); err != nil {
				w.Errorf("seed %d: %v", w.seed, err)
			}
			if err := b.Fact(*f); err != nil {
				w.Errorf("seed %d: %v", w.seed, err)
			}
		}
	}
	for _, v := range s.rows {
		c.Stored(v.key, v.raw)
		b.Stored(v.id)
	}
	r, a := c.Finish(), b.Finish()
	var page strings.Builder
	r.Print(&page)
	w.Logf("%d engines\n%v%s", w.starts, a, &page)
	if err := r.Err(); err != nil {
		w.Errorf("seed %d: %v", w.seed, err)
	}
	if err := a.Balance(); err != nil {
		w.Errorf("seed %d: %v", w.seed, err)
	}
	if !a.AtRest() {
		w.Errorf("seed %d: not at rest", w.seed)
	}
	return a
}
