package dot

// level is a set of instructions that kernels are written for.
type level int

const (
	levelGo level = iota
	levelAVX2
	levelAVX512
)

func (l level) String() string {
	return [...]string{"go", "avx2", "avx512"}[l]
}

// current is the best level of this processor. Tests set others.
var current = best()
