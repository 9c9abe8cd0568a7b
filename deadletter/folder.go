// Package deadletter keeps messages that can never be taken, each with the reason, in
// a bounded folder: those that the bus refused, and those that nobody can read. Agent
// and materializer write the same files, and `sonde deadletter` reads them.
package deadletter

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Who keeps letters.
const (
	FromAgent        = "agent"
	FromMaterializer = "materializer"
)

// Letter is a message that can never be taken.
type Letter struct {
	From    string    `json:"from"` // FromAgent or FromMaterializer
	When    time.Time `json:"when"`
	Reason  string    `json:"reason"`
	Subject string    `json:"subject"`
	ID      string    `json:"id,omitempty"` // of the message

	// Where it stood in the stream, when it came from there. Positions start at 1.
	Incarnation string    `json:"incarnation,omitempty"`
	Partition   int       `json:"partition,omitempty"`
	Position    uint64    `json:"position,omitempty"`
	Stored      time.Time `json:"stored,omitzero"`

	Data []byte `json:"-"`
}

// Name is the name of the letter's file. The same message has the same name, so that
// one that comes again changes nothing.
func (l *Letter) Name() string {
	sum := sha256.New()
	for _, part := range [][]byte{[]byte(l.Subject), []byte(l.ID), l.Data} {
		sum.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(part))))
		sum.Write(part)
	}
	return hex.EncodeToString(sum.Sum(nil)[:10]) + suffix
}

// A file is magic, the length of the note, the note (a Letter in JSON), the data, and
// a CRC-32C of all of it, little-endian.
const (
	magic      = "SNDDEAD1"
	suffix     = ".dead"
	tempPrefix = ".tmp-"
	maxNote    = 1 << 20
	maxReason  = 4 << 10
	tempAge    = 10 * time.Minute
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrFull: the folder has no room for the letter, or there is no folder.
var ErrFull = errors.New("the dead-letter folder is full")

// Folder is a bounded folder of letters. Its methods may be called from any goroutine.
type Folder struct {
	dir  string
	most int64

	mu    sync.Mutex // a leaf
	bytes int64
	files int
}

// Open makes a folder and counts what is there; files of an earlier run stay. With
// dir "", nothing is kept. most bounds the bytes of all files.
func Open(dir string, most int64) (*Folder, error) {
	f := &Folder{dir: dir, most: most}
	if dir == "" {
		return f, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the dead-letter folder: %w", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the dead-letter folder %s: %w", dir, err)
	}
	for _, e := range files {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err == nil && strings.HasPrefix(e.Name(), tempPrefix) {
			// An old one is of a writer that was killed; a new one may be of another process.
			if time.Since(info.ModTime()) > tempAge {
				err = os.Remove(path)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("tidy up the dead-letter folder: %w", err)
			}
			continue
		}
		if err != nil || !info.Mode().IsRegular() || !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		f.bytes += info.Size()
		f.files++
	}
	return f, nil
}

// Put keeps a letter and returns the name of its file, or ErrFull. When it returns no
// error, the file is on disk.
func (f *Folder) Put(l Letter) (name string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dir == "" {
		return "", ErrFull
	}
	name = l.Name()
	if _, err := os.Lstat(filepath.Join(f.dir, name)); err == nil {
		return name, nil
	}
	buf, err := encode(l)
	if err != nil {
		return "", err
	}
	if f.bytes+int64(len(buf)) > f.most {
		return "", ErrFull
	}
	if err := f.write(name, buf); err != nil {
		return "", fmt.Errorf("write a dead letter to %s: %w", f.dir, err)
	}
	f.bytes += int64(len(buf))
	f.files++
	return name, nil
}

// Size is the number of files and their bytes.
func (f *Folder) Size() (files int, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.files, f.bytes
}

func encode(l Letter) ([]byte, error) {
	l.Reason = strings.ToValidUTF8(l.Reason[:min(len(l.Reason), maxReason)], "?")
	note, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("write the note of a dead letter: %w", err)
	}
	if len(note) > maxNote {
		return nil, fmt.Errorf("the note of a dead letter has %d bytes; at most %d", len(note), maxNote)
	}
	buf := binary.LittleEndian.AppendUint32([]byte(magic), uint32(len(note)))
	buf = append(append(buf, note...), l.Data...)
	return binary.LittleEndian.AppendUint32(buf, crc32.Checksum(buf, castagnoli)), nil
}

func decode(buf []byte) (l Letter, err error) {
	const head, tail = len(magic) + 4, 4
	if len(buf) < head+tail || string(buf[:len(magic)]) != magic {
		return l, errors.New("it does not start like a dead letter of this release")
	}
	end := len(buf) - tail
	if crc32.Checksum(buf[:end], castagnoli) != binary.LittleEndian.Uint32(buf[end:]) {
		return l, errors.New("its CRC does not fit: it is torn, or was changed")
	}
	n := int(binary.LittleEndian.Uint32(buf[len(magic):]))
	if n > maxNote || n > end-head {
		return l, errors.New("its note is longer than the file")
	}
	if err := json.Unmarshal(buf[head:head+n], &l); err != nil {
		return l, fmt.Errorf("read its note: %w", err)
	}
	l.Data = buf[head+n : end]
	return l, nil
}

func (f *Folder) write(name string, buf []byte) error {
	file, err := os.CreateTemp(f.dir, tempPrefix+"*")
	if err != nil {
		return err
	}
	temp := file.Name()
	_, err = file.Write(buf)
	if err == nil {
		err = file.Chmod(0o644)
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(temp, filepath.Join(f.dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	dir, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// maxFile bounds a file that is read: a message and its note.
const maxFile = 34 << 20

// Read reads the file of a letter, which may come from anywhere.
func Read(path string) (Letter, error) {
	info, err := os.Stat(path)
	if err == nil && info.Size() > maxFile {
		err = fmt.Errorf("it has %d bytes; at most %d", info.Size(), maxFile)
	}
	var buf []byte
	if err == nil {
		buf, err = os.ReadFile(path)
	}
	var l Letter
	if err == nil {
		l, err = decode(buf)
	}
	if err != nil {
		return Letter{}, fmt.Errorf("read the dead letter %s: %w", path, err)
	}
	return l, nil
}

// Entry is a file of a folder.
type Entry struct {
	Path  string
	Bytes int64
	Letter
	Err error // why the file cannot be read; then only Path and Bytes are set
}

// List reads the letters of a folder without their data, oldest first. A folder that
// does not exist has none.
func List(dir string) ([]Entry, error) {
	paths, err := filepath.Glob(filepath.Join(escape(dir), "*"+suffix))
	if err != nil {
		return nil, fmt.Errorf("list the dead letters in %s: %w", dir, err)
	}
	if _, err := os.ReadDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the dead letters: %w", err)
	}
	var out []Entry
	for _, path := range paths {
		e := Entry{Path: path}
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			e.Bytes = info.Size()
			e.Letter, err = Read(path)
		}
		e.Letter.Data, e.Err = nil, err
		out = append(out, e)
	}
	slices.SortStableFunc(out, func(a, b Entry) int { return a.When.Compare(b.When) })
	return out, nil
}

// escape keeps characters of a path from being read as a pattern.
func escape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(dir)
}
