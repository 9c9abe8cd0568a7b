package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// scan takes what an agent before this one left. What is no segment of this version
// stays where it is and is told of; it holds nothing up.
func (s *Spool) scan() error {
	files, err := os.ReadDir(s.o.Dir)
	if err != nil {
		return fmt.Errorf("read the spool %s: %w", s.o.Dir, err)
	}
	var numbers []uint64
	for _, f := range files {
		name := f.Name()
		number, ok := segmentNumber(name)
		switch {
		case ok && f.Type().IsRegular():
			numbers = append(numbers, number)
			s.next = max(s.next, number+1)
		case name == lockName:
		case strings.HasSuffix(name, segmentSuffix+tempSuffix): // of an agent that was killed as it wrote it
			if err := removeIfThere(filepath.Join(s.o.Dir, name)); err != nil {
				return fmt.Errorf("tidy up the spool: %w", err)
			}
		default:
			s.unreadable(name, errors.New("it is no segment of a spool"))
		}
	}
	slices.Sort(numbers)
	for _, number := range numbers {
		if err := s.take(number); err != nil {
			return err
		}
	}
	return nil
}

func (s *Spool) unreadable(name string, why error) {
	s.metrics.unreadable.Inc()
	s.log.Error("a file in the spool cannot be read; it stays there and is not published", "file",
		filepath.Join(s.o.Dir, name), "error", why)
}

// take opens a segment and lists its records.
func (s *Spool) take(number uint64) error {
	name := segmentName(number)
	path := filepath.Join(s.o.Dir, name)
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open a segment of the spool: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("open a segment of the spool: %w", err), f.Close())
	}
	if err := checkSegmentHead(f, number); err != nil {
		if info.Size() < segmentHead { // it was killed as it made the file
			return errors.Join(f.Close(), removeIfThere(path))
		}
		s.unreadable(name, err)
		return f.Close()
	}
	g := &segment{number: number, path: path, file: f, size: info.Size(), synced: info.Size(), sealed: true}
	if err := s.list(g); err != nil {
		s.unreadable(name, err)
		return f.Close()
	}
	if len(g.entries) == 0 {
		return errors.Join(f.Close(), removeIfThere(path))
	}
	g.left = len(g.entries)
	for _, e := range g.entries {
		if e.counted {
			s.found[e.owner] += uint64(e.rows)
		}
		s.enter(e)
	}
	s.segments = append(s.segments, g)
	s.used += g.size
	return nil
}

func checkSegmentHead(f io.ReaderAt, number uint64) error {
	b := make([]byte, segmentHead)
	if _, err := f.ReadAt(b, 0); err != nil {
		return fmt.Errorf("read its head: %w", err)
	}
	if !bytes.HasPrefix(b, []byte(segmentMagic)) {
		return errors.New("it does not start like a segment of a spool")
	}
	switch version := binary.LittleEndian.Uint32(b[8:]); {
	case version > segmentVersion:
		return fmt.Errorf("it has version %d and this release reads %d: a later release publishes it when it runs on "+
			"this folder", version, segmentVersion)
	case version < segmentVersion:
		return fmt.Errorf("it has version %d and this release reads %d: run the release that wrote it until it is empty",
			version, segmentVersion)
	}
	if crc32.Checksum(b[:28], castagnoli) != binary.LittleEndian.Uint32(b[28:]) {
		return errors.New("the CRC of its head does not fit")
	}
	if got := binary.LittleEndian.Uint64(b[16:]); got != number {
		return fmt.Errorf("it says that it is segment %x: it was renamed", got)
	}
	return nil
}

// list finds the records of a segment by their heads. Behind bytes that are no record
// it looks for the next one; where none follows, it is a torn tail, which the agent
// that wrote it did not sync.
func (s *Spool) list(g *segment) error {
	at := int64(segmentHead)
	for at < g.size {
		h, err := readHead(g.file, at, g.size)
		if errors.Is(err, errDamaged) {
			next := nextHead(g.file, at+1, g.size)
			if next == g.size {
				s.metrics.torn.Add(float64(g.size - at))
				s.log.Warn("a segment of the spool ends in a torn record, which nobody was told is there", "file", g.path,
					"bytes", g.size-at)
				return nil
			}
			s.metrics.damaged.Inc()
			s.log.Error("bytes of the spool were changed on the disk: their messages are lost, and cannot be named", "file",
				g.path, "from", at, "bytes", next-at)
			at = next
			continue
		}
		if err == nil && len(g.entries) >= 2*maxRecords {
			err = fmt.Errorf("it holds more than %d messages: Sonde did not write it", 2*maxRecords)
		}
		if err != nil {
			return err
		}
		e := s.entryOf(g, at, &h.m, int64(h.bytes+h.data))
		e.counted = e.rows > 0
		g.entries = append(g.entries, e)
		s.number = max(s.number, h.number+1)
		at += int64(e.size)
	}
	return nil
}

// entryOf makes the entry of a record.
func (s *Spool) entryOf(g *segment, off int64, m *Message, size int64) *entry {
	e := &entry{seg: g, off: off, size: uint32(size), barrier: m.Barrier, owner: s.ownerOf(m.Owner)}
	for i, r := range m.Rows {
		e.rows = clampRows(uint64(e.rows) + uint64(r.Count))
		if i == 0 || r.Priority < e.low {
			e.low = r.Priority
		}
	}
	return e
}

// ownerOf is the one copy of an owner's name.
func (s *Spool) ownerOf(name string) string {
	if one, known := s.owners[name]; known {
		return one
	}
	s.owners[name] = name
	return name
}

// readHead reads the head of the record at an offset. errDamaged: there is none, or
// it does not end before the end of the file.
func readHead(f io.ReaderAt, at, size int64) (head, error) {
	b := make([]byte, min(512, size-at))
	if _, err := f.ReadAt(b, at); err != nil {
		return head{}, err
	}
	n := headBytes(b)
	if n == 0 || at+int64(n) > size {
		return head{}, errDamaged
	}
	if n > len(b) {
		b = make([]byte, n)
		if _, err := f.ReadAt(b, at); err != nil {
			return head{}, err
		}
	}
	h, err := parseHead(b[:n])
	if err == nil && at+int64(h.bytes+h.data) > size {
		err = errDamaged
	}
	return h, err
}

// nextHead is the offset of the first record at or behind an offset, or size.
func nextHead(f io.ReaderAt, at, size int64) int64 {
	magic := binary.LittleEndian.AppendUint32(nil, recordMagic)
	buf := make([]byte, 64<<10)
	for at < size {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-at)], at)
		if n < len(magic) || err != nil && !errors.Is(err, io.EOF) {
			return size
		}
		i := bytes.Index(buf[:n], magic)
		if i < 0 {
			if n < len(buf) {
				return size
			}
			at += int64(n - len(magic) + 1)
			continue
		}
		at += int64(i)
		if _, err := readHead(f, at, size); err == nil {
			return at
		}
		at++
	}
	return size
}
