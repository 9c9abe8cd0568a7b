package bustap

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"sonde/schema"
)

// Filter chooses messages and, with Request, rows. Zero fields choose everything.
type Filter struct {
	Hook    string // a name, or a pattern as in path.Match
	Layer   *int   // -1: hooks without a layer
	Request string // external id
	Tenant  string
	Kind    schema.Kind
}

var kinds = []schema.Kind{schema.KindVectors, schema.KindStats, schema.KindRequests, schema.KindLedger,
	schema.KindDetections}

// Check refuses what can match nothing.
func (f *Filter) Check() error {
	if _, err := path.Match(f.Hook, ""); err != nil {
		return fmt.Errorf("--hook %q is no pattern: %w", f.Hook, err)
	}
	if f.Kind != "" && !slices.Contains(kinds, f.Kind) {
		return fmt.Errorf("--kind %q does not exist; use vectors, stats, requests, ledger or detections", f.Kind)
	}
	return nil
}

// subjects are the filters that the broker applies. Chains are never split by them,
// so that a gap in what comes is a gap.
func (f *Filter) subjects() []string {
	tenant, kind, hook, layer := "*", "*", "*", "*"
	if f.Tenant != "" {
		tenant = schema.EscapeToken(f.Tenant)
	}
	if f.Kind != "" {
		kind = schema.EscapeToken(string(f.Kind))
	}
	if f.Hook != "" && !strings.ContainsAny(f.Hook, `*?[\`) {
		hook = schema.EscapeToken(f.Hook)
	}
	if f.Layer != nil {
		layer = "_"
		if *f.Layer >= 0 {
			layer = strconv.Itoa(*f.Layer)
		}
	}
	if tenant == "*" && kind == "*" && hook == "*" && layer == "*" {
		return nil
	}
	return []string{strings.Join([]string{schema.SubjectPrefix, tenant, "*", "*", kind, hook, layer}, ".")}
}

// wants looks at what the subject cannot say, and does not trust that it told the truth.
func (f *Filter) wants(h *schema.Header) bool {
	if f.Hook != "" {
		if ok, err := path.Match(f.Hook, h.Hook); err != nil || !ok {
			return false
		}
	}
	return (f.Layer == nil || *f.Layer == h.Layer) && (f.Tenant == "" || f.Tenant == h.Tenant) &&
		(f.Kind == "" || f.Kind == h.Kind)
}
