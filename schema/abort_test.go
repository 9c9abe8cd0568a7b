package schema

import (
	"math"
	"strings"
	"testing"
)

func TestAbortMessagesComeBackAsTheyWere(t *testing.T) {
	for _, want := range []AbortCommand{
		{Epoch: 1, ExpiresWallNS: 1},
		{Epoch: math.MaxUint64, Number: math.MaxUint64, Sample: math.MaxInt32, EngineID: "cmpl-\"ü\n",
			Position: math.MaxInt32, ExpiresWallNS: math.MaxInt64, AlertID: strings.Repeat("a", maxAbortTextBytes)},
	} {
		got, err := ParseAbortCommand(want.Encode())
		if err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	for _, want := range []AbortReply{{Outcome: AbortStopped, FinalLength: 17}, {Outcome: AbortFinished},
		{Outcome: AbortUnknown}, {Outcome: AbortError, Error: "the engine is gone"}} {
		got, err := ParseAbortReply(want.Encode())
		if err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	long := AbortReply{Outcome: AbortError, Error: strings.Repeat("ü", maxAbortTextBytes)}
	if got, err := ParseAbortReply(long.Encode()); err != nil || got.Error != strings.Repeat("ü", maxAbortTextBytes/2) {
		t.Errorf("a long error came back with %d bytes, %v", len(got.Error), err)
	}
}

func TestTheJSONOfAbortMessagesIsTheDocumentedOne(t *testing.T) {
	c := AbortCommand{Epoch: 0xab, Number: 2, Sample: 3, EngineID: "e", Position: 4, ExpiresWallNS: 5, AlertID: "a"}
	want := `{"epoch":"00000000000000ab","number":2,"sample":3,"engine_id":"e","position":4,` +
		`"expires_wall_ns":5,"alert_id":"a"}`
	if got := string(c.Encode()); got != want {
		t.Errorf("command is %s, want %s", got, want)
	}
	reply := string(AbortReply{Outcome: AbortStopped, FinalLength: 6}.Encode())
	if want := `{"outcome":"stopped","final_length":6}`; reply != want {
		t.Errorf("reply is %s, want %s", reply, want)
	}
	later := `{"epoch":"00000000000000ab","expires_wall_ns":5,"of a later version":[1]} `
	if got, err := ParseAbortCommand([]byte(later)); err != nil || got.Epoch != 0xab {
		t.Errorf("command of a later version: %+v, %v", got, err)
	}
}

func TestHostileAbortMessagesAreErrors(t *testing.T) {
	const good = `{"epoch":"00000000000000ab","number":1,"sample":0,"engine_id":"e","position":0,"expires_wall_ns":5}`
	if _, err := ParseAbortCommand([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "null", "[]", "{}", good[:len(good)-1], good + "{}", good + "x",
		strings.Replace(good, "00000000000000ab", "ab", 1),
		strings.Replace(good, "00000000000000ab", "+0000000000000ab", 1),
		strings.Replace(good, `"sample":0`, `"sample":-1`, 1), strings.Replace(good, `"sample":0`, `"sample":4294967296`, 1),
		strings.Replace(good, `"position":0`, `"position":-1`, 1), strings.Replace(good, `:5}`, `:0}`, 1),
		strings.Replace(good, `"number":1`, `"number":-1`, 1), strings.Replace(good, `"number":1`, `"number":1.5`, 1),
		strings.Replace(good, `"e"`, `"`+strings.Repeat("e", maxAbortTextBytes+1)+`"`, 1),
		good + strings.Repeat(" ", MaxAbortBytes), strings.Repeat("[", MaxAbortBytes)} {
		if c, err := ParseAbortCommand([]byte(bad)); err == nil {
			t.Errorf("%.100q was read as %+v", bad, c)
		}
	}
	for _, bad := range []string{"", "null", "{}", `{"outcome":"perhaps"}`, `{"outcome":"stopped","final_length":-1}`,
		`{"outcome":"stopped"}{}`, `{"outcome":1}`} {
		if r, err := ParseAbortReply([]byte(bad)); err == nil {
			t.Errorf("%q was read as %+v", bad, r)
		}
	}
}

func FuzzAbort(f *testing.F) {
	f.Add(AbortCommand{Epoch: 1, ExpiresWallNS: 1}.Encode())
	f.Add(AbortReply{Outcome: AbortStopped}.Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := ParseAbortCommand(data); err == nil {
			if again, err := ParseAbortCommand(c.Encode()); err != nil || again != c {
				t.Errorf("%+v came back as %+v, %v", c, again, err)
			}
		}
		if r, err := ParseAbortReply(data); err == nil && len(r.Error) <= maxAbortTextBytes {
			if again, err := ParseAbortReply(r.Encode()); err != nil || again != r {
				t.Errorf("%+v came back as %+v, %v", r, again, err)
			}
		}
	})
}
