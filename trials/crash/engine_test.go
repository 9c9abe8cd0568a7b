package crash

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"sonde/ring2"
	"sonde/trials/oracle"
)

// The test starts its own binary as the engine, which finds its orders here.
const orders = "SONDE_CRASH_ENGINE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(orders); dir != "" {
		if err := runEngine(dir); err != nil {
			fmt.Fprintln(os.Stderr, "engine:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// layouts of the engine: one of small rows, and one with a ragged and a sampled
// entry.
var layouts = [][]ring2.LayoutEntry{
	{{Hook: "token_ids", Layer: -1, DType: ring2.I32},
		{Hook: "resid_post", Layer: 0, DType: ring2.BF16, Shape: []uint32{8}},
		{Hook: "resid_post", Layer: 1, DType: ring2.BF16, Shape: []uint32{8}}},
	{{Hook: "pattern", Layer: 0, DType: ring2.F16, Shape: []uint32{2}, Ragged: true},
		{Hook: "mlp_out", Layer: 1, DType: ring2.F32, Shape: []uint32{3}},
		{Hook: "final_logits", Layer: -1, DType: ring2.F16, Shape: []uint32{32}, Select: ring2.SelectSampled}},
}

// engine makes up steps of many requests and says in a witness file what it
// computed, before it commits it.
type engine struct {
	r        *rand.Rand
	w        *ring2.Writer
	witness  *os.File
	ids      []uint32
	alive    []*request
	number   uint64
	detached sync.WaitGroup
}

type request struct {
	number                uint64
	id                    string
	position, prompt, end uint32
	pass                  uint32
	top                   uint32 // positions below were computed before
}

// runEngine runs until it is killed, or until a byte of its input says that it is
// to be idle; when its input ends, it says goodbye.
func runEngine(dir string) error {
	seed, err := strconv.ParseUint(os.Getenv(orders+"_SEED"), 10, 64)
	if err != nil {
		return err
	}
	w, err := ring2.NewWriter(ring2.WriterOptions{Socket: filepath.Join(dir, "sock"), EngineInstance: "crash",
		DescCount: 128, DataBytes: 256 << 10, StateDir: filepath.Join(dir, "state"), CopyTimeout: 200 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, "witness"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	// The engine before this one may have died in the middle of a line.
	if _, err := f.WriteString("\n"); err != nil {
		return err
	}
	e := &engine{r: rand.New(rand.NewPCG(seed, 1)), w: w, witness: f}
	if err := e.begin(); err != nil {
		return err
	}
	idle, goodbye := make(chan struct{}), make(chan struct{})
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		close(idle)
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(goodbye)
	}()
	for running := true; running; {
		if err := e.step(); err != nil {
			return err
		}
		select {
		case <-idle:
			running = false
		case <-time.After(time.Duration(e.r.IntN(1500)) * time.Microsecond):
		}
	}
	<-goodbye
	e.detached.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return w.Close(ctx)
}

func (e *engine) begin() error {
	if err := e.w.SetModel(ring2.Model{Name: "crash"}); err != nil {
		return err
	}
	for _, entries := range layouts {
		id, err := e.w.DefineLayout(entries)
		if err != nil {
			return err
		}
		e.ids = append(e.ids, id)
	}
	return nil
}

// open announces a request now and then.
func (e *engine) open() error {
	if len(e.alive) >= 8 || len(e.alive) > 0 && e.r.IntN(4) > 0 {
		return nil
	}
	e.number++
	prompt, tenant := 1+e.r.Uint32N(20), []string{"", "acme", "other"}[e.r.IntN(3)]
	q := &request{number: e.number, id: fmt.Sprintf("req-%d-%d-%s-%x", e.number, prompt, tenant, e.w.Epoch()),
		prompt: prompt, end: prompt + 1 + e.r.Uint32N(30)}
	e.alive = append(e.alive, q)
	return e.w.OpenRequest(ring2.RequestOpen{Number: q.number, ExternalID: q.id, PromptTokens: prompt, Tenant: tenant})
}

// ranges advances some of the requests.
func (e *engine) ranges(layouts int) (ranges []ring2.StepRange, of []*request) {
	for _, q := range e.alive {
		if e.r.IntN(3) == 0 {
			continue
		}
		if q.position > 0 && e.r.IntN(40) == 0 { // preempted
			q.position, q.pass = 0, q.pass+1
		}
		rg := ring2.StepRange{Number: q.number, Position: q.position, Count: 1, Pass: q.pass, Phase: ring2.PhaseDecode,
			LayoutMask: 1 + e.r.Uint64N(1<<layouts-1)}
		if q.position < q.prompt {
			rg.Count, rg.Phase = min(1+e.r.Uint32N(8), q.prompt-q.position), ring2.PhasePrefill
		}
		if q.position < q.top {
			rg.Phase = ring2.PhaseRecompute
		}
		q.position += rg.Count
		q.top = max(q.top, q.position)
		rg.Sampled = q.position >= q.prompt
		ranges, of = append(ranges, rg), append(of, q)
	}
	return ranges, of
}

// step computes one step: witnesses it, fills what has room, and publishes it,
// late or as failed now and then.
func (e *engine) step() error {
	if err := e.open(); err != nil {
		return err
	}
	ids := e.ids[:1+e.r.IntN(len(e.ids))]
	ranges, of := e.ranges(len(ids))
	if len(ranges) == 0 {
		return nil
	}
	rows, ragged := e.compute(ids, ranges, of)
	s, err := e.w.BeginStep(ranges, ids, ragged...)
	if err != nil {
		return err
	}
	if err := e.tell(rows); err != nil {
		return err
	}
	for i := range ids {
		if !s.Captured(i) {
			continue
		}
		switch e.r.IntN(20) {
		case 0:
			s.Abort(i)
		case 1, 2:
			e.late(s.Detach(i), rows[i])
		default:
			for entry := range layouts[i] {
				copy(s.Span(i, entry), rows[i].memory[entry])
			}
		}
	}
	s.Commit()
	return e.endSome()
}

// late publishes a capture after its step, or says that it failed, or forgets it
// until the writer loses patience.
func (e *engine) late(p *ring2.Pending, rows layoutRows) {
	wait, fails := time.Duration(e.r.IntN(5))*time.Millisecond, e.r.IntN(4) == 0
	if e.r.IntN(30) == 0 {
		wait = 300 * time.Millisecond
	}
	e.detached.Go(func() {
		time.Sleep(wait)
		if fails {
			p.Abort()
			return
		}
		for entry := range rows.memory {
			copy(p.Span(entry), rows.memory[entry])
		}
		p.Commit()
	})
}

func (e *engine) endSome() error {
	kept := e.alive[:0]
	for _, q := range e.alive {
		if q.position < q.end {
			kept = append(kept, q)
			continue
		}
		if err := e.w.EndRequest(ring2.RequestEnd{Number: q.number, PromptTokens: q.prompt}); err != nil {
			return err
		}
	}
	e.alive = kept
	return nil
}

// layoutRows is what one layout of a step holds.
type layoutRows struct {
	memory [][]byte // by entry, as the span wants it
	keys   []oracle.Key
	hashes []oracle.Hash
}

// compute makes every row of a step: a hash of where it stands.
func (e *engine) compute(ids []uint32, ranges []ring2.StepRange, of []*request) ([]layoutRows, []ring2.RaggedBytes) {
	out := make([]layoutRows, len(ids))
	var ragged []ring2.RaggedBytes
	for i := range ids {
		l := &out[i]
		for entry := range layouts[i] {
			en := &layouts[i][entry]
			var data, offsets []byte
			offsets = binary.LittleEndian.AppendUint64(offsets, 0)
			for j := range ranges {
				rg := &ranges[j]
				if rg.LayoutMask>>i&1 == 0 {
					continue
				}
				first := rg.Position
				if en.Select == ring2.SelectSampled {
					first = rg.Position + rg.Count
					if rg.Sampled {
						first--
					}
				}
				for position := first; position < rg.Position+rg.Count; position++ {
					k := oracle.Key{Epoch: e.w.Epoch(), Request: of[j].id, Position: int(position), Pass: int(rg.Pass),
						Hook: en.Hook, Layer: en.Layer}
					row := rowOf(k, en)
					l.keys, l.hashes = append(l.keys, k), append(l.hashes, oracle.HashOf(row))
					data = append(data, row...)
					offsets = binary.LittleEndian.AppendUint64(offsets, uint64(len(data)))
				}
			}
			if en.Ragged {
				ragged = append(ragged, ring2.RaggedBytes{Layout: i, Entry: entry, Bytes: len(data)})
				data = append(offsets, data...)
			}
			l.memory = append(l.memory, data)
		}
	}
	return out, ragged
}

func rowOf(k oracle.Key, en *ring2.LayoutEntry) []byte {
	n := en.RowBytes()
	if en.Ragged {
		n *= 1 + k.Position%7
	}
	sum := sha256.Sum256([]byte(k.String()))
	return bytes.Repeat(sum[:], n/len(sum)+1)[:n]
}

// tell witnesses the rows of a step in one write, which outlives a SIGKILL.
func (e *engine) tell(rows []layoutRows) error {
	var b bytes.Buffer
	for _, l := range rows {
		for i, k := range l.keys {
			fmt.Fprintf(&b, "%d %s %d %d %s %d %x\n", k.Epoch, k.Request, k.Position, k.Pass, k.Hook, k.Layer, l.hashes[i])
		}
	}
	_, err := e.witness.Write(b.Bytes())
	return err
}
