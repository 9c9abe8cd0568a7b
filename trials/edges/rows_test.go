package edges

import (
	"testing"

	"sonde/lakehouse"
	"sonde/lakehouse/account"
	"sonde/ring2"
	"sonde/schema"
)

// A scalar for each token is as good a tensor as any.
func TestAHookOfOneElementIsStoredRowByRow(t *testing.T) {
	t.Parallel()
	const tokens = 3000
	r := newRig(t, setup{})
	r.start()
	k := r.newRank(patientWriter, []ring2.LayoutEntry{{Hook: "router", Layer: 0, DType: ring2.U8},
		{Hook: "gate", Layer: 0, DType: ring2.BF16, Shape: []uint32{1}}, {Hook: "score", Layer: -1, DType: ring2.I64}})
	k.open(1, tokens)
	for at := 0; at < tokens; at += 500 {
		k.step(k.tokens(1, at, 500))
	}
	k.end(1, tokens, 0)
	k.goodbye()
	if a := r.rest(1); a.Stored != 3*tokens || r.compared != 3*tokens {
		t.Errorf("%d rows stored and %d compared; want %d", a.Stored, r.compared, 3*tokens)
	}
}

const (
	mib         = 1 << 20
	largestRow  = 30 * mib // producer's bound: what a message of 32 MiB takes
	hugeRow     = 64 * mib
	hugeRing    = 256 * mib
	smallerRing = 64 * mib
)

// A row that fits the ring and no message must not stop what comes with it or after
// it; it is named by its place, and figures of it can be had.
func TestARowOf64MiBIsDroppedByNameAndStopsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, setup{rules: `    - {name: figures, hooks: [huge], layers: [1], as: stats}
    - {name: every row, hooks: ["*"]}`})
	r.start()
	huge := func(layer int) ring2.LayoutEntry {
		return ring2.LayoutEntry{Hook: "huge", Layer: layer, DType: ring2.U8, Shape: []uint32{hugeRow}}
	}
	k := r.newRank(ring2.WriterOptions{DataBytes: hugeRing, Mode: ring2.Complete, StepStallBudget: patience},
		[]ring2.LayoutEntry{huge(0), {Hook: "resid_post", Layer: 0, DType: ring2.U8, Shape: []uint32{64}}},
		[]ring2.LayoutEntry{huge(1)},
		[]ring2.LayoutEntry{{Hook: "most", Layer: 0, DType: ring2.U8, Shape: []uint32{largestRow}}},
		[]ring2.LayoutEntry{{Hook: "above", Layer: 0, DType: ring2.U8, Shape: []uint32{largestRow + 1}}})
	k.open(1, 1)
	only := func(position int, mask uint64) {
		g := k.tokens(1, position, 1)
		g.LayoutMask = mask
		k.step(g)
	}
	only(0, 0b0001)
	only(0, 0b0010)
	only(0, 0b0100)
	only(0, 0b1000)
	only(1, 0b0001)
	k.end(1, 1, 1)
	k.goodbye()
	a := r.rest(1)
	if want := uint64(3); a.Dropped["oversize"] != want || a.DroppedRows() != want || a.Stored != 4 {
		t.Errorf("stored %d, dropped %v; want the small rows, the figures, the row of exactly %d bytes, and 3 oversize\n%v",
			a.Stored, a.Dropped, largestRow, a)
	}
	for _, row := range []struct {
		hook     string
		position int32
	}{{"huge", 0}, {"huge", 1}, {"above", 0}} {
		if !r.named(row.hook, row.position) {
			t.Errorf("no fact names the row of hook %s at position %d as oversize", row.hook, row.position)
		}
	}
	if n := r.lines("rows of a hook are larger than a message takes"); n != 3 {
		t.Errorf("%d warnings, want one for each of 3 hooks", n)
	}
	if r.peak > memoryBound+hugeRing/mib {
		t.Errorf("the pipeline took %d MiB", r.peak)
	}
}

// A capture that no ring of this size takes is dropped by the engine's side, which
// must say so, and go on.
func TestACaptureLargerThanTheRingTakesIsDroppedByName(t *testing.T) {
	t.Parallel()
	r := newRig(t, setup{})
	r.start()
	k := r.newRank(ring2.WriterOptions{DataBytes: smallerRing, Mode: ring2.Complete, StepStallBudget: patience},
		[]ring2.LayoutEntry{{Hook: "huge", Layer: 0, DType: ring2.U8, Shape: []uint32{hugeRow}}},
		[]ring2.LayoutEntry{{Hook: "resid_post", Layer: 0, DType: ring2.U8, Shape: []uint32{64}}})
	k.open(1, 2)
	for at := range 2 {
		k.step(k.tokens(1, at, 1))
	}
	k.end(1, 2, 0)
	k.goodbye()
	a := r.rest(1)
	if a.Dropped["oversize"] != 2 || a.Stored != 2 {
		t.Errorf("stored %d, dropped %v; want 2 small rows, and 2 oversize\n%v", a.Stored, a.Dropped, a)
	}
	if !r.named("huge", 0) || !r.named("huge", 1) {
		t.Error("no fact names the rows that the ring did not take")
	}
}

// named says whether facts drop the row of a hook and position of request 1, and name
// its request, as oversize.
func (r *rig) named(hook string, position int32) bool {
	r.Helper()
	l, err := lakehouse.Open(r.lake)
	if err != nil {
		r.Fatal(err)
	}
	entries := map[uint32][]account.LayoutEntry{}
	err = l.Ledger(r.Context(), lakehouse.Query{}, func(f *lakehouse.Fact) error {
		if f.Fact == schema.FactLayout {
			var err error
			entries[f.Layout], err = account.ParseLayout(f.Detail)
			return err
		}
		return nil
	})
	if err != nil {
		r.Fatal(err)
	}
	found := false
	err = l.Ledger(r.Context(), lakehouse.Query{}, func(f *lakehouse.Fact) error {
		if f.Reason != "oversize" && f.Outcome != "oversize" || f.Request != requestName(1) ||
			position < f.Position || position >= f.Position+f.Count {
			return nil
		}
		at, err := account.ParseEntries(f.Entries)
		for _, i := range at {
			found = found || i < len(entries[f.Layout]) && entries[f.Layout][i].Hook == hook
		}
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	return found
}
