package oracle

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"sonde/engine/arithmetic"
	"sonde/lakehouse/account"
	"sonde/schema"
)

const testEpoch = 0x1234

// world is a small run of the arithmetic engine: what it witnessed, what the
// lake stored, and what the ledger says.
type world struct {
	keys  []Key
	rows  map[Key][]byte // as stored; absent: not stored
	facts []account.Fact
}

var worldHooks = []hook{{"token_ids", -1}, {"resid_post", 0}, {"pattern", 1}}

const worldPositions = 30

// newWorld makes 2 requests x 2 samples x 2 passes of every position at each hook. Each position was
// a step.
func newWorld() *world {
	w := &world{rows: map[Key][]byte{}}
	var entries []string
	for _, h := range worldHooks {
		entries = append(entries, fmt.Sprintf(`{"hook":%q,"layer":%d}`, h.name, h.layer))
	}
	w.fact(schema.LedgerRow{Fact: schema.FactLayout, Layout: 1, Detail: "[" + strings.Join(entries, ",") + "]"})
	for _, request := range []string{"a", "b"} {
		for sample := range 2 {
			for pass := range 2 {
				for position := range worldPositions {
					w.fact(schema.LedgerRow{Fact: schema.FactExpected, Request: request, Sample: int32(sample), Pass: int32(pass),
						Position: int32(position + 5), Count: 1, Stride: 1, Layout: 1, Entries: "0-2", Rows: 3,
						Step: uint64(position), Outcome: schema.OutcomeCaptured})
					for _, h := range worldHooks {
						k := Key{testEpoch, request, sample, position + 5, pass, h.name, h.layer}
						w.keys = append(w.keys, k)
						w.rows[k] = rowOf(k)
					}
				}
			}
		}
	}
	w.fact(schema.LedgerRow{Fact: schema.FactClosed, Reason: "bye"})
	return w
}

func (w *world) fact(r schema.LedgerRow) {
	w.facts = append(w.facts, account.Fact{Epoch: testEpoch, LedgerRow: r})
}

func rowOf(k Key) []byte {
	if k.Hook == "token_ids" {
		return []byte{byte(k.Position), byte(k.Sample), k.Request[0], 0} // a pass computes the same token again
	}
	h, ok := arithmetic.HookOf(k.Hook, k.Layer)
	if !ok {
		panic("no such hook")
	}
	return arithmetic.Row(nil, h, k.Request, k.Sample, k.Position, k.Pass)
}

// judge lets a checker see the world; witnessed rows are those of the keys.
func (w *world) judge(t *testing.T) *Report {
	t.Helper()
	c := NewChecker()
	c.Recompute = Arithmetic
	for _, k := range w.keys {
		c.Witness(k, HashOf(rowOf(k)))
	}
	for k, row := range w.rows {
		c.Stored(k, row)
	}
	for i := range w.facts {
		if err := c.Fact(&w.facts[i]); err != nil {
			t.Fatal(err)
		}
	}
	return c.Finish()
}

// want asserts how many rows have which defect, and no other.
func want(t *testing.T, r *Report, defects map[Defect]int) {
	t.Helper()
	for d, rows := range r.Defects {
		if rows != defects[Defect(d)] {
			t.Errorf("%d rows %s, want %d: %q", rows, defectNames[d], defects[Defect(d)], r.Names[d])
		}
	}
	if (r.Err() == nil) != (len(defects) == 0) {
		t.Errorf("error %v with defects %v", r.Err(), defects)
	}
}

func TestASoundLakeHasNoDefect(t *testing.T) {
	w := newWorld()
	r := w.judge(t)
	want(t, r, nil)
	if n := len(w.keys); r.Witnessed != n || r.Stored != n || r.Matched != n || r.Recomputed != n*2/3 || r.Named != 0 {
		t.Errorf("of %d rows: %+v", n, r)
	}
}

// A checker that is happy with two rows in each other's place proves nothing.
func TestASwapOfTwoRowsNamesExactlyThese(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		w := newWorld()
		var a, b Key
		for a == b || a.Hook != b.Hook || string(w.rows[a]) == string(w.rows[b]) {
			a, b = w.keys[random.IntN(len(w.keys))], w.keys[random.IntN(len(w.keys))]
		}
		w.rows[a], w.rows[b] = w.rows[b], w.rows[a]
		r := w.judge(t)
		want(t, r, map[Defect]int{Wrong: 2})
		names := strings.Join(r.Names[Wrong], "\n")
		for _, k := range []Key{a, b} {
			if !strings.Contains(names, k.String()+" has other bytes than") {
				t.Errorf("seed %d: %v is not named: %s", seed, k, names)
			}
		}
		if a.Hook != "token_ids" { // token ids are alike in both passes
			for _, pair := range [][2]Key{{a, b}, {b, a}} {
				if text := "it has those of " + pair[1].String(); !strings.Contains(names, text) {
					t.Errorf("seed %d: %s lacks %q", seed, names, text)
				}
			}
		}
		if r.Matched != len(w.keys)-2 {
			t.Errorf("%d of %d rows match", r.Matched, len(w.keys))
		}
	}
}

func TestOneFlippedBitIsFound(t *testing.T) {
	w := newWorld()
	k := w.keys[len(w.keys)/2]
	w.rows[k] = append([]byte(nil), w.rows[k]...)
	w.rows[k][len(w.rows[k])-1] ^= 0x80
	r := w.judge(t)
	want(t, r, map[Defect]int{Wrong: 1})
	if !strings.Contains(r.Names[Wrong][0], k.String()) || strings.Contains(r.Names[Wrong][0], "those of") {
		t.Errorf("named %q, want %v and no owner of its bytes", r.Names[Wrong], k)
	}
}

// Where both the witness and the lake are wrong, only the arithmetic knows.
func TestAWitnessThatLiesIsFound(t *testing.T) {
	k := Key{testEpoch, "a", 0, 3, 0, "resid_post", 0}
	c := NewChecker()
	c.Recompute = Arithmetic
	row := make([]byte, 32)
	c.Witness(k, HashOf(row))
	c.Stored(k, row)
	if r := c.Finish(); r.Defects[Wrong] != 1 || !strings.Contains(r.Names[Wrong][0], "than its place says") {
		t.Errorf("%+v", r)
	}
}

func TestARowThatVanishedIsNamed(t *testing.T) {
	w := newWorld()
	gone := Key{testEpoch, "b", 1, 17, 1, "pattern", 1}
	delete(w.rows, gone)
	r := w.judge(t) // a fact names it: the account says why it is gone
	want(t, r, nil)
	if r.Named != 1 {
		t.Errorf("%d rows are named by the ledger, want 1", r.Named)
	}
	for i := range w.facts { // without the fact nobody knows of it
		if f := &w.facts[i]; f.Request == "b" && f.Sample == 1 && f.Position == 17 && f.Pass == 1 {
			f.Entries, f.Rows = "0-1", 2
		}
	}
	r = w.judge(t)
	want(t, r, map[Defect]int{Silent: 1})
	if !strings.HasPrefix(r.Names[Silent][0], gone.String()) {
		t.Errorf("named %q, want %v", r.Names[Silent], gone)
	}
}

func TestRowsThatNobodyComputedOrAskedForAreNamed(t *testing.T) {
	w := newWorld()
	for _, k := range []Key{{testEpoch, "c", 0, 5, 0, "resid_post", 0}, {testEpoch, "a", 0, 4, 0, "resid_post", 0},
		{testEpoch, "a", 0, 5, 9, "resid_post", 0}, {testEpoch + 1, "a", 0, 5, 0, "resid_post", 0}} {
		w.rows[k] = rowOf(k)
	}
	extra := Key{testEpoch, "a", 0, worldPositions + 5, 0, "resid_post", 0}
	w.keys = append(w.keys, extra)
	w.rows[extra] = rowOf(extra)
	want(t, w.judge(t), map[Defect]int{Unwitnessed: 4, Unasked: 1})
}

func TestARowInTheLakeTwiceIsNamed(t *testing.T) {
	w := newWorld()
	c := NewChecker()
	for _, k := range w.keys {
		c.Witness(k, HashOf(rowOf(k)))
		c.Stored(k, rowOf(k))
	}
	c.Stored(w.keys[7], rowOf(w.keys[7]))
	c.Stored(w.keys[7], rowOf(w.keys[7]))
	for i := range w.facts {
		if err := c.Fact(&w.facts[i]); err != nil {
			t.Fatal(err)
		}
	}
	r := c.Finish()
	want(t, r, map[Defect]int{Twice: 1})
	if !strings.HasPrefix(r.Names[Twice][0], w.keys[7].String()) {
		t.Errorf("named %q", r.Names[Twice])
	}
}

func TestRowsThatOnlyTheLedgerKnowsAreOfADyingStep(t *testing.T) {
	for how, wanted := range map[string]map[Defect]int{"bye": {Phantom: 12}, "died": nil} {
		w := newWorld()
		w.facts[len(w.facts)-1].Reason = how
		kept := w.keys[:0]
		for _, k := range w.keys { // the last step, pass 1, was never witnessed
			if k.Position < worldPositions+4 || k.Pass == 0 {
				kept = append(kept, k)
			} else {
				delete(w.rows, k)
			}
		}
		w.keys = kept
		r := w.judge(t)
		want(t, r, wanted)
		if wanted == nil && r.Unfinished != 12 {
			t.Errorf("%d unfinished rows, want 12", r.Unfinished)
		}
	}
	w := newWorld() // of an earlier step, there is no excuse
	w.facts[len(w.facts)-1].Reason = "died"
	delete(w.rows, w.keys[0])
	w.keys = w.keys[1:]
	want(t, w.judge(t), map[Defect]int{Phantom: 1})
}

func TestALedgerThatCountsRowsTwiceIsFound(t *testing.T) {
	w := newWorld()
	w.fact(schema.LedgerRow{Fact: schema.FactMissing, Request: "a", Position: 9, Count: 2, Stride: 1, Layout: 1,
		Entries: "0-2", Rows: 6})
	want(t, w.judge(t), map[Defect]int{Phantom: 6})
}

func TestMergedFactsExcuseNoMoreRowsThanTheyCount(t *testing.T) {
	for rows, wanted := range map[uint64]map[Defect]int{6: nil, 5: {Silent: 1}} {
		w := newWorld()
		kept := w.facts[:0]
		for _, f := range w.facts { // two positions far apart were merged into one fact
			if f.Request == "a" && f.Sample == 0 && f.Pass == 0 && (f.Position == 9 || f.Position == 29) {
				continue
			}
			kept = append(kept, f)
		}
		w.facts = kept
		for k := range w.rows {
			if k.Request == "a" && k.Sample == 0 && k.Pass == 0 && (k.Position == 9 || k.Position == 29) {
				delete(w.rows, k)
			}
		}
		w.fact(schema.LedgerRow{Fact: schema.FactMissing, Request: "a", Position: 9, Count: 21, Stride: 1, Layout: 1,
			Entries: "0-2", Rows: rows})
		r := w.judge(t)
		want(t, r, wanted)
		if r.Named != 6 {
			t.Errorf("%d rows are named, want 6", r.Named)
		}
	}
}

func TestThePageNamesTheRows(t *testing.T) {
	w := newWorld()
	a, b := w.keys[1], w.keys[4]
	w.rows[a], w.rows[b] = w.rows[b], w.rows[a]
	var page strings.Builder
	w.judge(t).Print(&page)
	for _, text := range []string{"WRONG: 2 rows with wrong bytes", a.String(), b.String(), "720 computed = 720 stored"} {
		if !strings.Contains(page.String(), text) {
			t.Errorf("the page lacks %q:\n%s", text, &page)
		}
	}
}
