package producer

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"sonde/ring2"
)

func compile(t *testing.T, p Policy) *compiledPolicy {
	t.Helper()
	c, err := compilePolicy(p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// chosen lists the positions below n that a rule chooses, of a prompt of 10 tokens.
func chosen(r *compiledRule, n int64) string {
	var b strings.Builder
	for p := range n {
		if r.matchesPosition(p, 10) {
			fmt.Fprint(&b, p, " ")
		}
	}
	return strings.TrimSpace(b.String())
}

func TestWindows(t *testing.T) {
	for _, c := range []struct {
		w      Window
		stride int
		want   string
	}{
		{Window{}, 1, "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"},
		{Window{Prompt: "none"}, 1, "10 11 12 13 14 15"},
		{Window{Prompt: "first:2", Decode: "none"}, 1, "0 1"},
		{Window{Prompt: "last:2", Decode: "none"}, 1, "8 9"},
		{Window{Prompt: "last:99", Decode: "none"}, 1, "0 1 2 3 4 5 6 7 8 9"},
		{Window{Prompt: "none", Decode: "first:3"}, 1, "10 11 12"},
		{Window{Prompt: "none", Decode: "every:2"}, 1, "10 12 14"},
		{Window{Prompt: "none", Decode: "every:2"}, 2, "10 14"},
		{Window{Prompt: "last:5", Decode: "first:4"}, 2, "5 7 9 10 12"},
		{Window{}, 7, "0 7 10"},
	} {
		p := compile(t, Policy{Rules: []Rule{{Window: c.w, Stride: c.stride}}})
		if got := chosen(&p.rules[0], 16); got != c.want {
			t.Errorf("window %+v stride %d: %s, want %s", c.w, c.stride, got, c.want)
		}
	}
}

func TestPoliciesThatMakeNoSenseSaySo(t *testing.T) {
	half, wrong := 50.0, 101.0
	for want, r := range map[string]Rule{
		"prompt":        {Window: Window{Prompt: "every:2"}},
		"decode":        {Window: Window{Decode: "last:2"}},
		"no window":     {Window: Window{Prompt: "first:0"}},
		"first:N":       {Window: Window{Prompt: "first:-1"}},
		"as =":          {As: "picture"},
		"stride":        {Stride: -1},
		"sample_percen": {Requests: Requests{SamplePercent: &wrong}},
		"hook pattern":  {Hooks: []string{"[a"}},
	} {
		if _, err := compilePolicy(Policy{Rules: []Rule{r}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := compilePolicy(Policy{BudgetBytesPerS: -1}); err == nil {
		t.Error("a negative budget")
	}
	if _, err := compilePolicy(Policy{Rules: make([]Rule, MaxRules+1)}); err == nil {
		t.Error("too many rules")
	}
	a := Policy{Rules: []Rule{{Hooks: []string{"a"}, Requests: Requests{SamplePercent: &half}}}}
	b := a
	b.Mode = Complete
	if a.Version() == b.Version() || len(a.Version()) != 16 {
		t.Errorf("versions %s and %s", a.Version(), b.Version())
	}
}

func TestRulesMatchHooksLayersAndRequests(t *testing.T) {
	r := Rule{Hooks: []string{"resid_*", "attn_out"}, Layers: Layers{Ranges: [][2]int{{0, 3}, {7, 7}}},
		Requests: Requests{Tenants: []string{"acme"}, Labels: map[string]string{"a": "1"}, OptIn: true}}
	p := compile(t, Policy{Rules: []Rule{r}})
	for _, c := range []struct {
		hook  string
		layer int
		want  bool
	}{{"resid_post", 0, true}, {"resid_post", 3, true}, {"resid_post", 4, false}, {"attn_out", 7, true},
		{"mlp_out", 0, false}, {"resid_post", -1, false}, {"attn_out_x", 0, false}} {
		if got := p.rules[0].matchesHook(c.hook, c.layer); got != c.want {
			t.Errorf("%s layer %d: %v", c.hook, c.layer, got)
		}
	}
	good := request{tenant: "acme", labels: map[string]string{"a": "1", "b": "2"}, optIn: true}
	if p.requestRules(&good) != 1 {
		t.Error("the request does not match")
	}
	for _, bad := range []request{{tenant: "other", labels: good.labels, optIn: true}, {tenant: "acme", optIn: true},
		{tenant: "acme", labels: map[string]string{"a": "2"}, optIn: true}, {tenant: "acme", labels: good.labels}} {
		if p.requestRules(&bad) != 0 {
			t.Errorf("%+v matches", bad)
		}
	}
}

func TestSamplingTakesItsShareAndTheSameRequestsEverywhere(t *testing.T) {
	share := 20.0
	p := compile(t, Policy{Rules: []Rule{{Requests: Requests{SamplePercent: &share}}}})
	n := 0
	for i := range 10000 {
		q := request{id: fmt.Sprint("request-", i)}
		if p.requestRules(&q) == 1 {
			n++
		}
	}
	if n < 1850 || n > 2150 {
		t.Errorf("%d of 10000 requests for 20 %%", n)
	}
	if got := requestHash("request-1"); got != 0x611a2dc6b4f2ee72 { // on every machine, in every version
		t.Errorf("hash %#x", got)
	}
	none, all := 0.0, 100.0
	for want, percent := range map[uint64]*float64{0: &none, 1: &all} {
		p := compile(t, Policy{Rules: []Rule{{Requests: Requests{SamplePercent: percent}}}})
		for i := range 1000 {
			if q := (request{id: fmt.Sprint(i)}); p.requestRules(&q) != want {
				t.Fatalf("request %d at %v percent", i, *percent)
			}
		}
	}
}

// However a step is cut into ranges, and rules into runs, each token has the rule
// that the policy gives it, and no other.
func TestRunsHoldExactlyTheChosenTokens(t *testing.T) {
	rng := random(t)
	windows := []Window{{}, {Prompt: "none"}, {Prompt: "first:3"}, {Prompt: "last:4", Decode: "none"}, {Decode: "every:3"},
		{Prompt: "first:2", Decode: "first:5"}}
	for range 2000 {
		var p Policy
		for range 1 + rng.IntN(4) {
			p.Rules = append(p.Rules, Rule{Hooks: []string{"*"}, Layers: Layers{All: true}, Window: windows[rng.IntN(6)],
				Stride: 1 + rng.IntN(3)})
		}
		c := compile(t, p)
		l := layout{Layout: ring2.Layout{Entries: testEntries}, oversize: make([]bool, len(testEntries))}
		pl := newPlan(&l, planKey{rules: rand.Uint64N(1 << len(p.Rules)), known: true}, c.rules)
		g := &pl.groups[rng.IntN(len(pl.groups))]
		position, prompt, n := rng.Int64N(20), rng.Int64N(20), rng.IntN(40)
		var of []int32
		runs := c.choose(g, position, prompt, n, nil, &of)
		if again := c.choose(g, position, prompt, n, nil, nil); fmt.Sprint(again) != fmt.Sprint(runs) {
			t.Fatalf("runs %v and %v", runs, again)
		}
		want := make([]int, n)
		for k := range n {
			want[k] = c.firstRule(g.rules, position+int64(k), prompt)
		}
		got := make([]int, n)
		for k := range got {
			got[k] = -1
		}
		for ri, r := range runs {
			for i := range r.count {
				k := r.first + i*r.stride
				if got[k] != -1 || of[k] != int32(ri) {
					t.Fatalf("token %d is in two runs: %v, %v", k, runs, of)
				}
				got[k] = r.rule
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) || len(of) != n {
			t.Fatalf("rules %v, want %v", got, want)
		}
	}
}

func TestEntriesText(t *testing.T) {
	for want, entries := range map[string][]int{"": nil, "0": {0}, "0-3": {0, 1, 2, 3}, "0-1,3,5-7": {0, 1, 3, 5, 6, 7}} {
		if got := entriesText(entries); got != want {
			t.Errorf("%v is %q, want %q", entries, got, want)
		}
	}
}

func TestPoliciesChooseWhatLeavesAndHow(t *testing.T) {
	p := Policy{Rules: []Rule{
		{Hooks: []string{"token_ids"}, Layers: Layers{All: true}},
		{Hooks: []string{"resid_post"}, Layers: Layers{Ranges: [][2]int{{0, 0}}}, Window: Window{Prompt: "last:1"}},
		{Hooks: []string{"resid_post"}, Layers: Layers{All: true}, As: AsStats, Stride: 2},
		{Hooks: []string{"logits"}, Layers: Layers{All: true}, Requests: Requests{Tenants: []string{"acme"}}},
	}}
	w := newWorld(t, Options{Policy: p})
	s := newFakeSession()
	e := newEngine(s, testEntries)
	done := w.attach(s)
	e.open(1, "acme", 6)
	e.open(2, "other", 4)
	e.step(prefill(1, 6), prefill(2, 4))
	for i := range uint32(7) {
		e.step(decode(2, 4+i), decode(1, 6+i))
	}
	e.bye(w, done)
	got := w.balanced()
	hooks := map[string]int{}
	for key, v := range got.vectors {
		chain := strings.Split(key, ".")
		hooks[chain[3]]++
		if chain[3] == "resid_post" && (chain[4] != "0" || v.Number == 2 && v.Position < 3) {
			t.Errorf("position %d of resid_post layer 0 left as a tensor", v.Position)
		}
	}
	tokens := 10 + 14
	stats := 3 + 2 + 3 + 2 + 2*4 // layer 0: prompts by twos; layer 1: prompts and decodes by twos
	if hooks["token_ids"] != tokens || hooks["resid_post"] != 16 || hooks["logits"] != 7 || got.stats != stats {
		t.Errorf("vectors %v, stats %d", hooks, got.stats)
	}
	a := got.account
	if all := uint64(tokens*3 + 14); a.Expected+a.Filtered != all || a.Stored != a.Expected {
		t.Errorf("of %d rows: %v", all, a)
	}
}
