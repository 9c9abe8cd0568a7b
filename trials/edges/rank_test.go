package edges

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"sonde/lakehouse"
	"sonde/lakehouse/account"
	"sonde/ring2"
)

// rank is a rank of an engine in this process, whose rows follow from their place.
type rank struct {
	*testing.T
	w       *ring2.Writer
	layouts []uint32
	entries [][]ring2.LayoutEntry
}

// engineName is the engine of all ranks in this process.
const engineName = "edges"

// newRank attaches a rank with one layout for each list of entries.
func (r *rig) newRank(o ring2.WriterOptions, layouts ...[]ring2.LayoutEntry) *rank {
	r.Helper()
	o.Socket, o.EngineInstance, o.Logger = r.socket, engineName, slog.New(slog.DiscardHandler)
	w, err := ring2.NewWriter(o)
	if err != nil {
		r.Fatal(err)
	}
	k := &rank{T: r.T, w: w, entries: layouts}
	r.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = w.Close(ended) // It was closed already, unless the test gave up.
	})
	k.must(w.SetModel(ring2.Model{Name: "edges"}))
	for _, entries := range layouts {
		id, err := w.DefineLayout(entries)
		k.must(err)
		k.layouts = append(k.layouts, id)
	}
	return k
}

func (k *rank) must(err error) {
	k.Helper()
	if err != nil {
		k.Fatal(err)
	}
}

// requestPrefix begins the names of the requests of ranks in this process.
const requestPrefix = "edge-"

func requestName(number uint64) string { return fmt.Sprintf("%s%d", requestPrefix, number) }

// open announces a request, slowly enough for the agent to follow.
func (k *rank) open(number uint64, prompt int) {
	k.Helper()
	k.room()
	k.must(k.w.OpenRequest(ring2.RequestOpen{Number: number, ExternalID: requestName(number),
		PromptTokens: uint32(prompt)}))
}

// room waits until the agent has read most of what was announced.
func (k *rank) room() {
	k.Helper()
	for deadline := time.Now().Add(patience); k.w.Stats().PendingControl > 1000; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			k.Fatalf("the agent read nothing for %v: %+v", patience, k.w.Stats())
		}
	}
}

func (k *rank) end(number uint64, prompt, generated int) {
	k.Helper()
	k.room()
	k.must(k.w.EndRequest(ring2.RequestEnd{Number: number, PromptTokens: uint32(prompt),
		GeneratedTokens: uint32(generated), Passes: 1, Reason: ring2.FinishLength}))
}

// tokens is a range of a request in all layouts.
func (k *rank) tokens(number uint64, position, count int) ring2.StepRange {
	return ring2.StepRange{Number: number, Position: uint32(position), Count: uint32(count), Sampled: true,
		LayoutMask: 1<<len(k.layouts) - 1}
}

// step computes a step.
func (k *rank) step(ranges ...ring2.StepRange) {
	k.Helper()
	s, err := k.w.BeginStep(ranges, k.layouts)
	k.must(err)
	for li := range k.layouts {
		for ei := range k.entries[li] {
			e, span := &k.entries[li][ei], s.Span(li, ei)
			for _, g := range ranges {
				for p := g.Position; p < g.Position+g.Count && len(span) > 0; p++ {
					fillRow(span[:e.RowBytes()], g.Number, int32(p), e.Hook, e.Layer)
					span = span[e.RowBytes():]
				}
			}
		}
	}
	s.Commit()
}

// goodbye waits until the agent has everything.
func (k *rank) goodbye() {
	k.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	k.must(k.w.Close(ctx))
}

var rowSeed = maphash.MakeSeed()

// fillRow makes the bytes of a row.
func fillRow(row []byte, number uint64, position int32, hook string, layer int) {
	x := maphash.Comparable(rowSeed, struct {
		number   uint64
		position int32
		hook     string
		layer    int
	}{number, position, hook, layer})
	for ; len(row) >= 8; row = row[8:] {
		binary.LittleEndian.PutUint64(row, x)
		x = x*6364136223846793005 + 1442695040888963407
	}
	for i := range row {
		row[i] = byte(x >> (8 * i))
	}
}

// rest waits until so many epochs are closed and nothing is under way, ends the
// pipeline, and compares every stored row with what its place says.
func (r *rig) rest(epochs int) *account.Account {
	r.Helper()
	version := uint64(0)
	r.await("a lake at rest", func() bool {
		l, err := lakehouse.Open(r.lake)
		if err != nil || l.Version() == version {
			return false
		}
		version = l.Version()
		a, err := l.Account(r.Context())
		return err == nil && a.Epochs == epochs && a.AtRest()
	})
	r.peakMemory()
	r.end()
	a := r.verify()
	l, err := lakehouse.Open(r.lake)
	if err != nil {
		r.Fatal(err)
	}
	var want []byte
	r.compared = 0
	err = l.Vectors(r.Context(), lakehouse.Query{}, func(v *lakehouse.Vector) error {
		if !strings.HasPrefix(v.Request, requestPrefix) { // of an engine in a process of its own
			return nil
		}
		r.compared++
		want = append(want[:0], v.Raw...)
		fillRow(want, v.Number, v.Position, v.Hook, v.Layer)
		if !bytes.Equal(v.Raw, want) || v.Request != requestName(v.Number) {
			return fmt.Errorf("request %s, position %d, hook %s: not the row of its place", v.Request, v.Position, v.Hook)
		}
		return nil
	})
	if err != nil {
		r.Error(err)
	}
	r.Logf("%d rows compared; peak memory of the pipeline %d MiB\n%v", r.compared, r.peak, a)
	return a
}

// peakMemory is the most memory that the pipeline held so far, in MiB; the kernel
// counts the pages of the rings that it maps, too.
func (r *rig) peakMemory() int {
	r.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(r.run.PID()), "status"))
	if err != nil {
		r.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); fields[0] == "VmHWM:" {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				r.Fatal(err)
			}
			r.peak = kib >> 10
		}
	}
	return r.peak
}
