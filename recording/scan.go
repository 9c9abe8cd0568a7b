package recording

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// scan reads the frames of one session, over its segments, and checks every byte.
type scan struct {
	paths    []string
	at       int // the current segment
	f        *os.File
	r        *bufio.Reader
	offset   int64 // in the current segment
	left     int64 // bytes of it that are not read
	ordinal  uint64
	identity segmentHeader // of the first segment
	ended    bool          // the end frame was read
	torn     int64         // bytes at the end of the last segment that a recorder which died left
}

// frame is one frame. body is owned by whoever got it.
type frame struct {
	typ  uint8
	body []byte
}

func openScan(dir string) (*scan, error) {
	paths, err := segments(dir)
	if err != nil {
		return nil, err
	}
	s := &scan{paths: paths, at: -1}
	if err := s.nextSegment(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *scan) close() error {
	if s.f == nil {
		return nil
	}
	f := s.f
	s.f = nil
	return f.Close()
}

func (s *scan) last() bool { return s.at == len(s.paths)-1 }

// nextSegment opens the next file. io.EOF says that there is none.
func (s *scan) nextSegment() error {
	if s.at >= 0 && s.last() {
		return io.EOF
	}
	if err := s.close(); err != nil {
		return err
	}
	s.at++
	f, err := os.Open(s.paths[s.at])
	if err != nil {
		return err
	}
	s.f = f
	info, err := f.Stat()
	if err != nil {
		return err
	}
	s.offset, s.left = 0, info.Size()
	s.r = bufio.NewReaderSize(f, 1<<16)
	if s.left < segmentHeaderBytes && s.at > 0 && s.last() {
		return s.tear()
	}
	var b [segmentHeaderBytes]byte
	if err := s.fill(b[:]); err != nil {
		return err
	}
	h, err := parseSegmentHeader(b[:])
	if err != nil {
		return fmt.Errorf("read %s: %w", s.paths[s.at], err)
	}
	if s.at == 0 {
		s.identity = h
	}
	want := s.identity
	want.index, want.ordinal = uint32(s.at), s.ordinal
	if h != want {
		return s.corrupt("it is segment %d of epoch %016x from frame %d; want %d of %016x from %d", h.index, h.epoch,
			h.ordinal, want.index, want.epoch, want.ordinal)
	}
	return nil
}

// fill reads exactly the bytes asked for.
func (s *scan) fill(b []byte) error {
	if int64(len(b)) > s.left {
		return s.corrupt("%d bytes are left of it; want %d", s.left, len(b))
	}
	n, err := io.ReadFull(s.r, b)
	s.offset += int64(n)
	s.left -= int64(n)
	if err != nil {
		return fmt.Errorf("read %s at byte %d: %w", s.paths[s.at], s.offset, err)
	}
	return nil
}

func (s *scan) corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s at byte %d: %s", ErrCorrupt, s.paths[s.at], s.offset, fmt.Sprintf(format, args...))
}

// tear ends the session at a frame that was not written to its end, which only the
// last segment can have.
func (s *scan) tear() error {
	if s.ended || !s.last() {
		return s.corrupt("it ends inside a frame")
	}
	s.torn, s.left = s.left, 0
	return io.EOF
}

// next returns the next frame. io.EOF is the end of the session: see ended and torn.
func (s *scan) next() (frame, error) {
	for s.left == 0 {
		if s.torn > 0 {
			return frame{}, io.EOF
		}
		if err := s.nextSegment(); err != nil {
			return frame{}, err
		}
	}
	if s.ended {
		return frame{}, s.corrupt("bytes follow the end of the session")
	}
	if s.left < frameHeaderBytes {
		return frame{}, s.tear()
	}
	var b [frameHeaderBytes]byte
	if err := s.fill(b[:]); err != nil {
		return frame{}, err
	}
	h, ok := parseFrameHeader(b[:])
	switch {
	case !ok && b == [frameHeaderBytes]byte{} && s.onlyZeros():
		// A file system may lengthen a file before it writes what it promised.
		s.left += frameHeaderBytes
		return frame{}, s.tear()
	case !ok:
		return frame{}, s.corrupt("the checksum of a frame's header does not fit")
	case h.ordinal != s.ordinal:
		return frame{}, s.corrupt("frame %d stands in the place of frame %d", h.ordinal, s.ordinal)
	case int64(h.length)+frameTrailerBytes > s.left:
		s.left += frameHeaderBytes
		return frame{}, s.tear()
	}
	return s.body(h, b[:])
}

func (s *scan) body(h frameHeader, header []byte) (frame, error) {
	body := make([]byte, h.length)
	if err := s.fill(body); err != nil {
		return frame{}, err
	}
	var trailer [frameTrailerBytes]byte
	if err := s.fill(trailer[:]); err != nil {
		return frame{}, err
	}
	sum := crc32.Update(crc32.Checksum(header, castagnoli), castagnoli, body)
	if order.Uint32(trailer[:]) != sum {
		return frame{}, s.corrupt("the checksum of frame %d does not fit", h.ordinal)
	}
	s.ordinal++
	s.ended = h.typ == frameEnd
	return frame{typ: h.typ, body: body}, nil
}

// onlyZeros says whether the rest of the last segment was never written. It reads
// ahead of the scan, which ends here in any case.
func (s *scan) onlyZeros() bool {
	if !s.last() {
		return false
	}
	var b [4096]byte
	for {
		n, err := s.r.Read(b[:])
		for _, v := range b[:n] {
			if v != 0 {
				return false
			}
		}
		if err != nil {
			return errors.Is(err, io.EOF)
		}
	}
}
