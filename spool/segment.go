package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// A segment file starts with segmentMagic, the version, its number and a CRC.
const (
	segmentMagic   = "SNDSPOOL"
	segmentVersion = 1
	segmentHead    = 32
	segmentSuffix  = ".spool"
	tempSuffix     = ".tmp"
	lockName       = "lock"
)

// Steps on the disk, in their order, for the tests that make one of them fail.
const (
	stepCreate  = "create"
	stepWrite   = "write"
	stepSync    = "sync"
	stepSyncDir = "sync the folder"
	stepRename  = "rename"
	stepRemove  = "remove"
)

// segment is a file of records. Its fields belong to mu of the Spool, but file to
// files of the Spool, and size and synced to the writer.
type segment struct {
	number  uint64
	path    string
	file    *os.File
	size    int64 // where the next record goes
	synced  int64
	sealed  bool // nothing is appended any more
	entries []*entry
	at      int // of entries: all before it were handed to the bus
	left    int // of entries: not settled
}

// entryState is where the message of a record is.
type entryState uint8

const (
	entryWaiting entryState = iota // on disk alone
	entryLeaving                   // being taken out of its segment
	entryHanded                    // to the bus, not answered
	entrySettled                   // the record is garbage
)

// entry is a record of a segment.
type entry struct {
	seg     *segment
	off     int64
	size    uint32
	rows    uint32
	pending uint32 // messages published for it and not answered
	low     int32  // lowest priority of its rows
	state   entryState
	counted bool // its rows are counted for its owner
	quiet   bool // its owner knows its outcome
	barrier bool
	stays   bool // facts about its rows would take more room than it does
	outcome Outcome
	owner   string
}

// droppable reports whether the entry may be discarded. Callers hold mu.
func (e *entry) droppable() bool { return e.rows > 0 && !e.stays && e.state == entryWaiting }

func (s *Spool) step(step, path string) error {
	if s.o.check == nil {
		return nil
	}
	return s.o.check(step, path)
}

func segmentName(number uint64) string { return fmt.Sprintf("%016x%s", number, segmentSuffix) }

// segmentNumber reads the name of a segment.
func segmentNumber(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, ok && err == nil && segmentName(n) == name
}

func appendSegmentHead(b []byte, number uint64) []byte {
	at := len(b)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint32(b, segmentVersion)
	b = binary.LittleEndian.AppendUint32(b, segmentHead)
	b = binary.LittleEndian.AppendUint64(b, number)
	b = binary.LittleEndian.AppendUint32(b, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

// create makes the file of a segment under a name, with its head.
func (s *Spool) create(path string, number uint64) (*os.File, error) {
	if err := s.step(stepCreate, path); err != nil {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	if err := s.writeAt(f, appendSegmentHead(nil, number), 0); err != nil {
		return nil, errors.Join(err, f.Close(), removeIfThere(path))
	}
	return f, nil
}

func (s *Spool) writeAt(f *os.File, b []byte, off int64) error {
	if err := s.step(stepWrite, f.Name()); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	_, err := f.WriteAt(b, off)
	return err
}

func (s *Spool) sync(f *os.File) error {
	if err := s.step(stepSync, f.Name()); err != nil {
		return fmt.Errorf("sync %s: %w", f.Name(), err)
	}
	return f.Sync()
}

func (s *Spool) syncDir() error {
	if err := s.step(stepSyncDir, s.o.Dir); err != nil {
		return fmt.Errorf("sync %s: %w", s.o.Dir, err)
	}
	d, err := os.Open(s.o.Dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// active is the segment that takes the next record; a new one when there is none.
func (s *Spool) active() (*segment, error) {
	if n := len(s.segments); n > 0 && !s.segments[n-1].sealed {
		return s.segments[n-1], nil
	}
	path := filepath.Join(s.o.Dir, segmentName(s.next))
	f, err := s.create(path, s.next)
	if err != nil {
		return nil, err
	}
	if err := s.syncDir(); err != nil {
		return nil, errors.Join(err, f.Close(), removeIfThere(path))
	}
	g := &segment{number: s.next, path: path, file: f, size: segmentHead, synced: segmentHead}
	s.next++
	s.mu.Lock()
	s.segments = append(s.segments, g)
	s.used += segmentHead
	s.mu.Unlock()
	return g, nil
}

// read reads the record of an entry.
func (s *Spool) read(e *entry) (Message, error) {
	s.files.Lock()
	defer s.files.Unlock()
	b := make([]byte, e.size)
	if _, err := e.seg.file.ReadAt(b, e.off); err != nil {
		return Message{}, fmt.Errorf("read %s at %d: %w", e.seg.path, e.off, err)
	}
	m, err := parseRecord(b)
	if err != nil {
		return m, fmt.Errorf("read %s at %d: %w", e.seg.path, e.off, err)
	}
	return m, nil
}

// lockFolder makes a folder and keeps a second agent off it. The lock goes with the
// process.
func lockFolder(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of the spool: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the spool: %w; make %s writable, or choose another folder", err, dir)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errors.New("another agent uses it: stop that one, or give this one a folder of its own")
	}
	return nil, errors.Join(fmt.Errorf("lock the spool %s: %w", dir, err), f.Close())
}
