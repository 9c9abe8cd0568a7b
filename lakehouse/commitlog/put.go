package commitlog

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// errTaken: the name exists already.
var errTaken = errors.New("the name is taken")

// tempPrefix starts the names of files that are not complete. No reader looks at
// them.
const tempPrefix = ".tmp-"

// putter makes files: complete and durable, or not there. check, which tests set,
// is asked before each step and may make it fail.
type putter struct {
	lake  string
	check func(step, path string) error
}

// Steps of a put, in their order. stepWrite comes before each write.
const (
	stepCreate   = "create"
	stepWrite    = "write"
	stepSync     = "sync"
	stepLink     = "link"
	stepSyncDir  = "sync the folder"
	stepUnlink   = "remove the temporary name"
	bufferedPuts = 256 << 10
)

func (p *putter) step(step, path string) error {
	if p.check == nil {
		return nil
	}
	return p.check(step, path)
}

// put writes a file below the lake under a temporary name, syncs it, gives it its
// name with link(2), which fails with errTaken when there is such a file, and syncs
// the folder. linked tells whether the name was given although an error followed.
func (p *putter) put(path, temp string, write func(io.Writer) error) (size int64, crc uint32, linked bool, err error) {
	dir := filepath.Join(p.lake, filepath.Dir(path))
	full, temp := filepath.Join(p.lake, path), filepath.Join(dir, temp)
	if size, crc, err = p.writeTemp(temp, write); err != nil {
		return 0, 0, false, errors.Join(fmt.Errorf("write %s: %w", full, err), removeIfThere(temp))
	}
	if err = p.step(stepLink, full); err == nil {
		err = os.Link(temp, full)
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return 0, 0, false, errors.Join(fmt.Errorf("link %s: %w", full, errTaken), removeIfThere(temp))
	case err != nil:
		return 0, 0, false, errors.Join(fmt.Errorf("give %s its name: %w; the file system of a lake must have hard links",
			full, err), removeIfThere(temp))
	}
	if err = p.step(stepSyncDir, full); err == nil {
		err = syncDir(dir)
	}
	if err == nil {
		if err = p.step(stepUnlink, full); err == nil {
			err = removeIfThere(temp)
		}
	}
	if err != nil {
		return 0, 0, true, fmt.Errorf("make %s durable: %w", full, err)
	}
	return size, crc, true, nil
}

func (p *putter) writeTemp(temp string, write func(io.Writer) error) (size int64, crc uint32, err error) {
	if err := p.step(stepCreate, temp); err != nil {
		return 0, 0, err
	}
	if err := removeIfThere(temp); err != nil { // of an attempt before: the name holds our claim
		return 0, 0, err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return 0, 0, err
	}
	w := &summer{p: p, f: f}
	buf := bufio.NewWriterSize(w, bufferedPuts)
	err = write(buf)
	if err == nil {
		err = buf.Flush()
	}
	if err == nil {
		if err = p.step(stepSync, temp); err == nil {
			err = f.Sync()
		}
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, 0, err
	}
	return w.size, w.crc, nil
}

// summer counts and sums what is written.
type summer struct {
	p    *putter
	f    *os.File
	size int64
	crc  uint32
}

func (s *summer) Write(b []byte) (int, error) {
	if err := s.p.step(stepWrite, s.f.Name()); err != nil {
		return 0, err
	}
	n, err := s.f.Write(b)
	s.size += int64(n)
	s.crc = crc32.Update(s.crc, castagnoli, b[:n])
	return n, err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
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
