package lakehouse

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sonde/lakehouse/table"
	"sonde/schema"
)

var ctx = context.Background()

func TestAFolderWithoutALakeSaysWhatToDo(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "absent")} {
		if _, err := Open(dir); !errors.Is(err, ErrNoLake) || !strings.Contains(err.Error(), "sonde run") {
			t.Errorf("%v", err)
		}
	}
}

func TestOpenAndEndOfARequestBecomeOne(t *testing.T) {
	b := newBuilder(t)
	b.requests(1, schema.RequestRow{Seq: 1, Event: schema.EventOpen, Number: 7, Request: "a", EngineID: "e7", Sample: 1,
		Adapter: "lora", TraceParent: "00", Labels: map[string]string{"language": "de"}, OptIn: true, PromptTokens: 5,
		MaxTokens: 9, WallNS: 200},
		schema.RequestRow{Seq: 2, Event: schema.EventOpen, Number: 8, Request: "b", WallNS: 100})
	b.commit()
	b.requests(1, schema.RequestRow{Seq: 3, Event: schema.EventEnd, Number: 7, Request: "a", Sample: 1,
		GeneratedTokens: 4, CachedTokens: 3, Passes: 2, Reason: "stop", WallNS: 300})
	b.requests(2, schema.RequestRow{Seq: 3, Event: schema.EventEnd, Number: 7, Request: "c", Reason: "abort", WallNS: 50})
	l := b.lake()
	var got []Request
	read := func(q Query) {
		got = nil
		if err := l.Requests(ctx, q, func(r *Request) error { got = append(got, *r); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	read(Query{})
	if len(got) != 3 || got[0].Request != "c" || got[1].Request != "b" || got[2].Request != "a" {
		t.Fatalf("got %+v", got)
	}
	if got[0].Opened || !got[0].Ended || !got[1].Opened || got[1].Ended {
		t.Errorf("events of c and b: %+v, %+v", got[0], got[1])
	}
	a := got[2]
	want := Request{Origin: a.Origin, Number: 7, Request: "a", EngineID: "e7", Sample: 1, Adapter: "lora",
		TraceParent: "00", Labels: a.Labels, OptIn: true, PromptTokens: 5, MaxTokens: 9, GeneratedTokens: 4, CachedTokens: 3,
		Passes: 2,
		Reason: "stop", Opened: true, Ended: true, OpenNS: 200, EndNS: 300}
	if !maps.Equal(a.Labels, map[string]string{"language": "de"}) || a.Epoch != 1 || a.Model != "m" || a.Tenant != "acme" {
		t.Errorf("a is %+v", a)
	}
	if a.Labels, want.Labels = nil, nil; !equalRequests(a, want) {
		t.Errorf("a is %+v, want %+v", a, want)
	}
	one := 1
	if read(Query{Sample: &one}); len(got) != 1 || got[0].Request != "a" {
		t.Errorf("sample 1: %+v", got)
	}
	epoch := uint64(2)
	if read(Query{Epoch: &epoch}); len(got) != 1 || got[0].Request != "c" {
		t.Errorf("epoch 2: %+v", got)
	}
}

func equalRequests(a, b Request) bool {
	return a.Origin == b.Origin && a.Number == b.Number && a.Request == b.Request && a.EngineID == b.EngineID &&
		a.Sample == b.Sample && a.Adapter == b.Adapter && a.TraceParent == b.TraceParent && a.OptIn == b.OptIn &&
		a.PromptTokens == b.PromptTokens && a.MaxTokens == b.MaxTokens && a.GeneratedTokens == b.GeneratedTokens &&
		a.CachedTokens == b.CachedTokens && a.Passes == b.Passes && a.Reason == b.Reason && a.Opened == b.Opened &&
		a.Ended == b.Ended && a.OpenNS == b.OpenNS && a.EndNS == b.EndNS
}

func TestAReaderStaysAtItsCommitUntilItRefreshes(t *testing.T) {
	b := newBuilder(t)
	b.vectors(1, "h", 2, "u8", []int{2}, row(0, 1, 2))
	l := b.lake()
	b.vectors(1, "h", 2, "u8", []int{2}, row(1, 3, 4))
	b.commit()
	count := func() (n int) {
		if err := l.Vectors(ctx, Query{}, func(*Vector) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	version := l.Version()
	if n := count(); n != 1 {
		t.Errorf("%d rows before Refresh", n)
	}
	if err := l.Refresh(); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 2 || l.Version() != version+1 || l.Sources()[0].Next != 3 {
		t.Errorf("%d rows after Refresh, version %d, source %+v", n, l.Version(), l.Sources())
	}
}

func TestErrorsOfCallbacksAndContextsEndAScanAsTheyAre(t *testing.T) {
	b := newBuilder(t)
	b.vectors(1, "h", 2, "u8", []int{2}, row(0, 1, 2), row(1, 1, 2))
	b.vectors(1, table.TokenHook, -1, "i32", nil, row(0, 1, 0, 0, 0))
	b.requests(1, schema.RequestRow{Seq: 1, Event: schema.EventOpen, Request: "r"})
	b.facts(1, layout())
	l := b.lake()
	own := errors.New("own")
	calls := 0
	fail := func() error { calls++; return own }
	for name, err := range map[string]error{
		"vectors":  l.Vectors(ctx, Query{}, func(*Vector) error { return fail() }),
		"tokens":   l.Tokens(ctx, Query{}, func(*Token) error { return fail() }),
		"requests": l.Requests(ctx, Query{}, func(*Request) error { return fail() }),
		"ledger":   l.Ledger(ctx, Query{}, func(*Fact) error { return fail() }),
	} {
		if err != own {
			t.Errorf("%s: %v", name, err)
		}
	}
	if calls != 4 {
		t.Errorf("%d calls; want one for each table", calls)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := l.Vectors(ended, Query{}, func(*Vector) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestDamagedDataFilesAreErrorsThatNameThem(t *testing.T) {
	b := newBuilder(t)
	b.vectors(1, "h", 2, "u8", []int{2}, row(0, 1, 2))
	b.facts(1, layout())
	l := b.lake()
	if err := l.CheckFiles(ctx); err != nil {
		t.Fatal(err)
	}
	for _, f := range l.state.Load().Files {
		path := filepath.Join(b.dir, f.Path)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		other := slices.Clone(good)
		for i := range other {
			other[i] ^= 0x55
		}
		flipped := slices.Clone(good)
		flipped[10] ^= 1
		for what, data := range map[string][]byte{"cut": good[:len(good)-1], "other": other, "empty": {}} {
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := l.Account(ctx)
			if err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("%s, %s: %v", f.Table, what, err)
			}
		}
		if err := os.WriteFile(path, flipped, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := l.CheckFiles(ctx); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s, one bit: %v", f.Table, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := l.CheckFiles(ctx); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s, removed: %v", f.Table, err)
		}
		if err := os.WriteFile(path, good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDetectionsAreFoundByTheEpochOfTheEngine(t *testing.T) {
	b := newBuilder(t)
	b.add(schema.EncodeDetections(header(99), []schema.DetectionRow{{Seq: 1, ID: "x", EngineEpoch: 5, Request: "r"},
		{Seq: 2, ID: "y", EngineEpoch: 6, Request: "r"}}))
	l := b.lake()
	epoch := uint64(5)
	var ids []string
	err := l.Detections(ctx, Query{Request: "r", Epoch: &epoch}, func(d *schema.DetectionRow) error {
		ids = append(ids, d.ID)
		return nil
	})
	if err != nil || !slices.Equal(ids, []string{"x"}) {
		t.Errorf("%v, %v", ids, err)
	}
}

func TestTheAccountOfALakeAddsUp(t *testing.T) {
	b := newBuilder(t)
	b.vectors(1, "h", 2, "u8", []int{2}, row(0, 1, 2), row(1, 3, 4))
	dropped := expected(2, 1)
	dropped.Outcome, dropped.Reason, dropped.CaptureSeq = schema.OutcomeDropped, "no_space", 0
	b.facts(1, layout(), expected(0, 1), expected(1, 1), dropped, schema.LedgerRow{Seq: 1 << 40, Fact: schema.FactClosed})
	a, err := b.lake().Account(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Balance(); err != nil || a.Expected != 3 || a.Stored != 2 || a.Dropped["no_space"] != 1 || !a.AtRest() {
		t.Errorf("%v\n%s", err, a)
	}
}
