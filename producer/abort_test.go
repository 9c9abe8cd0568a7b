package producer

import (
	"errors"
	"testing"
	"time"

	"sonde/bus"
	"sonde/ring2"
	"sonde/schema"
)

// ask sends an abort command as a detector does.
func (w *world) ask(tenant string, command []byte) schema.AbortReply {
	w.Helper()
	data, err := w.bus.Request(deadline(w.T), schema.AbortSubject(tenant, "engine", 0), command)
	if err != nil {
		w.Fatal(err)
	}
	reply, err := schema.ParseAbortReply(data)
	if err != nil {
		w.Fatal(err)
	}
	return reply
}

func TestAnAbortReachesTheRequestThatItMeansAndNoOther(t *testing.T) {
	w := newWorld(t, Options{Policy: everything()})
	s := newFakeSession()
	var asked []ring2.Abort
	s.abort = func(a ring2.Abort) (ring2.AbortOutcome, uint32, error) {
		asked = append(asked, a)
		if a.Number == 3 {
			return 0, 0, ring2.ErrEngineGone
		}
		return ring2.AbortStopped, 17, nil
	}
	e := newEngine(s, testEntries)
	done := w.attach(s)
	e.open(1, "acme", 1)
	e.open(2, "other", 1)
	e.open(3, "acme", 1)
	e.finish(3)
	until(t, "all is read", func() bool { return s.ReleaseSeq() == 6 })
	command := schema.AbortCommand{Epoch: testEpoch, Number: 1, Sample: 2, EngineID: "engine-1", Position: 9,
		ExpiresWallNS: time.Now().UnixNano() + 1e9, AlertID: "a"}
	with := func(change func(*schema.AbortCommand)) []byte {
		c := command
		change(&c)
		return c.Encode()
	}
	if r := w.ask("acme", command.Encode()); r.Outcome != schema.AbortStopped || r.FinalLength != 17 {
		t.Errorf("reply %+v", r)
	}
	want := ring2.Abort{Epoch: testEpoch, Number: 1, Sample: 2, EngineID: "engine-1", Position: 9,
		ExpiresWallNS: uint64(command.ExpiresWallNS)}
	if len(asked) != 1 || asked[0] != want {
		t.Errorf("asked %+v, want %+v", asked, want)
	}
	for name, data := range map[string][]byte{
		"another epoch":           with(func(c *schema.AbortCommand) { c.Epoch++ }),
		"another tenant's":        with(func(c *schema.AbortCommand) { c.Number = 2 }),
		"a number that never was": with(func(c *schema.AbortCommand) { c.Number = 77 }),
	} {
		if r := w.ask("acme", data); r.Outcome != schema.AbortUnknown {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if r := w.ask("acme", []byte("nonsense")); r.Outcome != schema.AbortError || r.Error == "" {
		t.Errorf("nonsense: %+v", r)
	}
	if len(asked) != 1 {
		t.Errorf("the engine was asked %+v", asked)
	}
	if r := w.ask("acme", with(func(c *schema.AbortCommand) { c.Number = 3 })); r.Outcome != schema.AbortError {
		t.Errorf("an engine that is gone: %+v", r)
	}
	served := schema.AbortSubject("acme", "engine", 0)
	for _, subject := range []string{schema.AbortSubject("nobody", "engine", 0), served + ".x"} {
		if _, err := w.bus.Request(deadline(t), subject, command.Encode()); !errors.Is(err, bus.ErrNoReply) {
			t.Errorf("%s: %v", subject, err)
		}
	}
	e.bye(w, done)
	if r := w.ask("acme", command.Encode()); r.Outcome != schema.AbortUnknown {
		t.Errorf("after the end: %+v", r)
	}
	w.stop()
	if _, err := w.bus.Request(deadline(t), served, nil); !errors.Is(err, bus.ErrNoReply) {
		t.Errorf("after the agent: %v", err)
	}
}
