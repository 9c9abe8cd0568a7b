package account

import (
	"fmt"
	"strings"
	"testing"

	"sonde/schema"
)

const testEpoch = 0xabcdef0123456789

// ledger helps tests to feed a builder. Its layout 7 has resid_post of layers 0
// and 1, and token_ids.
type ledger struct {
	*testing.T
	*Builder
}

func newLedger(t *testing.T) *ledger {
	l := &ledger{t, NewBuilder()}
	l.must(schema.LedgerRow{Seq: 1, Fact: schema.FactLayout, Layout: 7, Layer: -1,
		Detail: `[{"hook":"resid_post","layer":0},{"hook":"resid_post","layer":1},{"hook":"token_ids","layer":-1}]`})
	return l
}

var testEntries = []chainKey{{"resid_post", 0, 0}, {"resid_post", 1, 0}, {"token_ids", -1, 0}}

func (l *ledger) must(r schema.LedgerRow) { l.mustOf("acme", r) }

func (l *ledger) mustOf(tenant string, r schema.LedgerRow) {
	l.Helper()
	if err := l.Fact(Fact{Epoch: testEpoch, Tenant: tenant, LedgerRow: r}); err != nil {
		l.Fatal(err)
	}
}

// expect is the fact of one range of one request: count tokens, all entries.
func expect(step uint64, row uint32, capture uint64, first, count int32) schema.LedgerRow {
	return schema.LedgerRow{Seq: step, Row: row, Fact: schema.FactExpected, Number: 5, Request: "req-5", Position: 100,
		Count: count, Stride: 1, Layout: 7, Entries: "0-2", Rows: uint64(count) * 3,
		Outcome: schema.OutcomeCaptured, CaptureSeq: capture, FirstRow: uint32(first), Layer: -1}
}

func (l *ledger) store(capture uint64, entries []int, rows ...uint32) {
	for _, en := range entries {
		for _, row := range rows {
			k := testEntries[en]
			l.Stored(Row{Epoch: testEpoch, Hook: k.hook, Layer: k.layer, Shard: k.shard, Seq: capture, Row: row})
		}
	}
}

func (l *ledger) close() { l.must(schema.LedgerRow{Seq: 1 << 40, Fact: schema.FactClosed, Layer: -1}) }

var all = []int{0, 1, 2}

// want compares the classes, and asserts the law.
func (l *ledger) want(want Account) *Account {
	l.Helper()
	a := l.Finish()
	got := fmt.Sprint(a.Expected, a.Stored, a.DeadLettered, a.Aborted, a.Dropped, a.Lost, a.InFlight, a.Filtered, a.Early,
		a.OnBus, a.Duplicated, a.Unasked, a.Unexplained)
	if want.Dropped == nil {
		want.Dropped = map[string]uint64{}
	}
	w := &want
	should := fmt.Sprint(w.Expected, w.Stored, w.DeadLettered, w.Aborted, w.Dropped, w.Lost, w.InFlight, w.Filtered,
		w.Early, w.OnBus, w.Duplicated, w.Unasked, w.Unexplained)
	if got != should {
		l.Errorf("the account is\n%s, want\n%s\n(expected stored dead aborted dropped lost in-flight filtered early "+
			"on-bus duplicated unasked unexplained)\n%v", got, should, a)
	}
	sound := want.Duplicated+want.Unasked+want.Unexplained == 0
	if err := a.Balance(); (err == nil) != sound {
		l.Errorf("balance: %v, with %d + %d + %d defects", err, a.Duplicated, a.Unasked, a.Unexplained)
	}
	var expected, stored uint64
	for _, h := range a.ByHook {
		expected += h.Expected
		stored += h.Stored
	}
	if expected != a.Expected || stored != a.Stored {
		l.Errorf("by hook %d expected and %d stored; in all %d and %d", expected, stored, a.Expected, a.Stored)
	}
	return a
}

func TestEveryRowStoredIsBalanced(t *testing.T) {
	l := newLedger(t)
	l.must(expect(10, 0, 11, 0, 4))
	l.must(expect(10, 2, 11, 4, 1))
	l.store(11, all, 0, 1, 2, 3, 4)
	l.close()
	a := l.want(Account{Expected: 15, Stored: 15})
	if !a.AtRest() {
		t.Error("not at rest although the only epoch is closed")
	}
}

func TestAMissingRowIsNamedExactly(t *testing.T) {
	l := newLedger(t)
	l.must(expect(10, 0, 11, 0, 4))
	l.store(11, []int{0, 2}, 0, 1, 2, 3)
	l.store(11, []int{1}, 0, 1, 3)
	l.close()
	a := l.want(Account{Expected: 12, Stored: 11, Unexplained: 1})
	want := "hook resid_post layer 1 seq 11 row 2 (request req-5 sample 0 position 102 pass 0) is neither stored"
	if len(a.Examples) != 1 || !strings.Contains(a.Examples[0], want) {
		t.Errorf("examples %q, want one with %q", a.Examples, want)
	}
	if err := a.Balance(); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("balance is %v, want it to name the row", err)
	}
}

func TestARowStoredTwiceIsNamedWhereverTheCopyComes(t *testing.T) {
	for _, far := range []bool{false, true} {
		l := newLedger(t)
		l.must(expect(10, 0, 11, 0, 4))
		l.store(11, all, 0, 1, 2, 3)
		if far { // the first copy is merged away before the second comes
			for seq := uint64(20); seq < 20+4*tailMin; seq += 2 {
				l.must(expect(seq-1, 0, seq, 0, 1))
				l.store(seq, []int{0, 1, 2}, 0)
			}
		}
		l.store(11, []int{1}, 2)
		l.close()
		rows := uint64(12)
		if far {
			rows += 3 * 2 * tailMin
		}
		a := l.want(Account{Expected: rows, Stored: rows, Duplicated: 1})
		want := "hook resid_post layer 1 seq 11 row 2 is stored more than once"
		if len(a.Examples) != 1 || !strings.Contains(a.Examples[0], want) {
			t.Errorf("examples %q, want one with %q", a.Examples, want)
		}
	}
}

func TestRowsThatNobodyAskedForAreNamed(t *testing.T) {
	l := newLedger(t)
	l.must(expect(10, 0, 11, 2, 2))
	l.store(11, all, 2, 3)
	l.store(11, []int{0}, 1, 4)
	l.store(12, []int{1}, 0)
	l.store(5, []int{2}, 9)
	l.Stored(Row{Epoch: testEpoch, Hook: "mlp_out", Layer: 3, Seq: 11, Row: 2})
	l.Stored(Row{Epoch: testEpoch, Hook: "resid_post", Layer: 0, Shard: 1, Seq: 11, Row: 1<<32 - 1})
	l.close()
	a := l.want(Account{Expected: 6, Stored: 6, Unasked: 6})
	for _, want := range []string{"layer 0 seq 11 row 1 ", "layer 0 seq 11 row 4 ", "layer 1 seq 12 row 0 ",
		"token_ids layer -1 seq 5 row 9 ", "mlp_out layer 3 seq 11 row 2 ", "layer 0 shard 1 seq 11 row 4294967295 "} {
		if !strings.Contains(strings.Join(a.Examples, "\n"), want) {
			t.Errorf("no example holds %q: %q", want, a.Examples)
		}
	}
}

func TestARowOnTheBusIsCountedOnceWhateverElseHoldsIt(t *testing.T) {
	l := newLedger(t)
	l.must(expect(10, 0, 11, 0, 4))
	l.must(expect(12, 0, 13, 0, 4))
	l.store(11, []int{0}, 0, 1)
	onBus := func(capture uint64, entry int, rows ...uint32) {
		k := testEntries[entry]
		for _, row := range rows {
			l.OnBus(Row{Epoch: testEpoch, Hook: k.hook, Layer: k.layer, Shard: k.shard, Seq: capture, Row: row})
		}
	}
	onBus(13, 1, 3, 2)
	onBus(11, 0, 0, 1, 2) // two of them are stored
	onBus(11, 0, 2)       // published again
	onBus(11, 2, 9)       // no fact expects it: not a defect of the tables
	onBus(99, 2, 0)
	a := l.want(Account{Expected: 24, Stored: 2, OnBus: 3, InFlight: 19})
	if !strings.Contains(a.String(), "on the bus") {
		t.Errorf("the page says nothing of the bus:\n%s", a)
	}
}

func TestRowsOfOpenEpochsAreInFlightNotWrong(t *testing.T) {
	l := newLedger(t)
	l.must(expect(10, 0, 11, 0, 4))
	l.store(11, []int{0}, 0, 1)
	l.store(13, all, 0, 1) // its facts come later
	a := l.want(Account{Expected: 12, Stored: 2, InFlight: 10, Early: 6})
	if a.AtRest() || len(a.OpenEpochs) != 1 || a.OpenEpochs[0] != testEpoch {
		t.Errorf("open epochs %x, at rest %v", a.OpenEpochs, a.AtRest())
	}
}

func TestFactsThatAnotherAgentRepeatsCountOnce(t *testing.T) {
	l := newLedger(t)
	for range 3 {
		l.must(expect(10, 0, 11, 0, 4))
		dropped := expect(12, 0, 0, 0, 4)
		dropped.Outcome, dropped.Reason, dropped.FilteredRows = schema.OutcomeDropped, "no_space", 9
		l.must(dropped)
		l.must(schema.LedgerRow{Seq: 20, Row: 1, Fact: schema.FactMissing, Rows: 7, Reason: "control_full", Layer: -1})
		l.close()
		l.must(schema.LedgerRow{Seq: 1, Fact: schema.FactLayout, Layout: 7, Layer: -1,
			Detail: `[{"hook":"resid_post","layer":0},{"hook":"resid_post","layer":1},{"hook":"token_ids","layer":-1}]`})
	}
	l.mustOf("other", expect(10, 0, 11, 4, 1)) // another tenant's fact has the same place in its own chain
	l.store(11, all, 0, 1, 2, 3, 4)
	l.want(Account{Expected: 34, Stored: 15, Dropped: map[string]uint64{"no_space": 12, "control_full": 7}, Filtered: 9})
}

func TestOverlappingFactsCountARowOnce(t *testing.T) {
	l := newLedger(t)
	l.must(expect(10, 0, 11, 0, 4))
	l.must(expect(10, 2, 11, 2, 4))
	l.store(11, all, 0, 1, 2, 3, 4, 5)
	l.close()
	l.want(Account{Expected: 18, Stored: 18})
}

// The agent's policy changed while a step that the ring dropped was not released.
func TestADroppedStepThatTwoPoliciesNameCountsOnce(t *testing.T) {
	l := newLedger(t)
	for _, entries := range []string{"0-1", "1-2", "0-1"} {
		f := expect(10, 0, 0, 0, 4)
		f.Outcome, f.Reason, f.Entries, f.Rows = schema.OutcomeDropped, "no_space", entries, 8
		l.must(f)
		f.Seq = 12
		f.Layout = 9 // never defined: each of its names counts
		l.must(f)
	}
	l.close()
	l.want(Account{Expected: 28, Dropped: map[string]uint64{"no_space": 28}})
}

func TestMergedHullsCountTheirExactRows(t *testing.T) {
	l := newLedger(t)
	l.must(schema.LedgerRow{Seq: 20, Fact: schema.FactMissing, Number: 5, Position: 3, Count: 900, Stride: 1, Layout: 7,
		Entries: "0-2", Rows: 100, FilteredRows: 4, Reason: "no_slot", Detail: `{"merged":true}`})
	l.must(schema.LedgerRow{Seq: 20, Row: 1, Fact: schema.FactMissing, Layout: 99, Entries: "0", Rows: 5,
		Reason: "no_slot"})
	l.mustOf("", schema.LedgerRow{Seq: 99, Fact: schema.FactMissing, Rows: 11, Reason: "unnamed", Layer: -1})
	l.close()
	a := l.want(Account{Expected: 116, Filtered: 4, Dropped: map[string]uint64{"no_slot": 105, "unnamed": 11}})
	if got := fmt.Sprint(a.ByHook); got != "[{ 16 0 0 0 0} {resid_post 67 0 0 0 0} {token_ids 33 0 0 0 0}]" {
		t.Errorf("by hook %s", got)
	}
}

// An agent that dies between its count of unnamed rows and the closed fact leaves
// both that count and the names that the obituary gives the same rows.
func TestUnnamedRowsThatAnObituaryNamesCountOnce(t *testing.T) {
	for detail, rows := range map[string]uint64{`{"told":"obituary"}`: 6, `{"captured_rows":9}`: 13, "": 13} {
		l := newLedger(t)
		l.mustOf("", schema.LedgerRow{Seq: 30, Row: 1, Fact: schema.FactMissing, Rows: 7, Reason: "unnamed", Layer: -1})
		l.mustOf("", schema.LedgerRow{Seq: 30, Row: 1, Fact: schema.FactMissing, Layout: 7, Entries: "0-2", Count: 2,
			Stride: 1, Rows: 6, Reason: "control_full"})
		l.must(schema.LedgerRow{Seq: 30, Row: 9, Fact: schema.FactClosed, Detail: detail})
		dropped := map[string]uint64{"control_full": 6}
		if rows > 6 {
			dropped["unnamed"] = 7
		}
		l.want(Account{Expected: rows, Dropped: dropped})
	}
}

func TestTheFirstClassThatFitsWins(t *testing.T) {
	fact := func(kind string, capture uint64) schema.LedgerRow {
		return schema.LedgerRow{Seq: capture, Fact: kind, CaptureSeq: capture, Layer: -1}
	}
	classes := []func(l *ledger, capture uint64){
		func(l *ledger, c uint64) { l.store(c, all, 0, 1) },
		func(l *ledger, c uint64) {
			for _, k := range testEntries {
				f := fact(schema.FactDeadLetter, c)
				f.Hook, f.Layer, f.Count, f.Stride = k.hook, int32(k.layer), 2, 1
				l.must(f)
			}
		},
		func(l *ledger, c uint64) { l.must(fact(schema.FactAborted, c)) },
		func(l *ledger, c uint64) {
			f := expect(c-1, 1, c, 0, 2)
			f.Fact, f.Outcome, f.Reason = schema.FactDropped, "", "budget"
			l.must(f)
		},
		func(l *ledger, c uint64) { l.must(fact(schema.FactLost, c)) },
	}
	for i := range classes {
		l := newLedger(t)
		l.must(expect(10, 0, 11, 0, 2))
		for _, class := range classes[i:] {
			class(l, 11)
		}
		l.close()
		want := Account{Expected: 6}
		switch i {
		case 0:
			want.Stored = 6
		case 1:
			want.DeadLettered = 6
		case 2:
			want.Aborted = 6
		case 3:
			want.Dropped = map[string]uint64{"budget": 6}
		case 4:
			want.Lost = 6
		}
		l.want(want)
	}
}

func TestAnAbortNamesTheRowsOfItsTenantAlone(t *testing.T) {
	l := newLedger(t)
	l.must(expect(10, 0, 11, 0, 2))
	l.mustOf("other", expect(10, 0, 11, 2, 3))
	l.mustOf("other", schema.LedgerRow{Seq: 11, Fact: schema.FactAborted, CaptureSeq: 11, Rows: 9, Layer: -1})
	l.close()
	l.want(Account{Expected: 15, Aborted: 9, Unexplained: 6})
}

func TestAStrideNamesEveryNthRow(t *testing.T) {
	l := newLedger(t)
	f := expect(10, 0, 11, 1, 4)
	f.Stride = 3 // rows 1, 4, 7, 10
	l.must(f)
	l.store(11, all, 1, 4, 7)
	l.store(11, []int{0}, 10, 2)
	l.close()
	a := l.want(Account{Expected: 12, Stored: 10, Unasked: 1, Unexplained: 2})
	if !strings.Contains(fmt.Sprint(a.Examples), "position 109 ") {
		t.Errorf("examples %q, want one of position 109", a.Examples)
	}
}

func TestAnUndefinedLayoutIsUnexplainedOnlyAfterTheEnd(t *testing.T) {
	for _, closed := range []bool{false, true} {
		l := &ledger{t, NewBuilder()}
		l.must(expect(10, 0, 11, 0, 2))
		l.store(11, all, 0, 1)
		if closed {
			l.close()
			l.want(Account{Expected: 6, Unexplained: 6, Unasked: 6})
		} else {
			l.want(Account{Expected: 6, InFlight: 6, Early: 6})
		}
	}
}

func TestFactsThatContradictThemselvesAreErrors(t *testing.T) {
	bad := map[string]func(*schema.LedgerRow){
		"count":   func(f *schema.LedgerRow) { f.Count = -1 },
		"stride":  func(f *schema.LedgerRow) { f.Stride = 0 },
		"rows":    func(f *schema.LedgerRow) { f.Rows = 1 << 60 },
		"row":     func(f *schema.LedgerRow) { f.FirstRow = 1<<32 - 1 },
		"steps":   func(f *schema.LedgerRow) { f.Stride, f.Count = 1<<31-1, 1<<31-1 },
		"entries": func(f *schema.LedgerRow) { f.Entries = "2-0" },
		"outcome": func(f *schema.LedgerRow) { f.Outcome = "perhaps" },
		"detail":  func(f *schema.LedgerRow) { f.Fact, f.Detail = schema.FactLayout, "{" },
		"empty":   func(f *schema.LedgerRow) { f.Fact, f.Detail = schema.FactLayout, "[]" },
		"twice": func(f *schema.LedgerRow) {
			f.Fact, f.Detail = schema.FactLayout, `[{"hook":"other"},{"hook":"x"},{"hook":"y"}]`
		},
	}
	for name, spoil := range bad {
		l := newLedger(t)
		f := expect(10, 0, 11, 0, 4)
		spoil(&f)
		if err := l.Fact(Fact{Epoch: testEpoch, LedgerRow: f}); err == nil {
			t.Errorf("%s: no error", name)
		} else if len(err.Error()) > 400 {
			t.Errorf("%s: an error of %d letters", name, len(err.Error()))
		}
		l.want(Account{})
	}
}

func TestEntrySetsAreReadStrictly(t *testing.T) {
	for text, want := range map[string]string{"": "[]", "0": "[0]", "0-3,7": "[0 1 2 3 7]", "65535": "[65535]"} {
		if got, err := ParseEntries(text); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%q: %v, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{",", "1,", "3,2", "2,2", "0-3,3", "-1", "1-", "+1", "65536", "a", "1 ", "0-4294967296"} {
		if got, err := ParseEntries(text); err == nil {
			t.Errorf("%q: %v and no error", text, got)
		}
	}
}

func TestTheTableShowsEveryClass(t *testing.T) {
	a := &Account{Expected: 100, Stored: 50, DeadLettered: 4, Aborted: 5,
		Dropped: map[string]uint64{"no_slot": 30, "budget": 6}, Lost: 3, InFlight: 2, Filtered: 12,
		OpenEpochs: []uint64{1}, Epochs: 2}
	text := a.String()
	for _, want := range []string{"captured", "50.00 %", "+ dropped (budget)", "+ dropped (no_slot)", "+ aborted",
		"+ lost", "+ dead-lettered", "+ in flight", "12 filtered", "2 epochs, 1 of them open"} {
		if !strings.Contains(text, want) {
			t.Errorf("the table lacks %q:\n%s", want, text)
		}
	}
	if err := a.Balance(); err != nil {
		t.Errorf("balance: %v", err)
	}
	a.Lost++
	if err := a.Balance(); err == nil || !strings.Contains(err.Error(), "expected 100 rows, but stored 50") {
		t.Errorf("balance of an account that does not add up: %v", err)
	}
}

// Ten million rows, of which each message holds one, are the most that the rows
// of a lake cost; 16 bytes each must do.
func TestTenMillionRowsFitInMemory(t *testing.T) {
	b := NewBuilder()
	const rows = 10_000_000
	for i := range uint64(rows) {
		b.Stored(Row{Epoch: testEpoch, Hook: "resid_post", Seq: 3 * i, Row: uint32(i % 16)})
	}
	c := b.last
	if used := cap(c.set.sorted) + cap(c.set.tail); used > 3*rows {
		t.Errorf("%d rows use room for %d spans", rows, used)
	}
	if a := b.Finish(); a.Early != rows {
		t.Errorf("%d rows are early, want %d", a.Early, rows)
	}
}
