package capture

import (
	"encoding/binary"

	"sonde/engine/model"
	"sonde/engine/witness"
	"sonde/ring2"
)

// Capture computes steps and records them. It has one caller, and is the
// recorder of a scheduler and the tap of its model.
type Capture struct {
	*Selection
	ring    *ring2.Writer   // nil: nothing is captured
	witness *witness.Writer // nil: nobody witnesses
	steps   uint64          // computed without a ring

	// Of the step that is being computed:
	rows, sampled int
	stepRanges    []ring2.StepRange
	stepLayouts   []uint32
	index         []int // by layout: where it stands in the step, or -1
	ragged        []ring2.RaggedBytes
	spans         [][]byte // by hook, without offsets
	cuts          []cuts   // by hook, of ragged ones
	scratch       [][]byte // by layout: for rows that only the witness sees
}

// cuts says where the rows of a ragged hook start in its span.
type cuts struct {
	ranges  []int  // the first row of each range, and the end
	offsets []byte // of each row, and the end, as the ring wants them: u64
}

// New announces the model and the layouts of a selection to a ring. The ring or
// the witness may be nil.
func New(s *Selection, ring *ring2.Writer, w *witness.Writer, engineVersion string) (*Capture, error) {
	c := &Capture{Selection: s, ring: ring, witness: w, index: make([]int, len(s.layouts)),
		spans: make([][]byte, len(s.hooks)), cuts: make([]cuts, len(s.hooks)), scratch: make([][]byte, len(s.layouts))}
	if ring == nil {
		return c, nil
	}
	info := s.model.Info()
	err := ring.SetModel(ring2.Model{Name: info.Name, Revision: info.Revision, WeightsDigest: info.WeightsDigest,
		Quantisation: info.Quantisation, Engine: "sonde", EngineVersion: engineVersion, Layers: uint32(info.Layers),
		DModel: uint32(info.DModel), Vocab: uint32(info.Vocab)})
	if err != nil {
		return nil, err
	}
	for i := range s.layouts {
		l := &s.layouts[i]
		if l.id, err = ring.DefineLayout(l.entries(s.hooks)); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Open announces a sequence.
func (c *Capture) Open(r ring2.RequestOpen) error {
	if c.ring == nil {
		return nil
	}
	return c.ring.OpenRequest(r)
}

// End closes a sequence.
func (c *Capture) End(r ring2.RequestEnd) error {
	if c.ring == nil {
		return nil
	}
	return c.ring.EndRequest(r)
}

// Amend says what became of tokens that were computed before.
func (c *Capture) Amend(a ring2.Amend) error {
	if c.ring == nil {
		return nil
	}
	return c.ring.Amend(a)
}

// Step computes ranges with the model. What the ring has no room for is dropped
// and counted there; an error means that the step was not computed, or that the
// witness could not be written.
func (c *Capture) Step(ranges []model.Range, phases []ring2.Phase) (uint64, error) {
	c.measure(ranges, phases)
	if c.ring == nil {
		c.steps++
		c.layOut(nil)
		if err := c.model.Forward(ranges, c); err != nil {
			return 0, err
		}
		return c.steps - 1, c.testify(ranges)
	}
	step, err := c.ring.BeginStep(c.stepRanges, c.stepLayouts, c.ragged...)
	if err != nil {
		return 0, err
	}
	defer step.Commit()
	c.layOut(step)
	if err := c.model.Forward(ranges, c); err != nil {
		for i := range c.stepLayouts {
			step.Abort(i)
		}
		return 0, err
	}
	return step.Step(), c.testify(ranges)
}

// measure works out what the step will hold.
func (c *Capture) measure(ranges []model.Range, phases []ring2.Phase) {
	c.rows, c.sampled = 0, 0
	for i := range ranges {
		c.rows += len(ranges[i].Tokens)
		if ranges[i].Logits != nil {
			c.sampled++
		}
	}
	all, sampledOnly := uint64(0), uint64(0) // Bits of the layouts that a range has.
	c.stepLayouts, c.ragged = c.stepLayouts[:0], c.ragged[:0]
	for i := range c.layouts {
		l := &c.layouts[i]
		if c.index[i] = -1; l.sampled && c.sampled == 0 {
			continue
		}
		c.index[i] = len(c.stepLayouts)
		if l.sampled {
			sampledOnly |= 1 << c.index[i]
		} else {
			all |= 1 << c.index[i]
		}
		c.stepLayouts = append(c.stepLayouts, l.id)
		for entry, hook := range l.hooks {
			if c.hooks[hook].Ragged {
				c.cut(hook, ranges)
				c.ragged = append(c.ragged, ring2.RaggedBytes{Layout: c.index[i], Entry: entry,
					Bytes: c.cuts[hook].ranges[len(ranges)]})
			}
		}
	}
	c.stepRanges = c.stepRanges[:0]
	for i := range ranges {
		r := &ranges[i]
		g := ring2.StepRange{Number: r.Number, Position: uint32(r.Position), Count: uint32(len(r.Tokens)),
			Pass: uint32(r.Pass), Phase: phases[i], Sampled: r.Logits != nil, LayoutMask: all}
		if g.Sampled {
			g.LayoutMask |= sampledOnly
		}
		c.stepRanges = append(c.stepRanges, g)
	}
}

// cut finds where the rows of a ragged hook start.
func (c *Capture) cut(hook int, ranges []model.Range) {
	k, at := &c.cuts[hook], 0
	k.ranges, k.offsets = append(k.ranges[:0], 0), binary.LittleEndian.AppendUint64(k.offsets[:0], 0)
	for i := range ranges {
		for j := range ranges[i].Tokens {
			at += c.model.RaggedRowBytes(hook, ranges[i].Position+j)
			k.offsets = binary.LittleEndian.AppendUint64(k.offsets, uint64(at))
		}
		k.ranges = append(k.ranges, at)
	}
}

// layOut gives each hook its memory: in the ring where it has room, elsewhere
// when there is a witness, or none.
func (c *Capture) layOut(step *ring2.StepCapture) {
	for i := range c.layouts {
		l := &c.layouts[i]
		at := c.index[i]
		switch {
		case at >= 0 && step != nil && step.Captured(at):
			for entry, hook := range l.hooks {
				span := step.Span(at, entry)
				if c.hooks[hook].Ragged {
					span = span[copy(span, c.cuts[hook].offsets):]
				}
				c.spans[hook] = span
			}
		case at >= 0 && c.witness != nil:
			c.useScratch(i)
		default:
			for _, hook := range l.hooks {
				c.spans[hook] = nil
			}
		}
	}
}

// useScratch gives the hooks of a layout memory that nobody but the witness
// reads.
func (c *Capture) useScratch(i int) {
	need := 0
	for _, hook := range c.layouts[i].hooks {
		need += c.spanBytes(hook)
	}
	if cap(c.scratch[i]) < need {
		c.scratch[i] = make([]byte, need)
	}
	free := c.scratch[i][:need]
	for _, hook := range c.layouts[i].hooks {
		n := c.spanBytes(hook)
		c.spans[hook], free = free[:n:n], free[n:]
	}
}

func (c *Capture) rowsOf(hook int) int {
	if c.hooks[hook].Select == ring2.SelectSampled {
		return c.sampled
	}
	return c.rows
}

func (c *Capture) spanBytes(hook int) int {
	if h := &c.hooks[hook]; !h.Ragged {
		return c.rowsOf(hook) * h.RowBytes()
	}
	k := &c.cuts[hook]
	return k.ranges[len(k.ranges)-1]
}

// Span is the memory of a hook's rows, for the model.
func (c *Capture) Span(hook int) []byte { return c.spans[hook] }

// RaggedSpan is the memory of a range's rows of a ragged hook, for the model.
func (c *Capture) RaggedSpan(hook, rng int) []byte {
	if c.spans[hook] == nil {
		return nil
	}
	k := &c.cuts[hook]
	return c.spans[hook][k.ranges[rng]:k.ranges[rng+1]:k.ranges[rng+1]]
}

// testify shows every row of the step to the witness.
func (c *Capture) testify(ranges []model.Range) error {
	if c.witness == nil {
		return nil
	}
	c.witness.Step(ranges)
	for _, hook := range c.chosen {
		span, n := c.spans[hook], c.hooks[hook].RowBytes()
		for i := range c.rowsOf(hook) {
			if c.hooks[hook].Ragged {
				offsets := c.cuts[hook].offsets[8*i:]
				n = int(binary.LittleEndian.Uint64(offsets[8:]) - binary.LittleEndian.Uint64(offsets))
			}
			c.witness.Row(span[:n])
			span = span[n:]
		}
	}
	return c.witness.End()
}
