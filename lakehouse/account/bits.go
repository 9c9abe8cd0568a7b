package account

import "math/bits"

// rowBits is a set of rows of one capture at one hook.
type rowBits []uint64

// run is an arithmetic progression of rows.
type run struct{ first, count, stride uint32 }

// end is one past the last row.
func (r run) end() uint64 {
	if r.count == 0 {
		return 0
	}
	return uint64(r.first) + uint64(r.count-1)*uint64(r.stride) + 1
}

// cleared is the empty set with room for rows below end.
func (b rowBits) cleared(end uint64) rowBits {
	words := int((end + 63) / 64)
	if cap(b) < words {
		return make(rowBits, words)
	}
	b = b[:words]
	clear(b)
	return b
}

// set adds the rows of a run, which fit.
func (b rowBits) set(r run) {
	if r.stride != 1 {
		for k, row := uint32(0), r.first; k < r.count; k, row = k+1, row+r.stride {
			b[row/64] |= 1 << (row % 64)
		}
		return
	}
	for row, end := uint64(r.first), r.end(); row < end; {
		n := min(64-row%64, end-row)
		b[row/64] |= mask(n) << (row % 64)
		row += n
	}
}

// take removes the rows of a run and returns how many there were.
func (b rowBits) take(r run) uint64 {
	if r.stride == 1 {
		return b.takeRange(uint64(r.first), r.end())
	}
	var n uint64
	limit := uint64(len(b)) * 64
	for k, row := uint32(0), uint64(r.first); k < r.count && row < limit; k, row = k+1, row+uint64(r.stride) {
		if bit := uint64(1) << (row % 64); b[row/64]&bit != 0 {
			b[row/64] &^= bit
			n++
		}
	}
	return n
}

func (b rowBits) takeSpan(s span) uint64 { return b.takeRange(uint64(s.first), uint64(s.last)+1) }

func (b rowBits) takeRange(row, end uint64) uint64 {
	var n uint64
	for end = min(end, uint64(len(b))*64); row < end; {
		step := min(64-row%64, end-row)
		m := mask(step) << (row % 64)
		n += uint64(bits.OnesCount64(b[row/64] & m))
		b[row/64] &^= m
		row += step
	}
	return n
}

// holds reports whether a row is in the set.
func (b rowBits) holds(row uint64) bool { return row/64 < uint64(len(b)) && b[row/64]>>(row%64)&1 != 0 }

// count is the number of rows in the set.
func (b rowBits) count() uint64 {
	var n uint64
	for _, word := range b {
		n += uint64(bits.OnesCount64(word))
	}
	return n
}

// each calls f with the rows in ascending order until f returns false.
func (b rowBits) each(f func(row uint32) bool) {
	for i, word := range b {
		for ; word != 0; word &= word - 1 {
			if !f(uint32(i*64 + bits.TrailingZeros64(word))) {
				return
			}
		}
	}
}

// mask has the n lowest bits set, n from 1 to 64.
func mask(n uint64) uint64 { return ^uint64(0) >> (64 - n) }
