package producer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Mode says what a full ring means to the engine. The agent only passes it on
// in the policy version: the engine's own option decides.
type Mode string

// The two modes.
const (
	BestEffort Mode = "best_effort"
	Complete   Mode = "complete"
)

// As says in which of two forms a chosen row leaves.
type As string

// The two forms.
const (
	AsTensor As = "tensor"
	AsStats  As = "stats"
)

// MaxRules bounds a policy: the rules that a request may match are one word.
const MaxRules = 64

// Policy chooses which rows leave the engine, and how. The first rule that
// matches a row wins; a row that no rule matches is filtered. The choice is a
// function of (request, sample, position, hook, layer) alone.
type Policy struct {
	Mode            Mode
	Rules           []Rule
	BudgetBytesPerS int64 // of rows as they leave, 0: no limit
}

// Rule matches rows by hook, layer, request and token window.
type Rule struct {
	Name     string
	Hooks    []string // names or patterns as in path.Match
	Layers   Layers
	Requests Requests
	Window   Window
	As       As  // empty: tensor
	Stride   int // every Nth position of the window, 0 and 1: all
	Priority int // under a budget and in a full spool, lower numbers are dropped first
}

// Layers is all layers (and hooks without a layer), or a set of closed ranges.
type Layers struct {
	All    bool
	Ranges [][2]int
}

// Requests narrows a rule; every part that is given must match.
type Requests struct {
	Tenants       []string
	Labels        map[string]string
	SamplePercent *float64 // nil: 100
	OptIn         bool
}

// Window narrows a rule to some tokens. A token is a prompt token when its
// position is below the request's prompt length, also when it is recomputed.
type Window struct {
	Prompt string // all | none | first:N | last:N, empty: all
	Decode string // all | none | first:N | every:N, empty: all
}

// Version is the digest of the policy: 16 hex digits of the SHA-256 of its JSON.
func (p Policy) Version() string {
	text, err := json.Marshal(p)
	if err != nil {
		panic("BUG: a policy is always JSON: " + err.Error())
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// compiledPolicy is a checked policy.
type compiledPolicy struct {
	version string
	mark    int // the first 24 bits of the version
	budget  int64
	rules   []compiledRule
}

type compiledRule struct {
	Rule
	prompt, decode window
	threshold      uint64 // requests whose hash is below it match; all when sampleAll
	sampleAll      bool
}

// window is a parsed Prompt or Decode.
type window struct {
	kind string // all, none, first, last, every
	n    int64
}

func compilePolicy(p Policy) (*compiledPolicy, error) {
	if len(p.Rules) > MaxRules {
		return nil, fmt.Errorf("policy has %d rules; at most %d", len(p.Rules), MaxRules)
	}
	if p.BudgetBytesPerS < 0 {
		return nil, fmt.Errorf("policy budget of %d bytes per second is negative; 0 means no limit", p.BudgetBytesPerS)
	}
	c := &compiledPolicy{version: p.Version(), budget: p.BudgetBytesPerS}
	mark, err := strconv.ParseUint(c.version[:6], 16, 24)
	if err != nil {
		panic("BUG: a version is hex digits: " + err.Error())
	}
	c.mark = int(mark)
	for i, r := range p.Rules {
		if r.Name == "" {
			r.Name = fmt.Sprintf("rule %d", i+1)
		}
		cr, err := compileRule(r)
		if err != nil {
			return nil, fmt.Errorf("policy rule %q: %w", r.Name, err)
		}
		c.rules = append(c.rules, cr)
	}
	return c, nil
}

func compileRule(r Rule) (compiledRule, error) {
	if r.Stride == 0 {
		r.Stride = 1
	}
	if r.As == "" {
		r.As = AsTensor
	}
	c := compiledRule{Rule: r, sampleAll: true}
	if r.As != AsTensor && r.As != AsStats {
		return c, fmt.Errorf("as = %q; want tensor or stats", r.As)
	}
	if r.Stride < 1 || r.Stride > math.MaxInt32 {
		return c, fmt.Errorf("stride = %d; want 1 or more", r.Stride)
	}
	if r.Priority < math.MinInt32 || r.Priority > math.MaxInt32 {
		return c, fmt.Errorf("priority = %d; want a number of 32 bits", r.Priority)
	}
	for _, h := range r.Hooks {
		if _, err := path.Match(h, ""); err != nil {
			return c, fmt.Errorf("hook pattern %q: %w", h, err)
		}
	}
	if s := r.Requests.SamplePercent; s != nil {
		if !(*s >= 0 && *s <= 100) {
			return c, fmt.Errorf("sample_percent = %v; want 0 to 100", *s)
		}
		c.sampleAll = *s == 100
		c.threshold = uint64(*s / 100 * (1 << 63) * 2)
	}
	var err error
	if c.prompt, err = parseWindow(r.Window.Prompt, "last"); err != nil {
		return c, fmt.Errorf("window.prompt: %w", err)
	}
	if c.decode, err = parseWindow(r.Window.Decode, "every"); err != nil {
		return c, fmt.Errorf("window.decode: %w", err)
	}
	return c, nil
}

// parseWindow reads all, none, first:N or other:N.
func parseWindow(s, other string) (window, error) {
	if s == "" || s == "all" {
		return window{kind: "all"}, nil
	}
	if s == "none" {
		return window{kind: "none"}, nil
	}
	kind, number, ok := strings.Cut(s, ":")
	n, err := strconv.ParseInt(number, 10, 32)
	if !ok || err != nil || n < 1 || kind != "first" && kind != other {
		return window{}, fmt.Errorf("%q is no window; want all, none, first:N or %s:N", s, other)
	}
	return window{kind: kind, n: n}, nil
}

// matchesHook reports whether the rule is about this hook and layer.
func (r *compiledRule) matchesHook(hook string, layer int) bool {
	if !r.Layers.All && !slices.ContainsFunc(r.Layers.Ranges, func(a [2]int) bool {
		return layer >= a[0] && layer <= a[1]
	}) {
		return false
	}
	return slices.ContainsFunc(r.Hooks, func(pattern string) bool {
		ok, err := path.Match(pattern, hook)
		return err == nil && ok
	})
}

// matchesRequest reports whether the rule is about this request.
func (r *compiledRule) matchesRequest(q *request) bool {
	if r.Requests.OptIn && !q.optIn {
		return false
	}
	if len(r.Requests.Tenants) > 0 && !slices.Contains(r.Requests.Tenants, q.tenant) {
		return false
	}
	for k, v := range r.Requests.Labels {
		if got, ok := q.labels[k]; !ok || got != v {
			return false
		}
	}
	return r.sampleAll || requestHash(q.id) < r.threshold
}

// requestHash spreads request ids evenly over 64 bits, alike on every machine:
// FNV-1a and the finisher of splitmix64.
func requestHash(id string) uint64 {
	sum := fnv.New64a()
	sum.Write([]byte(id))
	x := sum.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// requestRules is the set of rules about a request, bit i for rule i.
func (c *compiledPolicy) requestRules(q *request) uint64 {
	var set uint64
	for i := range c.rules {
		if c.rules[i].matchesRequest(q) {
			set |= 1 << i
		}
	}
	return set
}

// matchesPosition reports whether position is in the rule's window, on its
// stride. prompt is the request's prompt length in tokens.
func (r *compiledRule) matchesPosition(position, prompt int64) bool {
	stride := int64(r.Stride)
	if position >= prompt {
		k := position - prompt // generated token k
		switch r.decode.kind {
		case "none":
			return false
		case "first":
			return k < r.decode.n && k%stride == 0
		case "every":
			return k%r.decode.n == 0 && k/r.decode.n%stride == 0
		}
		return k%stride == 0
	}
	k := position
	switch r.prompt.kind {
	case "none":
		return false
	case "first":
		if k >= r.prompt.n {
			return false
		}
	case "last":
		if k -= max(0, prompt-r.prompt.n); k < 0 {
			return false
		}
	}
	return k%stride == 0
}

// everyPosition reports whether the rule takes each token.
func (r *compiledRule) everyPosition() bool {
	return r.Stride == 1 && r.prompt.kind == "all" && r.decode.kind == "all"
}
