package commitlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// ErrFenced: another writer claimed the partition. This one must stop.
var ErrFenced = errors.New("another writer claimed the partition; this one stops")

// Writer is the one committer of a partition of a lake. It is used by one goroutine.
type Writer struct {
	log       *Log
	partition int
	name      string // random per claim
	claim     uint64
	start     *Partition
	linked    map[string]bool // data files that this writer made and no entry names yet
	doubt     *sealed         // an entry of which it is not known whether it is in the log
	fenced    bool
}

type sealed struct {
	entry Entry
	data  []byte
}

// Start is the state of the partition when it was claimed.
func (w *Writer) Start() *Partition { return w.start }

// Claim is the version of the claim: a later one of the same partition is greater.
func (w *Writer) Claim() uint64 { return w.claim }

// DataFile says what a data file will hold.
type DataFile struct {
	Table       string
	Incarnation string // of the stream
	First, Last uint64 // positions of the messages in the partition
	Rows        int64
	Epochs      []string
}

// WriteFile makes a data file that no reader sees before a Commit names it. Its
// name follows from the positions of its rows in the partition, and from the claim.
// After an error it may be called again with the same description.
func (w *Writer) WriteFile(d DataFile, write func(io.Writer) error) (File, error) {
	name := dataName(d.Incarnation, w.partition, d.First, d.Last, w.claim)
	path := d.Table + "/" + name
	if w.linked[path] { // of an attempt before; no entry names it
		if err := os.Remove(filepath.Join(w.log.put.lake, path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return File{}, fmt.Errorf("remove the file of a failed commit: %w", err)
		}
	}
	size, crc, linked, err := w.log.put.put(path, tempName(w.claim, name), write)
	if linked {
		w.linked[path] = true
	}
	if err != nil {
		return File{}, err
	}
	return File{Table: d.Table, Path: path, Rows: d.Rows, Bytes: size, First: d.First, Last: d.Last,
		CRC32C: fmt.Sprintf("%08x", crc), Epochs: d.Epochs}, nil
}

// Commit is what becomes visible at once.
type Commit struct {
	Source      Source
	Files       []File
	Chains      map[string]string
	Closed      []string
	Forgotten   []string
	Totals      Totals // of this commit alone
	DeadLetters []DeadLetter
}

// Commit adds an entry to the log, behind those that other writers added meanwhile
// for other partitions: they do not touch each other. Once it returned nil, the entry
// and the files that it names are durable. After an error other than ErrFenced it
// must be called again with the same commit: the entry may be in the log already.
func (w *Writer) Commit(c Commit) error {
	l := w.log
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if w.doubt == nil {
			if err := l.refresh(); err != nil {
				return err
			}
			if w.fenced = w.fenced || l.state.partition(w.partition).Claim != w.claim; !w.fenced {
				w.doubt = w.seal(&c)
			}
		}
		if w.fenced {
			return ErrFenced
		}
		name := entryName(w.doubt.entry.Version)
		path := filepath.Join(Folder, name)
		_, _, _, err := l.put.put(path, tempName(w.claim, name), writeAll(w.doubt.data))
		if errors.Is(err, errTaken) {
			var ours bool
			if ours, err = w.resolve(path); err == nil && !ours {
				w.doubt = nil
				continue
			}
		}
		if err != nil {
			return err
		}
		l.add(&w.doubt.entry)
		w.doubt = nil
		clear(w.linked)
		return nil
	}
}

// seal makes the entry that follows the newest one.
func (w *Writer) seal(c *Commit) *sealed {
	s := w.log.state
	e := Entry{Format: formatOf(w.partition), Version: s.Version + 1, Kind: KindCommit, Partition: w.partition,
		Writer: w.name, Claim: w.claim, WallNS: time.Now().UnixNano(), Source: c.Source, Files: c.Files,
		Chains: c.Chains, Closed: c.Closed, Forgotten: c.Forgotten, Totals: s.Totals.plus(c.Totals),
		DeadLetters: c.DeadLetters}
	out := &sealed{e, seal(e)}
	if len(out.data) > maxFileBytes {
		panic(fmt.Sprintf("BUG: a commit of %d bytes cannot be read again", len(out.data)))
	}
	return out
}

// resolve finds out whose entry took the name: that of an attempt whose outcome was
// not known, which is ours, or that of another writer.
func (w *Writer) resolve(path string) (ours bool, err error) {
	full := filepath.Join(w.log.put.lake, path)
	got, err := os.ReadFile(full)
	if err != nil {
		return false, fmt.Errorf("read back %s: %w", full, err)
	}
	if !bytes.Equal(got, w.doubt.data) {
		return false, nil
	}
	if err := syncDir(filepath.Dir(full)); err != nil {
		return true, fmt.Errorf("make %s durable: %w", full, err)
	}
	return true, nil
}

// Fenced reports whether another writer claimed the partition, for a writer that has
// nothing to commit.
func (w *Writer) Fenced() bool {
	l := w.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if !w.fenced && l.refresh() == nil {
		w.fenced = l.state.partition(w.partition).Claim != w.claim
	}
	return w.fenced
}
