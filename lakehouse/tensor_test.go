package lakehouse

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sonde/lakehouse/table"
	"sonde/schema"
)

var ofH = TensorQuery{Request: "r", Hook: "h", Layer: 2}

func mustTensor(t *testing.T, l *Lake, q TensorQuery) *Tensor {
	t.Helper()
	got, err := l.Tensor(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestATensorHasItsRowsInTheOrderOfPositions(t *testing.T) {
	b := newBuilder(t)
	b.vectors(1, "h", 2, "u8", []int{2}, row(1, 3, 4), row(2, 5, 6))
	b.commit()
	b.vectors(1, "h", 2, "u8", []int{2}, row(0, 1, 2))
	b.vectors(1, "h", 3, "u8", []int{2}, row(0, 9, 9))
	b.vectors(1, table.TokenHook, -1, "i32", nil, row(0, 7, 0, 0, 0x80), row(1, 8, 0, 0, 0))
	l := b.lake()
	got := mustTensor(t, l, ofH)
	if string(got.Raw) != "\x01\x02\x03\x04\x05\x06" || !slices.Equal(got.Positions, []int32{0, 1, 2}) ||
		!slices.Equal(got.Shape, []int{3, 2}) || got.DType != "u8" || got.Epoch != 1 || got.Number != 1 ||
		got.Missing != nil {
		t.Errorf("got %+v", got)
	}
	q := ofH
	q.From, q.To = 1, 2
	if got := mustTensor(t, l, q); string(got.Raw) != "\x03\x04" || !slices.Equal(got.Positions, []int32{1}) {
		t.Errorf("positions [1, 2): %+v", got)
	}
	got = mustTensor(t, l, TensorQuery{Request: "r", Hook: table.TokenHook, Layer: -1})
	if string(got.Raw) != "\x07\x00\x00\x80\x08\x00\x00\x00" || got.DType != "i32" || !slices.Equal(got.Shape, []int{2}) {
		t.Errorf("tokens: %+v", got)
	}
	for _, r := range [][2]int{{-1, 0}, {3, 3}, {5, 2}, {0, -1}} {
		q.From, q.To = r[0], r[1]
		if _, err := l.Tensor(ctx, q); err == nil {
			t.Errorf("positions %v were read", r)
		}
	}
}

func TestTheLastPassThatWasNotRejectedCounts(t *testing.T) {
	b := newBuilder(t)
	pass := func(p, pass int, vec ...byte) schema.VectorRow {
		r := row(p, vec...)
		r.Seq, r.Pass = uint64(100*pass+p+10), int32(pass)
		return r
	}
	amend := func(p, pass int, verdict string) schema.LedgerRow {
		return schema.LedgerRow{Seq: 500, Fact: schema.FactAmend, Number: 1, Request: "r", Position: int32(p), Count: 1,
			Stride: 1, Pass: int32(pass), Reason: verdict}
	}
	b.vectors(1, "h", 2, "u8", []int{2}, row(0, 0, 0), row(1, 1, 0), row(2, 2, 0), row(3, 3, 0), row(4, 4, 0),
		pass(1, 1, 1, 1), pass(2, 1, 2, 1), pass(3, 1, 3, 1), pass(2, 2, 2, 2))
	again := expected(1, 3)
	again.Pass, again.CaptureSeq = 1, 111
	b.facts(1, layout(), expected(0, 5), again, amend(2, 2, "rejected"), amend(3, 1, "accepted"), amend(4, 0, "phantom"))
	got := mustTensor(t, b.lake(), ofH)
	if string(got.Raw) != "\x00\x00\x01\x01\x02\x01\x03\x01" || !slices.Equal(got.Passes, []int32{0, 1, 1, 1}) {
		t.Errorf("got %+v", got)
	}
	q := ofH
	q.From, q.To = 0, 5 // position 4 is phantom: not a gap
	if got := mustTensor(t, b.open(), q); len(got.Positions) != 4 {
		t.Errorf("got %+v", got)
	}
}

func TestGapsAreNamedWithTheirReasonsAndNeverFilled(t *testing.T) {
	b := newBuilder(t)
	b.vectors(1, "h", 2, "u8", []int{2}, row(0, 1, 2), row(9, 1, 2))
	fact := func(name string, p int) schema.LedgerRow {
		f := expected(p, 1)
		f.Fact, f.Outcome = name, ""
		return f
	}
	dropped := expected(1, 2)
	dropped.Outcome, dropped.Reason, dropped.CaptureSeq = schema.OutcomeDropped, "no_space", 0
	budget := fact(schema.FactDropped, 3)
	budget.Reason = "budget"
	missing := fact(schema.FactMissing, 4)
	missing.Reason, missing.CaptureSeq = "stall", 0
	aborted := schema.LedgerRow{Seq: 15, Fact: schema.FactAborted, CaptureSeq: 15, Rows: 1}
	lost := schema.LedgerRow{Seq: 16, Fact: schema.FactLost, CaptureSeq: 16, Rows: 1}
	dead := schema.LedgerRow{Seq: 17, Fact: schema.FactDeadLetter, CaptureSeq: 17, Count: 1, Stride: 1, Rows: 1, Hook: "h",
		Layer: 2, Reason: "too_large"}
	full := dead
	full.Seq, full.Fact, full.CaptureSeq, full.Reason = 18, schema.FactDropped, 18, "dead_letter_full"
	b.facts(1, layout(), expected(0, 1), dropped, expected(3, 1), budget, missing, expected(5, 1), aborted,
		expected(6, 1), lost, expected(7, 1), dead, expected(8, 1), full, expected(9, 1), expected(10, 1))
	l := b.lake()
	_, err := l.Tensor(ctx, ofH)
	var incomplete *IncompleteError
	if !errors.As(err, &incomplete) {
		t.Fatalf("%v", err)
	}
	want := []Gap{{1, 3, "dropped by the ring: no_space"}, {3, 4, "dropped by the agent: budget"},
		{4, 5, "never reached the ring: stall"}, {5, 6, "the engine's copy failed"}, {6, 7, "lost when the engine died"},
		{7, 8, "in a dead-letter directory: too_large"}, {8, 9, "dropped: dead_letter_full"},
		{10, 11, "on its way: captured, and not yet in the lake"}}
	if !slices.Equal(incomplete.Gaps, want) || incomplete.Rows != 2 {
		t.Errorf("%d rows, gaps %v", incomplete.Rows, incomplete.Gaps)
	}
	for _, text := range []string{"[1, 3): dropped by the ring: no_space", "request r", "allow partial"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
	q := ofH
	q.AllowPartial = true
	got := mustTensor(t, l, q)
	if !slices.Equal(got.Positions, []int32{0, 9}) || len(got.Raw) != 4 || !slices.Equal(got.Missing, want) {
		t.Errorf("got %+v", got)
	}
	q.AllowPartial, q.From = false, 9
	q.To = 10
	if got := mustTensor(t, l, q); !slices.Equal(got.Positions, []int32{9}) {
		t.Errorf("from 9: %+v", got)
	}
	b.facts(1, schema.LedgerRow{Seq: 1 << 40, Fact: schema.FactClosed})
	q = ofH
	q.From, q.To = 9, 12
	_, err = b.lake().Tensor(ctx, q)
	if !errors.As(err, &incomplete) || !slices.Equal(incomplete.Gaps, []Gap{{10, 11, "not explained by the ledger"},
		{11, 12, "not captured: not chosen by the policy, or never computed"}}) {
		t.Errorf("%v", err)
	}
}

func TestAPrefixThatCameFromTheCacheIsReportedAsSuch(t *testing.T) {
	b := newBuilder(t)
	b.vectors(1, "h", 2, "u8", []int{2}, row(3, 1, 2), row(4, 3, 4))
	sampled := row(4, 1, 2)
	b.vectors(1, "logits", -1, "u8", []int{2}, sampled)
	both := expected(4, 1)
	both.Entries = "0-1"
	b.facts(1, layout(), expected(3, 1), both)
	b.requests(1, schema.RequestRow{Seq: 1, Event: schema.EventOpen, Number: 1, Request: "r", PromptTokens: 5},
		schema.RequestRow{Seq: 9, Event: schema.EventEnd, Number: 1, Request: "r", CachedTokens: 3})
	l := b.lake()
	_, err := l.Tensor(ctx, ofH)
	var incomplete *IncompleteError
	if !errors.As(err, &incomplete) || incomplete.CachedTokens != 3 || len(incomplete.Gaps) != 1 ||
		incomplete.Gaps[0].From != 0 || incomplete.Gaps[0].To != 3 ||
		!strings.Contains(incomplete.Gaps[0].Reason, "prefix cache") {
		t.Errorf("%v", err)
	}
	q := ofH
	q.From = 3
	if got := mustTensor(t, l, q); len(got.Positions) != 2 {
		t.Errorf("got %+v", got)
	}
	// The hook that only has rows of sampled tokens lacks nothing.
	if got := mustTensor(t, l, TensorQuery{Request: "r", Hook: "logits", Layer: -1}); len(got.Positions) != 1 {
		t.Errorf("got %+v", got)
	}
}

func TestPositionsThatThePolicyDidNotChooseAreNoGapUnlessAskedFor(t *testing.T) {
	b := newBuilder(t)
	b.vectors(1, "h", 2, "u8", []int{2}, row(0, 1, 2), row(2, 3, 4), row(4, 5, 6))
	every := expected(0, 3)
	every.Stride = 2
	b.facts(1, layout(), every)
	l := b.lake()
	if got := mustTensor(t, l, ofH); !slices.Equal(got.Positions, []int32{0, 2, 4}) || got.Missing != nil {
		t.Errorf("got %+v", got)
	}
	q := ofH
	q.To = 4
	var incomplete *IncompleteError
	if _, err := l.Tensor(ctx, q); !errors.As(err, &incomplete) || len(incomplete.Gaps) != 2 ||
		!strings.Contains(incomplete.Gaps[0].Reason, "not chosen by the policy") {
		t.Errorf("%v", err)
	}
}

func TestPositionsOfWhichOnlyFiguresAreStoredSaySo(t *testing.T) {
	b := newBuilder(t)
	h := header(1)
	h.Hook, h.Layer, h.DType, h.Shape = "h", 2, "u8", []int{2}
	b.add(schema.EncodeStats(h, []schema.StatsRow{{Seq: 10, Number: 1, Request: "r"}}))
	b.facts(1, layout(), expected(0, 1))
	b.requests(1, schema.RequestRow{Seq: 1, Event: schema.EventOpen, Number: 1, Request: "r"})
	var incomplete *IncompleteError
	_, err := b.lake().Tensor(ctx, ofH)
	if !errors.As(err, &incomplete) || !strings.Contains(incomplete.Gaps[0].Reason, "figures") {
		t.Errorf("%v", err)
	}
}

func TestARequestIDThatWasUsedTwiceMustBeMadeClear(t *testing.T) {
	b := newBuilder(t)
	b.vectors(1, "h", 2, "u8", []int{2}, row(0, 1, 1))
	b.vectors(2, "h", 2, "u8", []int{2}, row(0, 2, 2))
	second := row(0, 3, 3)
	second.Seq, second.Number = 77, 5
	b.vectors(2, "h", 2, "u8", []int{2}, second)
	l := b.lake()
	_, err := l.Tensor(ctx, ofH)
	var ambiguous *AmbiguousError
	if !errors.As(err, &ambiguous) || !slices.Equal(ambiguous.Sequences, []Sequence{{1, 1}, {2, 1}, {2, 5}}) ||
		!strings.Contains(err.Error(), "0000000000000002/5") {
		t.Fatalf("%v", err)
	}
	epoch, number := uint64(2), uint64(5)
	q := ofH
	q.Epoch = &epoch
	if _, err := l.Tensor(ctx, q); !errors.As(err, &ambiguous) {
		t.Errorf("%v", err)
	}
	q.Number = &number
	if got := mustTensor(t, l, q); string(got.Raw) != "\x03\x03" {
		t.Errorf("got %+v", got)
	}
}

func TestWhatIsNotThereListsWhatIs(t *testing.T) {
	b := newBuilder(t)
	b.vectors(1, "h", 2, "u8", []int{2}, row(0, 1, 1))
	b.vectors(1, table.TokenHook, -1, "i32", nil, row(0, 1, 0, 0, 0))
	l := b.lake()
	q := ofH
	q.Layer = 3
	_, err := l.Tensor(ctx, q)
	want := "h layers 2 sample 0, token_ids layers -1 sample 0"
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v", err)
	}
	q.Request = "absent"
	if _, err := l.Tensor(ctx, q); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestRowsOfDifferentShapesAreAnError(t *testing.T) {
	b := newBuilder(t)
	b.vectors(1, "h", 2, "u8", []int{2}, row(0, 1, 1))
	b.vectors(1, "h", 2, "u8", []int{1}, row(1, 1))
	if _, err := b.lake().Tensor(ctx, ofH); err == nil || !strings.Contains(err.Error(), "differ") {
		t.Errorf("%v", err)
	}
}
