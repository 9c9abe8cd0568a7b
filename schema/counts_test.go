package schema

import (
	"strings"
	"testing"
)

func TestCountsSurviveTheWay(t *testing.T) {
	want := StageCounts{Stage: StageAgent, Member: "m", Engine: "llm", Rank: 3, Epoch: "00000000000000ff", FromSeq: 5,
		ToSeq: 9, Rows: map[string]uint64{"captured": 1<<64 - 1, "dropped/no_space": 2}, WallNS: 77}
	data, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseStageCounts(data)
	if err != nil {
		t.Fatal(err)
	}
	if got.Rows["captured"] != 1<<64-1 || got.Rows["dropped/no_space"] != 2 || got.Epoch != want.Epoch || got.ToSeq != 9 ||
		got.Engine != "llm" || got.Rank != 3 || got.WallNS != 77 {
		t.Errorf("got %+v", got)
	}
}

func TestStrangeCountsAreRefusedWithASentence(t *testing.T) {
	good := `{"version":1,"stage":"agent","epoch":"00000000000000ff","engine":"e","from_seq":1,"to_seq":2}`
	if _, err := ParseStageCounts([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ from, to, want string }{
		"no JSON":           {good, "{", "no JSON object"},
		"later version":     {`"version":1`, `"version":2`, "version 2"},
		"no stage":          {`"agent"`, `""`, "want a stage"},
		"descending":        {`"to_seq":2`, `"to_seq":0`, "ascending"},
		"epoch without hex": {"00000000000000ff", "zz", "16 hex digits"},
		"a long name":       {`"e"`, `"` + strings.Repeat("e", 2000) + `"`, "at most 1024 bytes"},
		"too large":         {`"e"`, `"` + strings.Repeat("e", 20000) + `"`, "at most 16384"},
		"many classes":      {`"to_seq":2`, `"to_seq":2,"rows":{` + manyClasses() + `}`, "at most 64 classes"},
		"negative rows":     {`"to_seq":2`, `"to_seq":2,"rows":{"captured":-1}`, "no JSON object"},
	} {
		_, err := ParseStageCounts([]byte(strings.Replace(good, c.from, c.to, 1)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func manyClasses() string {
	var b strings.Builder
	for i := range 65 {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(`"c` + strings.Repeat("x", i) + `":1`)
	}
	return b.String()
}
