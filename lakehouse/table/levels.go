package table

// levelsPerBatch bounds the values that are written at once, but for a row that is
// longer.
const levelsPerBatch = 1 << 16

// null is the length of a list that is not there.
const null = -1

// Definition levels of an optional list of required elements.
const (
	defNull    = 0
	defEmpty   = 1
	defElement = 2
)

// levels makes the definition and repetition levels of rows of equal length once
// and hands them out again: building them per value would cost more than
// compressing the values.
type levels struct {
	dim      int
	made     bool
	def, rep []int16
}

// of returns the levels of so many rows whose lists have dim elements, or are null.
func (l *levels) of(dim, rows int) (def, rep []int16) {
	width := max(dim, 1)
	if !l.made || l.dim != dim {
		l.dim, l.made = dim, true
		l.def, l.rep = l.def[:0], l.rep[:0]
	}
	level := int16(defElement)
	switch dim {
	case null:
		level = defNull
	case 0:
		level = defEmpty
	}
	for len(l.def) < width*rows {
		l.rep = append(l.rep, 0)
		l.def = append(l.def, level)
		for range width - 1 {
			l.rep = append(l.rep, 1)
			l.def = append(l.def, level)
		}
	}
	return l.def[:width*rows], l.rep[:width*rows]
}
