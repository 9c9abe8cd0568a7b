package audit

import (
	"context"
	"strings"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/consumers/materializer"
	"sonde/schema"
)

const testEpoch = 0xabcdef0123456789

// rig is a bus and a lake, with one engine whose only hook is resid_post of layer 0.
type rig struct {
	*testing.T
	bus  *bustest.Bus
	lake string
	prev map[schema.Kind]schema.Cursor
}

func newRig(t *testing.T) *rig {
	r := &rig{T: t, bus: bustest.New(), lake: t.TempDir(), prev: map[schema.Kind]schema.Cursor{}}
	t.Cleanup(func() { r.bus.Close() })
	r.facts(schema.LedgerRow{Seq: 1, Fact: schema.FactLayout, Layout: 7, Layer: -1,
		Detail: `[{"hook":"resid_post","layer":0}]`})
	return r
}

func (r *rig) header(kind schema.Kind, hook string, layer int) schema.Header {
	return schema.Header{Kind: kind, Tenant: "acme", Engine: "llm", Rank: 1, Epoch: testEpoch, Hook: hook, Layer: layer,
		DType: "f32", Shape: []int{1}, Model: "m", PolicyVersion: "0000000000000001", Prev: r.prev[kind]}
}

func (r *rig) publish(h schema.Header, data []byte, err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
	r.prev[h.Kind] = h.Last()
	done := make(chan error, 1)
	err = r.bus.Publish(r.Context(), bus.Message{Subject: schema.Subject(h), ID: schema.MessageID(h), Data: data},
		func(_ uint64, err error) { done <- err })
	if err == nil {
		err = <-done
	}
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) facts(rows ...schema.LedgerRow) {
	r.Helper()
	h := r.header(schema.KindLedger, "-", -1)
	h.DType, h.Shape = "", nil
	for _, f := range rows {
		h.AddRow(f.Seq, f.Row)
	}
	data, err := schema.EncodeLedgerChain(h, rows)
	r.publish(h, data, err)
}

// expect says that a capture has count rows.
func (r *rig) expect(step, capture uint64, count int32) {
	r.Helper()
	r.facts(schema.LedgerRow{Seq: step, Fact: schema.FactExpected, Number: 5, Request: "r-5", Count: count, Stride: 1,
		Layout: 7, Entries: "0", Rows: uint64(count), Outcome: schema.OutcomeCaptured, CaptureSeq: capture, Layer: -1})
}

func (r *rig) vectors(capture uint64, rows ...uint32) {
	r.Helper()
	h := r.header(schema.KindVectors, "resid_post", 0)
	enc, err := schema.NewVectorEncoder(h)
	if err != nil {
		r.Fatal(err)
	}
	for _, row := range rows {
		h.AddRow(capture, row)
		v := schema.VectorRow{Seq: capture, Row: row, Number: 5, Request: "r-5", Position: int32(row), Vec: make([]byte, 4)}
		if err := enc.Append(v); err != nil {
			r.Fatal(err)
		}
	}
	data, _, err := enc.Encode(h.Prev)
	r.publish(h, data, err)
}

// store runs a materializer until the lake has all that is on the bus.
func (r *rig) store() {
	r.Helper()
	m, err := materializer.New(materializer.Options{Bus: r.bus, Lake: r.lake, CommitInterval: 5 * time.Millisecond})
	if err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	info, err := r.bus.Info(ctx, 0)
	if err != nil {
		r.Fatal(err)
	}
	for m.Committed(0).Next <= info.Last {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; err != nil {
		r.Fatal(err)
	}
}

// audit runs an audit while a stage tells counts.
func (r *rig) audit(counts ...schema.StageCounts) (*Report, string) {
	r.Helper()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			for _, c := range counts {
				data, err := c.Encode()
				if err != nil {
					panic(err)
				}
				r.bus.Broadcast(schema.CountsSubject, data)
			}
			r.bus.Broadcast(schema.CountsSubject, []byte(`{"version":9}`)) // a stranger
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	report, err := Run(r.Context(), Options{Lake: r.lake, Bus: r.bus, Listen: 200 * time.Millisecond})
	if err != nil {
		r.Fatal(err)
	}
	var page strings.Builder
	if err := report.Page(&page, time.Now()); err != nil {
		r.Fatal(err)
	}
	return report, page.String()
}

func TestEachRowIsInOnePlace(t *testing.T) {
	r := newRig(t)
	r.expect(10, 11, 2)
	r.vectors(11, 0, 1)
	r.store()
	r.expect(12, 13, 3)
	r.vectors(13, 0)
	r.vectors(13, 0, 1) // published again by the next agent, with one more
	engine := schema.StageCounts{Stage: schema.StageEngine, Member: "a", Engine: "llm", Rank: 1, Epoch: "abcdef0123456789",
		ToSeq: 20, Rows: map[string]uint64{"captured": 9}, WallNS: time.Now().UnixNano()}
	report, page := r.audit(engine)
	if len(report.Epochs) != 1 {
		t.Fatalf("epochs %+v", report.Epochs)
	}
	e := report.Epochs[0]
	a := e.Account
	if a.Expected != 5 || a.Stored != 2 || a.OnBus != 2 || a.InFlight != 1 || e.Untold != 4 ||
		e.Engine != "llm" || e.Rank != 1 {
		t.Errorf("account %+v of epoch %+v\n%s", a, e, page)
	}
	if err := report.Balance(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"engine llm, rank 1, epoch abcdef0123456789, open", "+ on the bus", "captured 9",
		"3 messages behind the lake", "offered and not told of yet"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
}

func TestARowThatVanishedFromTheBusIsFound(t *testing.T) {
	r := newRig(t)
	r.expect(10, 11, 2)
	r.vectors(11, 0, 1)
	r.store()
	r.expect(12, 13, 1) // and no vectors: somebody lost them after they were acknowledged
	r.facts(schema.LedgerRow{Seq: 90, Fact: schema.FactClosed, Layer: -1})
	report, page := r.audit()
	if err := report.Balance(); err == nil || !strings.Contains(err.Error(), "neither stored nor explained") {
		t.Errorf("balance: %v\n%s", err, page)
	}
	if !strings.Contains(page, "UNEXPLAINED") || !strings.Contains(page, "none was heard") {
		t.Errorf("the page does not say so:\n%s", page)
	}
}

func TestMessagesTrimmedBeforeTheLakeHadThemAreFound(t *testing.T) {
	r := newRig(t)
	r.expect(10, 11, 2)
	r.store()
	r.vectors(11, 0)
	r.vectors(11, 1)
	info, err := r.bus.Info(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.bus.Trim(t.Context(), 0, info.Last); err != nil {
		t.Fatal(err)
	}
	report, _ := r.audit()
	if err := report.Balance(); err == nil || !strings.Contains(err.Error(), "1 messages were trimmed") {
		t.Errorf("balance: %v", err)
	}
}
