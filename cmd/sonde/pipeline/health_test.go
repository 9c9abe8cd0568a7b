package pipeline

import (
	"slices"
	"strings"
	"testing"

	"sonde/catalogue"
)

// A part without a check would be ready, whatever it does; a check without a part
// would tell a reader of something that nobody asks.
func TestReadinessAsksWhatTheCatalogueSays(t *testing.T) {
	h := newHealth()
	for _, role := range Roles {
		h.set(role, func() string { return "starting" })
	}
	missing := h.missing()
	if len(missing) != len(catalogue.Checks) {
		t.Errorf("%d checks for %d in the catalogue", len(missing), len(catalogue.Checks))
	}
	for _, c := range catalogue.Checks {
		if !slices.Contains(missing, c.Part+": starting; to do: "+c.Do) {
			t.Errorf("no line says what to do about %s: %q", c.Part, missing)
		}
	}
	defer func() {
		if text, _ := recover().(string); !strings.HasPrefix(text, "BUG: ") {
			t.Errorf("a part that the catalogue does not have was taken: %q", text)
		}
	}()
	h.set("nonsense", func() string { return "" })
}
