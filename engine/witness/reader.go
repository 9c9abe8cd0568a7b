package witness

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"sonde/ring2"
)

// Row is what the engine says about one row.
type Row struct {
	Epoch          uint64
	Request        string
	Sample         int
	Position, Pass int
	Hook           string
	Layer          int      // -1: none
	Hash           [16]byte // first 16 bytes of the SHA-256 of the row's bytes
}

// maxRecordBytes bounds a record; a file with a larger one is refused.
const maxRecordBytes = 1 << 28

// Read calls f for every row of every file in a folder. A file may end in the
// middle of a record: the process died there. Any other damage is an error that
// names the file.
func Read(dir string, f func(Row) error) error {
	files, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		return fmt.Errorf("list the witness folder: %w", err)
	}
	if len(files) == 0 {
		return fmt.Errorf("read the witness: %s holds no *%s file", dir, suffix)
	}
	slices.Sort(files)
	for _, name := range files {
		if err := readFile(name, f); err != nil {
			return fmt.Errorf("read the witness %s: %w", name, err)
		}
	}
	return nil
}

func readFile(name string, f func(Row) error) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	r := records{in: bufio.NewReaderSize(file, 1<<20), left: info.Size()}
	head, err := r.next()
	if err != nil || head == nil {
		return err
	}
	var s steps
	if err := s.head(head); err != nil {
		return err
	}
	for {
		payload, err := r.next()
		if err != nil || payload == nil {
			return err
		}
		if err := s.step(payload, f); err != nil {
			return err
		}
	}
}

// records reads one record after the other.
type records struct {
	in   io.Reader
	left int64
	buf  []byte
}

// next is nil at the end, also at a torn one.
func (r *records) next() ([]byte, error) {
	var head [recordBytes]byte
	if r.left < recordBytes {
		return nil, nil
	}
	if _, err := io.ReadFull(r.in, head[:]); err != nil {
		return nil, err
	}
	r.left -= recordBytes
	n := int64(order.Uint32(head[:]))
	if n > r.left {
		return nil, nil
	}
	if n > maxRecordBytes {
		return nil, fmt.Errorf("record of %d bytes; at most %d", n, maxRecordBytes)
	}
	r.left -= n
	r.buf = slices.Grow(r.buf[:0], int(n))[:n]
	if _, err := io.ReadFull(r.in, r.buf); err != nil {
		return nil, err
	}
	if crc32.Checksum(r.buf, castagnoli) != order.Uint32(head[4:]) {
		return nil, errors.New("a record has a wrong checksum")
	}
	return r.buf, nil
}

type hook struct {
	name  string
	layer int
	sel   ring2.RowSelect
}

type span struct {
	request                       string
	sample, pass, position, count int
	sampled                       bool
}

// steps expands the records of one file.
type steps struct {
	epoch uint64
	hooks []hook
	spans []span
}

var errShort = errors.New("a record is shorter than it says")

// fields reads a payload front to back; the first failure sticks.
type fields struct {
	b   []byte
	err error
}

func (p *fields) take(n int) []byte {
	if n < 0 || n > len(p.b) {
		p.err, p.b = errShort, nil
		return nil
	}
	out := p.b[:n]
	p.b = p.b[n:]
	return out
}

func (p *fields) u32() int {
	if b := p.take(4); b != nil {
		return int(order.Uint32(b))
	}
	return 0
}

func (p *fields) u8() byte {
	if b := p.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (s *steps) head(payload []byte) error {
	p := fields{b: payload}
	if got := string(p.take(len(magic))); got != magic || p.u32() != version {
		return fmt.Errorf("it does not start with %s of version %d", magic, version)
	}
	if b := p.take(8); b != nil {
		s.epoch = order.Uint64(b)
	}
	for n := p.u32(); n > 0 && p.err == nil; n-- {
		s.hooks = append(s.hooks, hook{string(p.take(p.u32())), int(int32(p.u32())), ring2.RowSelect(p.u8())})
	}
	return p.err
}

func (s *steps) step(payload []byte, f func(Row) error) error {
	p := fields{b: payload}
	s.spans = s.spans[:0]
	for n := p.u32(); n > 0 && p.err == nil; n-- {
		g := span{string(p.take(p.u32())), p.u32(), p.u32(), p.u32(), p.u32(), p.u8() == 1}
		if g.count == 0 && p.err == nil {
			return errors.New("a step has a range without tokens")
		}
		s.spans = append(s.spans, g)
	}
	for _, h := range s.hooks {
		for i := range s.spans {
			g := &s.spans[i]
			first := 0
			if h.sel == ring2.SelectSampled {
				if first = g.count - 1; !g.sampled {
					continue
				}
			}
			for j := first; j < g.count; j++ {
				hash := p.take(hashBytes)
				if hash == nil {
					return errShort
				}
				row := Row{s.epoch, g.request, g.sample, g.position + j, g.pass, h.name, h.layer, [16]byte(hash)}
				if err := f(row); err != nil {
					return err
				}
			}
		}
	}
	if p.err == nil && len(p.b) > 0 {
		return fmt.Errorf("a step has %d bytes too many", len(p.b))
	}
	return p.err
}
