package ringtap

import (
	"os"
	"path"

	"sonde/ring2"
)

// maxNames bounds the requests whose names are known; beyond it, all are forgotten
// and shown by number.
const maxNames = 1 << 17

// catalogue knows what the numbers in a ring mean: the control records that say so
// may have left the ring long ago.
type catalogue struct {
	layouts  map[uint32]*ring2.Layout
	requests map[uint64]string // external ids
	model    string
}

func newCatalogue() *catalogue {
	return &catalogue{layouts: map[uint32]*ring2.Layout{}, requests: map[uint64]string{}}
}

// learn takes a control record. One that does not parse says nothing.
func (c *catalogue) learn(kind ring2.Kind, payload []byte) {
	switch kind {
	case ring2.KindModel:
		if m, err := ring2.ParseModel(payload); err == nil {
			c.model = m.Name
		}
	case ring2.KindLayout:
		if l, err := ring2.ParseLayout(payload); err == nil {
			c.layouts[l.ID] = &l
		}
	case ring2.KindRequestOpen:
		if o, err := ring2.ParseRequestOpen(payload); err == nil {
			if len(c.requests) >= maxNames {
				clear(c.requests)
			}
			c.requests[o.Number] = o.ExternalID
		}
	}
}

// learnAll reads the journal of the engine, when it has one, and what the ring still
// holds.
func (r *Ring) learnAll() {
	if f, err := os.Open(r.journal); err == nil {
		// A journal that cannot be read says nothing; the ring may still.
		_, _ = ring2.ReadJournal(f, func(rec ring2.Record) { r.known.learn(rec.Kind, rec.Payload) })
		f.Close()
	}
	claim := r.State().Claim
	var buf []byte
	for seq := first(r.Peek, claim); seq != claim; seq++ {
		g, sight := r.Look(seq)
		if sight != ring2.SightWhole || g.Kind == ring2.KindCapture || g.Kind == ring2.KindStep {
			continue
		}
		if buf, sight = r.Payload(&g, buf); sight == ring2.SightWhole {
			r.known.learn(g.Kind, buf)
		}
	}
}

// entryMatches says whether a filter wants an entry of a layout.
func (f *Filter) entryMatches(e *ring2.LayoutEntry) bool {
	if f.Layer != nil && e.Layer != *f.Layer {
		return false
	}
	if f.Hook == "" {
		return true
	}
	ok, err := path.Match(f.Hook, e.Hook)
	return ok && err == nil
}
