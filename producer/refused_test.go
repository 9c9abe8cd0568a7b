package producer

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/deadletter"
	"sonde/schema"
)

// refuse refuses messages of a subject.
func refuse(part string) func(bus.Message, int) bustest.Fate {
	return func(m bus.Message, _ int) bustest.Fate {
		if strings.Contains(m.Subject, part) {
			return bustest.Refuse
		}
		return bustest.Take
	}
}

func TestRefusedMessagesLieInTheDirectoryAndTheirRowsInTheLedger(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dead")
	w := newWorld(t, Options{Policy: everything(), DeadLetterDir: dir, BatchBytes: 300})
	w.bus.OnPublish(refuse(".vectors.resid_post.0"))
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	e.open(1, "acme", 3)
	e.open(2, "acme", 3)
	e.step(prefill(1, 3), prefill(2, 3))
	for i := range uint32(10) {
		e.step(decode(1, 3+i), decode(2, 3+i))
	}
	e.bye(w, done)
	got := w.balanced()
	if a := got.account; a.DeadLettered != 26 || a.Stored != a.Expected-26 {
		t.Errorf("account %v", a)
	}
	if c := w.agent.Snapshot().Total; c.DeadLettered != 26 {
		t.Errorf("live ledger %+v", c)
	}
	rows := 0
	files := map[string]bool{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range entries {
		files[f.Name()] = true
		letter, err := deadletter.Read(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		b, err := schema.Decode(letter.Data)
		if err != nil {
			t.Fatal(err)
		}
		if letter.Subject != schema.Subject(b.Header) || letter.ID != schema.MessageID(b.Header) || letter.Reason == "" {
			t.Errorf("letter %s, %s, %s", letter.Reason, letter.Subject, letter.ID)
		}
		rows += b.Len()
	}
	if rows != 26 || len(files) < 2 {
		t.Errorf("%d rows in %d files", rows, len(files))
	}
	for _, f := range got.find(schema.FactDeadLetter) {
		var detail struct{ File string }
		if err := json.Unmarshal([]byte(f.Detail), &detail); err != nil || !files[detail.File] || f.Hook != "resid_post" {
			t.Errorf("fact %+v", f)
		}
	}
	// The next agent keeps the letters, and counts them against its bound.
	d, err := deadletter.Open(dir, math.MaxInt64)
	if err != nil {
		t.Fatal(err)
	}
	if n, bytes := d.Size(); n != len(files) || bytes < 26*8 {
		t.Errorf("%d files of %d bytes", n, bytes)
	}
}

func TestWhatFitsInNoDirectoryIsDroppedAndNamed(t *testing.T) {
	for name, o := range map[string]Options{
		"no directory": {},
		"full":         {DeadLetterDir: t.TempDir(), DeadLetterMaxBytes: 10},
	} {
		o.Policy = everything()
		w := newWorld(t, o)
		w.bus.OnPublish(refuse(".vectors.resid_post.1"))
		s := newFakeSession()
		e := newEngine(s, testEntries)
		done := w.attach(s)
		e.open(1, "acme", 1)
		e.step(decode(1, 0))
		e.bye(w, done)
		if a := w.balanced().account; a.Dropped[reasonDeadLetterFull] != 1 {
			t.Errorf("%s: %v", name, a)
		}
		if c := w.agent.Snapshot().Total; c.Dropped[reasonDeadLetterFull] != 1 {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// Where even the facts of a tenant are refused, the epoch still comes to its end.
func TestARefusedLedgerDoesNotHoldUpTheEpoch(t *testing.T) {
	w := newWorld(t, Options{Policy: everything(), DeadLetterDir: t.TempDir()})
	w.bus.OnPublish(refuse(".acme."))
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	e.open(1, "acme", 1)
	e.open(2, "other", 1)
	e.step(decode(1, 0), decode(2, 0))
	e.bye(w, done)
	if a := w.balanced().account; a.Stored != 4 || a.Expected != 4 || !a.AtRest() {
		t.Errorf("account %v", a)
	}
}
