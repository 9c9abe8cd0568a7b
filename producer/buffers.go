package producer

import "time"

// trimEvery is how long memory of messages may lie idle.
const trimEvery = time.Second

// buffers keeps the memory of acknowledged messages for the next ones. New memory
// for each message would be cleared, mapped page by page, and collected: together
// about a fifth of the agent's work.
type buffers struct {
	free    [][]byte // that was used last stands last
	bytes   int64
	idle    int // fewest in free since the last trim: so many nobody needed
	trimmed time.Time
}

// take gives memory, or nil.
func (b *buffers) take() []byte {
	n := len(b.free) - 1
	if n < 0 {
		return nil
	}
	buf := b.free[n]
	b.free[n], b.free = nil, b.free[:n]
	b.bytes -= int64(cap(buf))
	b.idle = min(b.idle, n)
	return buf[:0]
}

// put takes memory back unless more than most bytes would be kept.
func (b *buffers) put(buf []byte, most int64) {
	if size := int64(cap(buf)); size > 0 && b.bytes+size <= most {
		b.free, b.bytes = append(b.free, buf), b.bytes+size
	}
}

// trim lets go of what nobody needed since the last trim.
func (b *buffers) trim(now time.Time) {
	if now.Sub(b.trimmed) < trimEvery {
		return
	}
	for _, buf := range b.free[:b.idle] {
		b.bytes -= int64(cap(buf))
	}
	kept := copy(b.free, b.free[b.idle:])
	clear(b.free[kept:])
	b.free = b.free[:kept]
	b.idle, b.trimmed = kept, now
}
