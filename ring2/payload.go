package ring2

import (
	"encoding/binary"
	"fmt"
)

// Bounds of control records. Writers refuse to exceed them, readers refuse
// records that do.
const (
	MaxStepLayouts   = 64      // bits of a range's mask
	MaxStepRanges    = 4096    // of one step
	MaxLayoutEntries = 4096    // of one layout
	MaxDims          = 8       // of one entry
	MaxTextBytes     = 4096    // of one string
	MaxLabels        = 64      // of one request
	MaxControlBytes  = 1 << 16 // of MODEL, LAYOUT, REQUEST_OPEN and REQUEST_END payloads
)

// maxControlRecord bounds the payload of every record but a CAPTURE, so that its
// checksum costs a bounded time. The largest are MISSING and its OBITUARY.
const maxControlRecord = 1 << 18

// payload reads a control payload front to back. The first failure sticks, so
// that a parser checks once at its end. It never reads past its bytes, also when
// they change while it reads.
type payload struct {
	b   []byte
	err error
}

func (p *payload) take(n int) []byte {
	if p.err != nil || n > len(p.b) {
		p.fail("needs %d bytes more, %d are left", n, len(p.b))
		return nil
	}
	out := p.b[:n]
	p.b = p.b[n:]
	return out
}

func (p *payload) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf(format, args...)
	}
}

func (p *payload) u8() uint8 {
	if b := p.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (p *payload) u16() uint16 {
	if b := p.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (p *payload) u32() uint32 {
	if b := p.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (p *payload) u64() uint64 {
	if b := p.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (p *payload) text() string {
	n := int(p.u16())
	if n > MaxTextBytes {
		p.fail("text of %d bytes; at most %d", n, MaxTextBytes)
		return ""
	}
	return string(p.take(n))
}

// flag reads a byte that must be 0 or 1.
func (p *payload) flag() bool {
	v := p.u8()
	if v > 1 {
		p.fail("flag is %d; want 0 or 1", v)
	}
	return v == 1
}

// zero skips reserved bytes, which must be 0.
func (p *payload) zero(n int) {
	for _, b := range p.take(n) {
		if b != 0 {
			p.fail("reserved byte is %d; want 0", b)
		}
	}
}

// count checks a number of items against its bound and against the bytes that
// so many items need at least.
func (p *payload) count(n, limit, itemBytes int, what string) int {
	if n > limit || n*itemBytes > len(p.b) {
		p.fail("%d %s; the limit is %d, and %d bytes are left", n, what, limit, len(p.b))
		return 0
	}
	return n
}

// end reports the first failure, or bytes that nobody read.
func (p *payload) end(k Kind) error {
	if p.err == nil && len(p.b) > 0 {
		p.fail("%d bytes too many", len(p.b))
	}
	if p.err != nil {
		return fmt.Errorf("parse %s record: %w", k, p.err)
	}
	return nil
}

var order = binary.LittleEndian

func appendText(b []byte, s string) []byte {
	s = s[:min(len(s), MaxTextBytes)]
	return append(order.AppendUint16(b, uint16(len(s))), s...)
}

func appendFlag(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}
