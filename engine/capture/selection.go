package capture

import (
	"sonde/engine/model"
	"sonde/ring2"
)

// Selection is what will be captured of a model.
type Selection struct {
	model   model.Model
	hooks   []model.Hook // all of the model
	chosen  []int        // indices in hooks, ascending
	layouts []layout
	places  []place // by hook
}

// Select chooses the hooks whose names match one of the patterns, as path.Match
// does; no pattern chooses all. A pattern that matches nothing is an error.
func Select(m model.Model, patterns []string) (*Selection, error) {
	hooks := m.Info().Hooks
	chosen, err := choose(hooks, patterns)
	if err != nil {
		return nil, err
	}
	s := &Selection{model: m, hooks: hooks, chosen: chosen}
	s.layouts, s.places = group(hooks, chosen)
	return s, nil
}

// Hooks lists the chosen hooks in the order in which a witness sees them.
func (s *Selection) Hooks() []model.Hook {
	out := make([]model.Hook, len(s.chosen))
	for i, hook := range s.chosen {
		out[i] = s.hooks[hook]
	}
	return out
}

const (
	entryAlign  = 64 // of each entry in a capture
	offsetBytes = 8  // of each row of a ragged entry, and one more
)

// StepBytes is the most that the captures of a step take in the ring, when no
// sequence is longer than context.
func (s *Selection) StepBytes(tokens, sequences, context int) int {
	total := 0
	for _, i := range s.chosen {
		h := &s.hooks[i]
		switch {
		case h.Ragged:
			total += offsetBytes + tokens*(offsetBytes+s.model.RaggedRowBytes(i, context-1)) + offsetBytes
		case h.Select == ring2.SelectSampled:
			total += sequences * h.RowBytes()
		default:
			total += tokens * h.RowBytes()
		}
		total += entryAlign
	}
	return total + len(s.layouts)*entryAlign
}
