package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sonde/bus"
	"sonde/consumers/materializer"
	"sonde/deadletter"
	"sonde/lakehouse"
	"sonde/lakehouse/account"
	"sonde/schema"
)

const deadRows = 5

// deadWorld is a broker, a dataset whose ledger has five rows as dead-lettered, and
// the letter with them.
type deadWorld struct {
	*testing.T
	dir, config, lake string
	bus               bus.Bus
	letter            string // name of its file
}

func newDeadWorld(t *testing.T) *deadWorld {
	dir := t.TempDir()
	e, err := bus.StartEmbedded(bus.EmbeddedOptions{StoreDir: filepath.Join(dir, "bus"), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	w := &deadWorld{T: t, dir: dir, config: filepath.Join(dir, "sonde.yaml"),
		lake: filepath.Join(dir, "lake")}
	text := fmt.Sprintf("bus: {url: %q}\nagent: {dead_letter: {dir: %s/a}}\n"+
		"materializer: {dead_letter_dir: %s/m, lake: %s}\n", e.URL(), dir, dir, w.lake)
	if err := os.WriteFile(w.config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if w.bus, err = bus.OpenNATS(t.Context(), bus.NATSOptions{URL: e.URL()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.bus.Close() })
	h := schema.Header{Kind: schema.KindVectors, Tenant: "acme", Engine: "e", Epoch: 0xdead, Hook: "h", Layer: 1,
		DType: "u8", Shape: []int{4}}
	enc, err := schema.NewVectorEncoder(h)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int32(deadRows) {
		v := schema.VectorRow{Seq: 7, Row: uint32(i), Number: 3, Request: "r", Position: i, Vec: []byte("abcd")}
		if err := enc.Append(v); err != nil {
			t.Fatal(err)
		}
	}
	data, h, err := enc.Encode(schema.Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	w.letter = w.keep("a", deadletter.Letter{From: deadletter.FromAgent, When: time.Unix(100, 0), Reason: "too large",
		Subject: schema.Subject(h), ID: schema.MessageID(h), Data: data})
	w.ledger(w.letter)
	return w
}

func (w *deadWorld) keep(folder string, l deadletter.Letter) string {
	w.Helper()
	f, err := deadletter.Open(filepath.Join(w.dir, folder), 1<<20)
	if err != nil {
		w.Fatal(err)
	}
	name, err := f.Put(l)
	if err != nil {
		w.Fatal(err)
	}
	return name
}

// ledger publishes what the agent said of the rows.
func (w *deadWorld) ledger(file string) {
	w.Helper()
	h := schema.Header{Tenant: "acme", Engine: "e", Epoch: 0xdead}
	fact := schema.LedgerRow{Seq: 6, Row: 2, Fact: schema.FactExpected, Number: 3, Request: "r", Count: deadRows,
		Stride: 1, Layout: 9, Entries: "0", Rows: deadRows, Outcome: schema.OutcomeCaptured, CaptureSeq: 7, Layer: -1}
	dead := fact
	dead.Seq, dead.Row, dead.Fact, dead.Hook, dead.Layer, dead.Detail = 7, 0, schema.FactDeadLetter, "h", 1,
		fmt.Sprintf(`{"file":%q}`, file)
	data, err := schema.EncodeLedger(h, []schema.LedgerRow{
		{Seq: 5, Fact: schema.FactLayout, Layout: 9, Layer: -1, Detail: `[{"hook":"h","layer":1,"shard":0}]`}, fact, dead,
		{Seq: 8, Row: 2, Fact: schema.FactClosed, Reason: "bye", Layer: -1}})
	if err != nil {
		w.Fatal(err)
	}
	done := make(chan error, 1)
	m := bus.Message{Subject: "sonde.v1.acme.e.0.ledger.-._", Data: data}
	if err := w.bus.Publish(w.Context(), m, func(_ uint64, err error) { done <- err }); err != nil {
		w.Fatal(err)
	}
	if err := <-done; err != nil {
		w.Fatal(err)
	}
}

// account materializes what is on the bus, and accounts for it.
func (w *deadWorld) account() *account.Account {
	w.Helper()
	m, err := materializer.New(materializer.Options{Bus: w.bus, Lake: w.lake, CommitInterval: 10 * time.Millisecond})
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	info, err := w.bus.Info(ctx, 0)
	if err != nil {
		w.Fatal(err)
	}
	for m.Committed(0).Next <= info.Last {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		w.Fatal(err)
	}
	lake, err := lakehouse.Open(w.lake)
	if err != nil {
		w.Fatal(err)
	}
	a, err := lake.Account(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	if err := a.Balance(); err != nil {
		w.Error(err)
	}
	return a
}

// sonde runs the command and checks its exit code.
func (w *deadWorld) sonde(code int, args ...string) (stdout, stderr string) {
	w.Helper()
	var out, errs bytes.Buffer
	args = append([]string{"deadletter", "--config", w.config}, args...)
	if got := run(args, &out, &errs); got != code {
		w.Errorf("sonde %v: exit code %d, want %d; it says %s%s", args, got, code, &out, &errs)
	}
	return out.String(), errs.String()
}

func TestALetterThatIsReplayedTwiceIsStoredOnceAndNoLongerDead(t *testing.T) {
	w := newDeadWorld(t)
	if a := w.account(); a.DeadLettered != deadRows || a.Stored != 0 {
		t.Fatalf("before the replay: %v", a)
	}
	for range 2 {
		if out, _ := w.sonde(exitOK, "replay", w.letter[:6]); !strings.Contains(out, "1 of 1 dead letters were published") {
			t.Errorf("replay says %s", out)
		}
		if a := w.account(); a.DeadLettered != 0 || a.Stored != deadRows || a.Duplicated != 0 {
			t.Errorf("after the replay: %v", a)
		}
	}
	w.sonde(exitOK, "replay", "--all", "--remove")
	if out, _ := w.sonde(exitOK, "list"); !strings.Contains(out, "there are no dead letters") {
		t.Errorf("after --remove: %s", out)
	}
	if a := w.account(); a.Stored != deadRows || a.Duplicated != 0 {
		t.Errorf("in the end: %v", a)
	}
}

func TestListAndShowSayWhatCanBeSaidOfEachLetter(t *testing.T) {
	w := newDeadWorld(t)
	nonsense := w.keep("m", deadletter.Letter{From: deadletter.FromMaterializer, When: time.Unix(200, 0),
		Reason: "not\x1b[31m Arrow", Subject: "sonde.v1.x", Position: 12, Data: bytes.Repeat([]byte("nonsense "), 60)})
	out, _ := w.sonde(exitOK, "list")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 3 || !strings.Contains(lines[1], w.letter) ||
		!strings.Contains(lines[2], nonsense) || strings.Contains(out, "\x1b") {
		t.Errorf("list says %q", out)
	}
	out, _ = w.sonde(exitOK, "show", w.letter)
	for _, want := range []string{"too large", "decoded      yes", `vectors of tenant "acme"`, "hook h layer 1", "request r",
		"position 4"} {
		if !strings.Contains(out, want) {
			t.Errorf("show does not say %q: %s", want, out)
		}
	}
	out, _ = w.sonde(exitOK, "show", nonsense)
	for _, want := range []string{"decoded      no", "position 12 of partition 0", "6e 6f 6e 73 65 6e 73 65",
		"and 284 more bytes"} {
		if !strings.Contains(out, want) {
			t.Errorf("show does not say %q: %s", want, out)
		}
	}
	if _, errs := w.sonde(exitFailed, "replay", "--all"); !strings.Contains(errs, "cannot read the message") {
		t.Errorf("replay of nonsense says %s", errs)
	}
	torn := filepath.Join(w.dir, "m", "torn.dead")
	if err := os.WriteFile(torn, []byte("SNDDEAD1 torn"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, errs := w.sonde(exitFailed, "list")
	if !strings.Contains(out, "cannot be read") || !strings.Contains(errs, "torn") {
		t.Errorf("a torn file: %s %s", out, errs)
	}
	out, _ = w.sonde(exitFailed, "list", "--json")
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		var l struct{ File, Reason, Error string }
		if err := json.Unmarshal([]byte(line), &l); err != nil || l.File == "" || l.Reason == "" == (l.Error == "") {
			t.Errorf("line %s: %v", line, err)
		}
	}
	w.sonde(exitFailed, "show", "torn")
	w.sonde(exitFailed, "show", "none")
	w.sonde(exitUsage, "replay")
}

// Who sees no disk hears of dead letters over the bus.
func TestDeadLettersAreToldOverTheBusAndStoredNowhere(t *testing.T) {
	w := newDeadWorld(t)
	heard := make(chan deadletter.Note, 1)
	stop, err := w.bus.Listen(deadletter.Subject, func(data []byte) {
		if n, err := deadletter.ReadNote(data); err == nil {
			heard <- n
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	before, err1 := w.bus.Info(t.Context(), 0)
	done := make(chan error, 1)
	err2 := w.bus.Publish(t.Context(), bus.Message{Subject: "sonde.v1.poison", Data: []byte("poison")},
		func(_ uint64, err error) { done <- err })
	if err := errors.Join(err1, err2, <-done); err != nil {
		t.Fatal(err)
	}
	w.account()
	n := <-heard
	if n.From != deadletter.FromMaterializer || n.Subject != "sonde.v1.poison" || n.Bytes != 6 || n.Reason == "" {
		t.Errorf("heard %+v", n)
	}
	if after, err := w.bus.Info(t.Context(), 0); err != nil || after.Last != before.Last+1 {
		t.Errorf("the stream went from %d to %d, %v", before.Last, after.Last, err)
	}
}
