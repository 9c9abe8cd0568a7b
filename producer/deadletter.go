package producer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// deadLetterSuffix ends the name of a complete file; others are torn.
const deadLetterSuffix = ".dead"

var errDeadLetterFull = errors.New("the dead-letter directory is full")

// deadLetters is the bounded directory of messages that the bus can never take.
// A file holds, each with a u32 length before it: the reason, the subject, the
// message id, the message. It appears under its name only when it is on disk.
type deadLetters struct {
	dir      string
	maxBytes int64

	mu    sync.Mutex // a leaf
	bytes int64
	files int
	next  int
}

// openDeadLetters counts what is there; files of an earlier run stay.
func openDeadLetters(dir string, maxBytes int64) (*deadLetters, error) {
	d := &deadLetters{dir: dir, maxBytes: maxBytes}
	if dir == "" {
		return d, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the dead-letter directory %s: %w", dir, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the dead-letter directory %s: %w", dir, err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), deadLetterSuffix) {
			continue
		}
		if info, err := e.Info(); err == nil {
			d.bytes += info.Size()
			d.files++
		}
	}
	return d, nil
}

// put writes one message and returns the file's name, or errDeadLetterFull.
func (d *deadLetters) put(reason, subject, id string, data []byte) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var buf []byte
	for _, part := range [][]byte{[]byte(reason), []byte(subject), []byte(id), data} {
		buf = binary.LittleEndian.AppendUint32(buf, uint32(len(part)))
		buf = append(buf, part...)
	}
	if d.dir == "" || d.bytes+int64(len(buf)) > d.maxBytes {
		return "", errDeadLetterFull
	}
	name, err := d.write(buf)
	if err != nil {
		return "", fmt.Errorf("write a dead letter to %s: %w", d.dir, err)
	}
	d.bytes += int64(len(buf))
	d.files++
	return name, nil
}

func (d *deadLetters) write(buf []byte) (string, error) {
	f, err := os.CreateTemp(d.dir, "letter-*.part")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(buf)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	// The temporary file's name is unique among the unfinished ones, not among the
	// finished: link refuses a taken name where rename would replace the file.
	for {
		name := fmt.Sprintf("%08d%s", d.next, deadLetterSuffix)
		d.next++
		err := os.Link(f.Name(), filepath.Join(d.dir, name))
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		return name, syncDir(d.dir)
	}
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// size is the number of files and their bytes.
func (d *deadLetters) size() (files int, bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.files, d.bytes
}

// DeadLetter is one message that the bus refused for good.
type DeadLetter struct {
	Reason, Subject, ID string
	Data                []byte
}

// ReadDeadLetter reads one file of the dead-letter directory.
func ReadDeadLetter(path string) (DeadLetter, error) {
	buf, err := os.ReadFile(path)
	if err != nil {
		return DeadLetter{}, fmt.Errorf("read dead letter: %w", err)
	}
	var parts [4][]byte
	for i := range parts {
		if len(buf) < 4 || uint64(len(buf)-4) < uint64(binary.LittleEndian.Uint32(buf)) {
			return DeadLetter{}, fmt.Errorf("dead letter %s ends early: it was not written by this program", path)
		}
		n := binary.LittleEndian.Uint32(buf)
		parts[i], buf = buf[4:4+n], buf[4+n:]
	}
	return DeadLetter{Reason: string(parts[0]), Subject: string(parts[1]), ID: string(parts[2]), Data: parts[3]}, nil
}
