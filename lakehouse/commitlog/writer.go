package commitlog

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// ErrFenced: another writer claimed the lake. This one must stop.
var ErrFenced = errors.New("another writer claimed the lake; this one stops")

// WriterOptions configure Claim.
type WriterOptions struct {
	Tables []string // folders of the lake
	Logger *slog.Logger
	// Check is for tests: it is asked before each step of making a file and may fail
	// it, or end the process.
	Check func(step, path string) error
}

// Writer is the one committer of a lake. It is used by one goroutine.
type Writer struct {
	o      WriterOptions
	put    putter
	state  *State          // its Files are only those that no manifest lists yet
	linked map[string]bool // data files that this writer made and no entry names yet
	doubt  *sealed         // an entry of which it is not known whether it is in the log
	fenced bool
	swept  int
}

type sealed struct {
	entry Entry
	data  []byte
}

// Claim makes this process the committer of a lake, which is made when there is
// none: it adds a claim entry to the log, so that the next commit of an older
// writer fails, and removes what older writers left without naming it in the log.
func Claim(ctx context.Context, lake string, o WriterOptions) (*Writer, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Writer{o: o, put: putter{lake: lake, check: o.Check}, linked: map[string]bool{}}
	for _, dir := range append([]string{Folder}, o.Tables...) {
		if err := os.MkdirAll(filepath.Join(lake, dir), 0o755); err != nil {
			return nil, fmt.Errorf("make the lake: %w", err)
		}
	}
	if err := syncDir(lake); err != nil {
		return nil, fmt.Errorf("make the lake: %w", err)
	}
	if err := w.claim(ctx); err != nil {
		return nil, err
	}
	if err := w.sweep(); err != nil {
		return nil, err
	}
	w.state.Files = slices.Clone(w.state.Files[len(w.state.Files)-w.state.loose:])
	return w, nil
}

// claim adds the claim entry behind whatever the log holds. Losing a race against
// another claim means to come after it.
func (w *Writer) claim(ctx context.Context) error {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return fmt.Errorf("claim %s: %w", w.put.lake, err)
	}
	name := hex.EncodeToString(id[:])
	for {
		state, err := w.load()
		if err != nil {
			return err
		}
		version := state.Version + 1
		e := Entry{Format: Format, Version: version, Kind: KindClaim, Writer: name, Claim: version,
			WallNS: time.Now().UnixNano(), Source: state.Source, Totals: state.Totals}
		data := seal(e)
		_, _, _, err = w.put.put(filepath.Join(Folder, entryName(version)), claimTempPrefix+name, writeAll(data))
		if errors.Is(err, errTaken) {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("claim %s: %w", w.put.lake, err)
			}
			continue
		}
		if err != nil {
			return fmt.Errorf("claim %s: %w", w.put.lake, err)
		}
		if err := state.apply(&e); err != nil {
			return fmt.Errorf("claim %s: %w", w.put.lake, err)
		}
		w.state = state
		return nil
	}
}

// load reads the state, or an empty one for a new lake.
func (w *Writer) load() (*State, error) {
	entries, _, err := listLog(w.put.lake)
	if err != nil {
		return nil, err
	}
	if entries > 0 {
		state, err := Load(w.put.lake)
		if err != nil {
			return nil, err
		}
		return state.clone(), nil
	}
	for _, table := range w.o.Tables {
		names, err := os.ReadDir(filepath.Join(w.put.lake, table))
		if err != nil {
			return nil, fmt.Errorf("make the lake: %w", err)
		}
		for _, n := range names {
			if dataFileName.MatchString(n.Name()) {
				return nil, fmt.Errorf("make a lake in %s: %s/%s is there, but the log is empty: restore %s, or use an empty "+
					"folder", w.put.lake, table, n.Name(), Folder)
			}
		}
	}
	return emptyState(), nil
}

func writeAll(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

// State is the newest state; it changes with each Commit. Its Files are only those
// that no manifest lists yet.
func (w *Writer) State() *State { return w.state }

// Swept is how many files of older writers Claim removed.
func (w *Writer) Swept() int { return w.swept }

// DataFile says what a data file will hold.
type DataFile struct {
	Table       string
	Incarnation string // of the stream
	First, Last uint64 // positions of the messages
	Rows        int64
	Epochs      []string
}

// WriteFile makes a data file that no reader sees before a Commit names it. Its
// name follows from the positions of its rows in the stream, and from the claim.
// After an error it may be called again with the same description.
func (w *Writer) WriteFile(d DataFile, write func(io.Writer) error) (File, error) {
	name := dataName(d.Incarnation, d.First, d.Last, w.state.Claim)
	path := d.Table + "/" + name
	if w.linked[path] { // of an attempt before; no entry names it
		if err := os.Remove(filepath.Join(w.put.lake, path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return File{}, fmt.Errorf("remove the file of a failed commit: %w", err)
		}
	}
	size, crc, linked, err := w.put.put(path, tempName(w.state.Claim, name), write)
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
	Totals      Totals // since the lake was made, this commit included
	DeadLetters []DeadLetter
}

// Commit adds an entry to the log. Once it returned nil, the entry and the files
// that it names are durable. After an error other than ErrFenced it must be called
// again with the same commit: the entry may be in the log already.
func (w *Writer) Commit(c Commit) error {
	if w.fenced {
		return ErrFenced
	}
	if w.doubt == nil {
		e := Entry{Format: Format, Version: w.state.Version + 1, Kind: KindCommit, Writer: w.state.Writer,
			Claim: w.state.Claim, WallNS: time.Now().UnixNano(), Source: c.Source, Files: c.Files, Chains: c.Chains,
			Closed: c.Closed, Forgotten: c.Forgotten, Totals: c.Totals, DeadLetters: c.DeadLetters}
		w.doubt = &sealed{e, seal(e)}
		if len(w.doubt.data) > maxFileBytes {
			panic(fmt.Sprintf("BUG: a commit of %d bytes cannot be read again", len(w.doubt.data)))
		}
	}
	name := entryName(w.doubt.entry.Version)
	path := filepath.Join(Folder, name)
	_, _, _, err := w.put.put(path, tempName(w.state.Claim, name), writeAll(w.doubt.data))
	if errors.Is(err, errTaken) {
		err = w.resolve(path)
	}
	if err != nil {
		return err
	}
	if err := w.state.apply(&w.doubt.entry); err != nil {
		panic(fmt.Sprintf("BUG: the writer cannot apply its own entry: %v", err))
	}
	w.doubt = nil
	clear(w.linked)
	if err := w.checkpoint(); err != nil { // the commit stands; the next one tries again
		w.o.Logger.Warn("write a checkpoint of the lake's log", "error", err)
	}
	return nil
}

// resolve finds out whose entry took the name: that of an attempt whose outcome was
// not known, or that of a newer writer.
func (w *Writer) resolve(path string) error {
	full := filepath.Join(w.put.lake, path)
	got, err := os.ReadFile(full)
	if err != nil {
		return fmt.Errorf("read back %s: %w", full, err)
	}
	if !bytes.Equal(got, w.doubt.data) {
		w.fenced = true
		return ErrFenced
	}
	if err := syncDir(filepath.Dir(full)); err != nil {
		return fmt.Errorf("make %s durable: %w", full, err)
	}
	return nil
}

// Fenced reports whether another writer claimed the lake, for a writer that has
// nothing to commit.
func (w *Writer) Fenced() bool {
	if !w.fenced && w.doubt == nil {
		_, err := os.Lstat(filepath.Join(w.put.lake, Folder, entryName(w.state.Version+1)))
		w.fenced = err == nil
	}
	return w.fenced
}

// FilesOf lists the files that may hold rows of an epoch, which is 16 hex digits.
// It reads the manifests again, so that a writer need not remember every file.
func (w *Writer) FilesOf(epoch string) ([]File, error) {
	var out []File
	add := func(files []File) {
		for _, f := range files {
			if slices.Contains(f.Epochs, epoch) {
				out = append(out, f)
			}
		}
	}
	for _, ref := range w.state.manifests {
		files, err := readManifest(w.put.lake, ref)
		if err != nil {
			return nil, err
		}
		add(files)
	}
	add(w.state.Files)
	return out, nil
}
