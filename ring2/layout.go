package ring2

import (
	"fmt"
	"math"
	"slices"
)

const (
	noLayer    = -1
	layerLimit = 1 << 20
	// maxRowBytes bounds a row, so that sizes never overflow: 4096 entries of
	// 2^20 rows of 2^30 bytes fit in 63 bits.
	maxRowBytes = 1 << 30
	maxRows     = 1 << 20
)

// RowBytes is the size of one row: the product of Shape and the element size.
// Of a ragged entry it is the size of one unit.
func (e LayoutEntry) RowBytes() int {
	n := e.DType.Size()
	for _, d := range e.Shape {
		if d > maxRowBytes || n > maxRowBytes {
			return math.MaxInt32
		}
		n *= int(d)
	}
	return n
}

// check says what a peer could not accept about an entry.
func (e *LayoutEntry) check() error {
	switch {
	case e.DType.Size() == 0:
		return fmt.Errorf("entry %q has %s", e.Hook, e.DType)
	case e.Select > SelectSampled:
		return fmt.Errorf("entry %q selects rows by %d", e.Hook, e.Select)
	case e.Layer < noLayer || e.Layer > layerLimit:
		return fmt.Errorf("entry %q has layer %d; want -1 (none) to %d", e.Hook, e.Layer, layerLimit)
	case len(e.Shape) > MaxDims:
		return fmt.Errorf("entry %q has %d dimensions; at most %d", e.Hook, len(e.Shape), MaxDims)
	case e.RowBytes() < 1 || e.RowBytes() > maxRowBytes:
		// Rows without bytes would let a capture of nothing claim a million rows.
		return fmt.Errorf("entry %q has rows of no bytes or more than %d: shape %v", e.Hook, maxRowBytes, e.Shape)
	case e.Shard > 0 && e.Shard >= e.ShardCount:
		return fmt.Errorf("entry %q is shard %d of %d", e.Hook, e.Shard, e.ShardCount)
	case len(e.Hook) > MaxTextBytes:
		return fmt.Errorf("entry has a hook name of %d bytes; at most %d", len(e.Hook), MaxTextBytes)
	}
	return nil
}

// AppendLayout appends the payload of a LAYOUT record.
func AppendLayout(b []byte, l Layout) []byte {
	b = order.AppendUint32(b, l.ID)
	b = order.AppendUint32(b, uint32(len(l.Entries)))
	for i := range l.Entries {
		e := &l.Entries[i]
		b = appendText(b, e.Hook)
		b = order.AppendUint32(b, uint32(int32(e.Layer)))
		b = append(b, byte(e.DType), byte(e.Select))
		b = appendFlag(b, e.Ragged)
		b = append(b, byte(len(e.Shape)))
		for _, d := range e.Shape {
			b = order.AppendUint32(b, d)
		}
		b = order.AppendUint16(b, e.Shard)
		b = order.AppendUint16(b, e.ShardCount)
	}
	return b
}

const layoutEntryMinBytes = 14

// ParseLayout reads the payload of a LAYOUT record.
func ParseLayout(b []byte) (Layout, error) {
	p := payload{b: b}
	l := Layout{ID: p.u32()}
	n := p.count(int(p.u32()), MaxLayoutEntries, layoutEntryMinBytes, "entries")
	for range n {
		e := LayoutEntry{Hook: p.text(), Layer: int(int32(p.u32())), DType: DType(p.u8()), Select: RowSelect(p.u8()),
			Ragged: p.flag()}
		dims := p.count(int(p.u8()), MaxDims, 4, "dimensions")
		for range dims {
			e.Shape = append(e.Shape, p.u32())
		}
		e.Shard, e.ShardCount = p.u16(), p.u16()
		if p.err == nil {
			p.err = e.check()
		}
		l.Entries = append(l.Entries, e)
	}
	return l, p.end(KindLayout)
}

// ragged says whether a capture of the layout starts with a table of sizes.
func (l *Layout) ragged() bool {
	for i := range l.Entries {
		if l.Entries[i].Ragged {
			return true
		}
	}
	return false
}

func alignUp(n int) int { return (n + abiPayloadAlign - 1) &^ (abiPayloadAlign - 1) }

// EntryRows are the rows of one layout entry in a capture.
type EntryRows struct {
	Entry    int // index in the layout
	Rows     int
	RowBytes int    // 0 when ragged
	Data     []byte // all rows, one after the other
	Offsets  []byte // ragged only: Rows+1 little-endian u64 into Data, ascending
}

// Row is row i: RowBytes long, or of its own length when ragged.
func (e *EntryRows) Row(i int) []byte {
	if e.Offsets == nil {
		return e.Data[i*e.RowBytes : (i+1)*e.RowBytes : (i+1)*e.RowBytes]
	}
	// The offsets alias shared memory and may have changed since they were
	// checked: an inconsistent pair gives an empty row, never a panic.
	first, last := order.Uint64(e.Offsets[8*i:]), order.Uint64(e.Offsets[8*i+8:])
	if first > last || last > uint64(len(e.Data)) {
		return nil
	}
	return e.Data[first:last:last]
}

// SplitCapture expands a CAPTURE payload of the layoutIndex-th layout of step
// into its entries, in the order of the layout. It checks every size, and the
// slices alias payload.
func SplitCapture(l *Layout, step *Step, layoutIndex int, payload []byte) ([]EntryRows, error) {
	return AppendEntries(nil, l, step, layoutIndex, payload)
}

// AppendEntries is SplitCapture behind the entries of dst, whose memory a reader
// can reuse from step to step. After an error, dst is as it was.
func AppendEntries(dst []EntryRows, l *Layout, step *Step, layoutIndex int, payload []byte) ([]EntryRows, error) {
	if layoutIndex < 0 || layoutIndex >= len(step.Layouts) || step.Layouts[layoutIndex].Layout != l.ID {
		return dst, fmt.Errorf("split capture: layout %d is not the layout at index %d of step %d", l.ID, layoutIndex,
			step.Step)
	}
	all, sampled := step.EntryRows(layoutIndex, SelectAll), step.EntryRows(layoutIndex, SelectSampled)
	if all > maxRows {
		return dst, fmt.Errorf("split capture: step %d has %d rows; at most %d", step.Step, all, maxRows)
	}
	rest, table := payload, []byte(nil)
	if l.ragged() {
		n := alignUp(8 * len(l.Entries))
		if n > len(rest) {
			return dst, fmt.Errorf("split capture: table of %d sizes in %d bytes", len(l.Entries), len(rest))
		}
		table, rest = rest[:n], rest[n:]
	}
	both := slices.Grow(dst, len(l.Entries))[:len(dst)+len(l.Entries)]
	out := both[len(dst):]
	for i := range l.Entries {
		e := &l.Entries[i]
		out[i] = EntryRows{Entry: i, Rows: all, RowBytes: e.RowBytes()}
		if e.Select == SelectSampled {
			out[i].Rows = sampled
		}
		n := out[i].Rows * out[i].RowBytes
		if table != nil {
			size := order.Uint64(table[8*i:])
			if size > uint64(len(rest)) || !e.Ragged && size != uint64(n) {
				return dst, fmt.Errorf("split capture: entry %q has %d bytes by its table, %d are left", e.Hook, size,
					len(rest))
			}
			n = int(size)
		}
		if n > len(rest) {
			return dst, fmt.Errorf("split capture: entry %q needs %d bytes, %d are left", e.Hook, n, len(rest))
		}
		out[i].Data, rest = rest[:n:n], rest[min(alignUp(n), len(rest)):]
		if e.Ragged {
			if err := out[i].splitRagged(e.Hook); err != nil {
				return dst, err
			}
		}
	}
	if len(rest) > 0 {
		return dst, fmt.Errorf("split capture: %d bytes too many for layout %d", len(rest), l.ID)
	}
	return both, nil
}

// splitRagged separates the offsets from the bytes that they point into.
func (e *EntryRows) splitRagged(hook string) error {
	n := 8 * (e.Rows + 1)
	if n > len(e.Data) {
		return fmt.Errorf("split capture: ragged entry %q has %d bytes for %d offsets", hook, len(e.Data), e.Rows+1)
	}
	e.Offsets, e.Data, e.RowBytes = e.Data[:n:n], e.Data[n:], 0
	last := uint64(0)
	for i := range e.Rows + 1 {
		at := order.Uint64(e.Offsets[8*i:])
		if at < last || at > uint64(len(e.Data)) {
			return fmt.Errorf("split capture: ragged entry %q has offset %d after %d, in %d bytes", hook, at, last,
				len(e.Data))
		}
		last = at
	}
	return nil
}
