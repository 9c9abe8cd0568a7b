package ring2

import "math/bits"

// Sizes inside a STEP payload.
const (
	stepLayoutBytes = 16
	stepRangeBytes  = 32
)

func stepBytes(layouts, ranges int) int {
	return 8 + 2 + layouts*stepLayoutBytes + 4 + ranges*stepRangeBytes
}

const rangeSampled = 1

// AppendStep appends the payload of a STEP record.
func AppendStep(b []byte, s Step) []byte {
	b = order.AppendUint64(b, s.Step)
	b = order.AppendUint16(b, uint16(len(s.Layouts)))
	for _, l := range s.Layouts {
		b = order.AppendUint32(b, l.Layout)
		b = append(b, byte(l.Outcome), 0, 0, 0)
		b = order.AppendUint64(b, l.CaptureSeq)
	}
	b = order.AppendUint32(b, uint32(len(s.Ranges)))
	for i := range s.Ranges {
		r := &s.Ranges[i]
		b = order.AppendUint64(b, r.Number)
		b = order.AppendUint32(b, r.Position)
		b = order.AppendUint32(b, r.Count)
		b = order.AppendUint32(b, r.Pass)
		b = append(b, byte(r.Phase))
		b = appendFlag(b, r.Sampled)
		b = append(b, 0, 0)
		b = order.AppendUint64(b, r.LayoutMask)
	}
	return b
}

// ParseStep reads the payload of a STEP record.
func ParseStep(b []byte) (Step, error) {
	var s Step
	err := ParseStepInto(&s, b)
	return s, err
}

// ParseStepInto is ParseStep into a step whose slices are reused.
func ParseStepInto(s *Step, b []byte) error {
	p := payload{b: b}
	s.Step, s.Layouts, s.Ranges = p.u64(), s.Layouts[:0], s.Ranges[:0]
	n := p.count(int(p.u16()), MaxStepLayouts, stepLayoutBytes, "layouts")
	for range n {
		l := StepLayout{Layout: p.u32(), Outcome: Reason(p.u8())}
		p.zero(3)
		l.CaptureSeq = p.u64()
		if l.Outcome >= ReasonCount {
			p.fail("outcome %d does not exist", l.Outcome)
		}
		s.Layouts = append(s.Layouts, l)
	}
	ranges := p.count(int(p.u32()), MaxStepRanges, stepRangeBytes, "ranges")
	for range ranges {
		r := StepRange{Number: p.u64(), Position: p.u32(), Count: p.u32(), Pass: p.u32(), Phase: Phase(p.u8())}
		flags := p.u8()
		p.zero(2)
		r.Sampled, r.LayoutMask = flags&rangeSampled != 0, p.u64()
		if flags&^rangeSampled != 0 || int(r.Phase) >= len(phaseNames) {
			p.fail("range has phase %d and flags %#x", r.Phase, flags)
		}
		if r.Count == 0 || bits.Len64(r.LayoutMask) > n || r.Position+r.Count < r.Position {
			p.fail("range has position %d, %d tokens and mask %#x for %d layouts", r.Position, r.Count, r.LayoutMask, n)
		}
		s.Ranges = append(s.Ranges, r)
	}
	return p.end(KindStep)
}

// TokenRows is the number of token rows of the i-th layout of the step.
func (s *Step) TokenRows(i int) int { return s.EntryRows(i, SelectAll) }

// EntryRows is the number of rows that an entry with this selection has in the
// i-th layout of the step.
func (s *Step) EntryRows(i int, sel RowSelect) int { return selectedRows(s.Ranges, i, sel) }

func selectedRows(ranges []StepRange, layout int, sel RowSelect) int {
	rows := 0
	for j := range ranges {
		r := &ranges[j]
		switch {
		case r.LayoutMask>>layout&1 == 0:
		case sel == SelectAll:
			rows += int(r.Count)
		case r.Sampled:
			rows++
		}
	}
	return rows
}

const amendRangeBytes = 24

// AppendAmend appends the payload of an AMEND record.
func AppendAmend(b []byte, a Amend) []byte {
	b = order.AppendUint64(b, a.Step)
	b = order.AppendUint32(b, uint32(len(a.Ranges)))
	for _, r := range a.Ranges {
		b = order.AppendUint64(b, r.Number)
		b = order.AppendUint32(b, r.Position)
		b = order.AppendUint32(b, r.Count)
		b = order.AppendUint32(b, r.Pass)
		b = append(b, byte(r.Verdict), 0, 0, 0)
	}
	return b
}

// ParseAmend reads the payload of an AMEND record.
func ParseAmend(b []byte) (Amend, error) {
	p := payload{b: b}
	a := Amend{Step: p.u64()}
	n := p.count(int(p.u32()), MaxStepRanges, amendRangeBytes, "ranges")
	for range n {
		r := AmendRange{Number: p.u64(), Position: p.u32(), Count: p.u32(), Pass: p.u32(), Verdict: Verdict(p.u8())}
		p.zero(3)
		if int(r.Verdict) >= len(verdictNames) {
			p.fail("verdict %d does not exist", r.Verdict)
		}
		a.Ranges = append(a.Ranges, r)
	}
	return a, p.end(KindAmend)
}

const missingRangeBytes = 52

func missingBytes(ranges int) int { return 4 + ranges*missingRangeBytes }

// AppendMissing appends the payload of a MISSING record.
func AppendMissing(b []byte, m Missing) []byte {
	b = order.AppendUint32(b, uint32(len(m.Ranges)))
	for i := range m.Ranges {
		r := &m.Ranges[i]
		b = order.AppendUint64(b, r.Number)
		for _, v := range [...]uint32{r.Position, r.Count, r.Pass, r.Layout} {
			b = order.AppendUint32(b, v)
		}
		b = append(b, byte(r.Reason), 0, 0, 0)
		b = order.AppendUint64(b, r.Rows)
		b = order.AppendUint64(b, r.FirstStep)
		b = order.AppendUint64(b, r.LastStep)
	}
	return b
}

// ParseMissing reads the payload of a MISSING record.
func ParseMissing(b []byte) (Missing, error) {
	p := payload{b: b}
	var m Missing
	n := p.count(int(p.u32()), MaxStepRanges, missingRangeBytes, "ranges")
	for range n {
		r := MissingRange{Number: p.u64(), Position: p.u32(), Count: p.u32(), Pass: p.u32(), Layout: p.u32(),
			Reason: Reason(p.u8())}
		p.zero(3)
		r.Rows, r.FirstStep, r.LastStep = p.u64(), p.u64(), p.u64()
		if r.Reason >= ReasonCount {
			p.fail("reason %d does not exist", r.Reason)
		}
		m.Ranges = append(m.Ranges, r)
	}
	return m, p.end(KindMissing)
}
