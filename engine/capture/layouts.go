package capture

import (
	"fmt"
	"path"
	"slices"

	"sonde/engine/model"
	"sonde/ring2"
)

// layout is a group of hooks that are captured or dropped together.
type layout struct {
	id      uint32
	hooks   []int // indices in Info.Hooks, in the order of the entries
	sampled bool  // holds only hooks of ring2.SelectSampled
}

// place says where a hook's rows go: an entry of a layout, or nowhere.
type place struct{ layout, entry int }

// residual names the hooks of the first layout: what detectors read, and the
// tokens. When room is short, earlier layouts find it more often.
var residual = []string{"token_ids", "embed", "resid_pre", "resid_mid", "resid_post", "resid_final"}

// kind orders the layouts.
func kind(h *model.Hook) int {
	switch {
	case h.Ragged:
		return 3
	case h.Select == ring2.SelectSampled:
		return 1
	case slices.Contains(residual, h.Name):
		return 0
	default:
		return 2
	}
}

// choose picks the hooks that match a pattern, as path.Match does; no pattern
// picks all.
func choose(hooks []model.Hook, patterns []string) ([]int, error) {
	if len(patterns) == 0 {
		patterns = []string{"*"}
	}
	chosen := make([]bool, len(hooks))
	for _, p := range patterns {
		found := false
		for i := range hooks {
			ok, err := path.Match(p, hooks[i].Name)
			if err != nil {
				return nil, fmt.Errorf("choose hooks by %q: %w", p, err)
			}
			if ok {
				found, chosen[i] = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("choose hooks by %q: the model has none of that name; it has %q", p, names(hooks))
		}
	}
	var out []int
	for i := range chosen {
		if chosen[i] {
			out = append(out, i)
		}
	}
	return out, nil
}

func names(hooks []model.Hook) []string {
	var out []string
	for i := range hooks {
		if !slices.Contains(out, hooks[i].Name) {
			out = append(out, hooks[i].Name)
		}
	}
	return out
}

// group makes layouts of the chosen hooks, and says where each hook stands.
func group(hooks []model.Hook, chosen []int) (layouts []layout, places []place) {
	places = make([]place, len(hooks))
	for i := range places {
		places[i] = place{-1, -1}
	}
	for k := range 4 {
		var l layout
		for _, i := range chosen {
			if kind(&hooks[i]) != k {
				continue
			}
			places[i] = place{len(layouts), len(l.hooks)}
			l.hooks = append(l.hooks, i)
			l.sampled = hooks[i].Select == ring2.SelectSampled
		}
		if len(l.hooks) > 0 {
			layouts = append(layouts, l)
		}
	}
	return layouts, places
}

func (l *layout) entries(hooks []model.Hook) []ring2.LayoutEntry {
	out := make([]ring2.LayoutEntry, len(l.hooks))
	for i, hook := range l.hooks {
		h := &hooks[hook]
		out[i] = ring2.LayoutEntry{Hook: h.Name, Layer: h.Layer, DType: h.DType, Select: h.Select, Ragged: h.Ragged,
			Shape: h.Shape}
	}
	return out
}
