package oracle

import "sonde/engine/arithmetic"

// Arithmetic recomputes a row of the arithmetic model, for Checker.Recompute.
func Arithmetic(dst []byte, k Key) (row []byte, ok bool) {
	h, ok := arithmetic.HookOf(k.Hook, k.Layer)
	if !ok {
		return dst, true // no row of such a hook can be right
	}
	row = arithmetic.Row(dst, h, k.Request, k.Sample, k.Position, k.Pass)
	return row, row != nil
}
