package edges

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sonde/lakehouse"
	"sonde/ring2"
)

// memoryBound is what the whole pipeline may take in MiB, with a window of 64 MiB to
// the bus, one of 64 MiB to the lake, and what Go needs to move them.
const memoryBound = 700

// patientWriter waits for the agent rather than drop.
var patientWriter = ring2.WriterOptions{Mode: ring2.Complete, StepStallBudget: patience, DataBytes: 8 << 20}

// A server with thousands of clients, whose agent is killed in the middle: the next
// agent must learn all of them from the snapshot, and none may be forgotten.
func TestTenThousandOpenRequestsKeepTheirNamesAndEnds(t *testing.T) {
	t.Parallel()
	const requests, prompt, generated, perStep = 10_000, 2, 2, 500
	r := newRig(t, setup{})
	r.start()
	k := r.newRank(patientWriter,
		[]ring2.LayoutEntry{{Hook: "resid_post", Layer: 3, DType: ring2.U8, Shape: []uint32{24}}})
	for n := range uint64(requests) {
		k.open(n, prompt)
	}
	all := func(position, count int) {
		var ranges []ring2.StepRange
		for n := range uint64(requests) {
			ranges = append(ranges, k.tokens(n, position, count))
			if len(ranges) == perStep {
				k.step(ranges...)
				ranges = ranges[:0]
			}
		}
	}
	all(0, prompt)
	if err := r.run.Kill(); err != nil {
		t.Fatal(err)
	}
	r.start()
	for token := range generated {
		all(prompt+token, 1)
	}
	for n := range uint64(requests) {
		k.end(n, prompt, generated)
	}
	k.goodbye()
	a := r.rest(1)
	if want := uint64(requests * (prompt + generated)); a.Stored != want || a.Expected != want {
		t.Errorf("%d rows of %d stored, %d expected", a.Stored, want, a.Expected)
	}
	ended := 0
	l, err := lakehouse.Open(r.lake)
	if err != nil {
		t.Fatal(err)
	}
	err = l.Requests(t.Context(), lakehouse.Query{}, func(q *lakehouse.Request) error {
		if q.Ended && q.Reason == "length" && q.Request == requestName(q.Number) && q.GeneratedTokens == generated {
			ended++
		}
		return nil
	})
	if err != nil || ended != requests {
		t.Errorf("%d of %d requests ended well, %v", ended, requests, err)
	}
	if r.peak > memoryBound {
		t.Errorf("the pipeline took %d MiB; at most %d", r.peak, memoryBound)
	}
}

// Positions must be right to the end of the longest context, in the lake and in what
// is read back from it.
func TestARequestOfAHundredThousandTokensIsRightToItsLastPosition(t *testing.T) {
	t.Parallel()
	const tokens, chunk = 100_000, 2048
	entry := ring2.LayoutEntry{Hook: "resid_post", Layer: 1, DType: ring2.F32, Shape: []uint32{8}}
	r := newRig(t, setup{})
	r.start()
	k := r.newRank(patientWriter, []ring2.LayoutEntry{entry})
	k.open(7, tokens-1)
	for at := 0; at < tokens-1; at += chunk {
		k.step(k.tokens(7, at, min(chunk, tokens-1-at)))
	}
	k.step(k.tokens(7, tokens-1, 1))
	k.end(7, tokens-1, 1)
	k.goodbye()
	if a := r.rest(1); a.Stored != tokens || a.Expected != tokens {
		t.Errorf("%d rows of %d stored, %d expected", a.Stored, tokens, a.Expected)
	}
	out := filepath.Join(t.TempDir(), "out.npy")
	text, code := sonde(t, "lake", "tensor", requestName(7), "resid_post", "1", "--lake", r.lake, "--out", out)
	if code != 0 {
		t.Fatalf("lake tensor ended with %d: %s", code, text)
	}
	npy, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	const preamble = 10 // magic, version, and the length of the header
	data := npy[preamble+int(binary.LittleEndian.Uint16(npy[8:])):]
	if len(data) != tokens*entry.RowBytes() {
		t.Fatalf("%d bytes came back, want %d", len(data), tokens*entry.RowBytes())
	}
	row := make([]byte, entry.RowBytes())
	for p := range tokens {
		fillRow(row, 7, int32(p), entry.Hook, entry.Layer)
		if got := data[p*len(row):][:len(row)]; string(got) != string(row) {
			t.Fatalf("position %d came back as %x, want %x", p, got, row)
		}
	}
	if r.peak > memoryBound {
		t.Errorf("the pipeline took %d MiB; at most %d", r.peak, memoryBound)
	}
}

// Ranks of one engine share an agent; what happens to one is none of the others'
// business.
func TestSixtyFourRanksAtOnceAndTheDeathOfOne(t *testing.T) {
	t.Parallel()
	const ranks, steps, tokens = 64, 25, 4
	r := newRig(t, setup{})
	r.start()
	r.startEngine("--instance", engineName, "--rank", "63", "--ranks", "64")
	stop := r.load()
	done := make(chan struct{})
	var all []*rank
	for n := range ranks - 1 {
		all = append(all, r.newRank(ring2.WriterOptions{Rank: n, RankCount: ranks, DescCount: 64, DataBytes: 256 << 10,
			Mode: ring2.Complete, StepStallBudget: patience},
			[]ring2.LayoutEntry{{Hook: "resid_post", Layer: 0, DType: ring2.U8, Shape: []uint32{32}}}))
	}
	r.await("64 ranks", func() bool { return r.agent()["sonde_producer_ranks"] == ranks })
	go func() {
		defer close(done)
		for step := range steps {
			for n, k := range all {
				if step == 0 {
					k.open(uint64(n), steps*tokens)
				}
				k.step(k.tokens(uint64(n), step*tokens, tokens))
			}
			if step == steps/2 {
				_ = r.engine.Kill() // That it was running is seen below.
			}
		}
		for n, k := range all {
			k.end(uint64(n), steps*tokens, 0)
			k.goodbye()
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the ranks do not come to their end")
	}
	stop()
	r.engine = nil
	r.rest(ranks)
	if r.compared != (ranks-1)*steps*tokens {
		t.Errorf("%d rows of the other ranks are stored, want %d", r.compared, (ranks-1)*steps*tokens)
	}
}
