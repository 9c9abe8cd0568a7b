package commitlog

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Options configure OpenLog.
type Options struct {
	Tables []string // folders of the lake
	Logger *slog.Logger
	// Check is for tests: it is asked before each step of making a file and may fail
	// it, or end the process.
	Check func(step, path string) error
}

// Log is the log of a lake, open for writing by one process. Several processes may
// write one log, each those partitions of the stream that it claimed. Methods may be
// called from any goroutine.
type Log struct {
	o   Options
	put putter

	mu    sync.Mutex // held while an entry is added; a leaf
	state *State     // its Files are only those that no manifest lists yet
}

// OpenLog opens a lake, which is made when there is none. It claims nothing.
func OpenLog(lake string, o Options) (*Log, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{o: o, put: putter{lake: lake, check: o.Check}}
	for _, dir := range append([]string{Folder}, o.Tables...) {
		if err := os.MkdirAll(filepath.Join(lake, dir), 0o755); err != nil {
			return nil, fmt.Errorf("make the lake: %w", err)
		}
	}
	if err := syncDir(lake); err != nil {
		return nil, fmt.Errorf("make the lake: %w", err)
	}
	return l, l.load()
}

// load reads the state, or begins an empty one for a new lake.
func (l *Log) load() error {
	entries, _, err := listLog(l.put.lake)
	if err != nil {
		return err
	}
	if entries > 0 {
		if l.state, err = Load(l.put.lake); err != nil {
			return err
		}
		l.state.Files = slices.Clone(l.state.Files[len(l.state.Files)-l.state.loose:])
		if first, err := readEntry(l.put.lake, 1); err == nil { // checkpoints of before do not say it
			l.state.Lake = first.Writer
		}
		return nil
	}
	for _, table := range l.o.Tables {
		names, err := os.ReadDir(filepath.Join(l.put.lake, table))
		if err != nil {
			return fmt.Errorf("make the lake: %w", err)
		}
		for _, n := range names {
			if dataFileName.MatchString(n.Name()) {
				return fmt.Errorf("make a lake in %s: %s/%s is there, but the log is empty: restore %s, or use an empty "+
					"folder", l.put.lake, table, n.Name(), Folder)
			}
		}
	}
	l.state = emptyState()
	return nil
}

// refresh reads what other processes added. The log is locked.
func (l *Log) refresh() error {
	if err := l.state.follow(l.put.lake); err != nil {
		return err
	}
	if err := l.adopt(); err != nil {
		l.o.Logger.Warn("read a checkpoint of the lake's log, as of another writer", "error", err)
	}
	return nil
}

// Claim makes this process the committer of a partition: it adds a claim entry to
// the log, so that the next commit of an older writer of the partition fails. Losing
// a race for the next entry means to come after it.
func (l *Log) Claim(ctx context.Context, partition int) (*Writer, error) {
	if partition < 0 || partition >= MaxPartitions {
		return nil, fmt.Errorf("claim partition %d of %s: a lake has 0 to %d", partition, l.put.lake, MaxPartitions-1)
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails: it ends the program instead
	name := hex.EncodeToString(id[:])
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := l.refresh(); err != nil {
			return nil, err
		}
		version, p := l.state.Version+1, l.state.partition(partition)
		e := Entry{Format: formatOf(partition), Version: version, Kind: KindClaim, Partition: partition, Writer: name,
			Claim: version, WallNS: time.Now().UnixNano(), Source: p.Source, Totals: l.state.Totals}
		_, _, _, err := l.put.put(filepath.Join(Folder, entryName(version)), claimTempPrefix+name, writeAll(seal(e)))
		if errors.Is(err, errTaken) {
			if err := ctx.Err(); err != nil {
				return nil, fmt.Errorf("claim partition %d of %s: %w", partition, l.put.lake, err)
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("claim partition %d of %s: %w", partition, l.put.lake, err)
		}
		return l.claimed(&e), nil
	}
}

// claimed is the writer of a claim that is in the log. The log is locked.
func (l *Log) claimed(e *Entry) *Writer {
	l.add(e)
	return &Writer{log: l, partition: e.Partition, name: e.Writer, claim: e.Claim, linked: map[string]bool{},
		start: l.state.Partitions[e.Partition].clone()}
}

// add applies an own entry that is in the log, and makes the checkpoint that is due.
// The log is locked.
func (l *Log) add(e *Entry) {
	if l.state.Version >= e.Version { // read back meanwhile, by a refresh for another partition
		return
	}
	if err := l.state.apply(e); err != nil {
		panic(fmt.Sprintf("BUG: the log cannot apply its own entry: %v", err))
	}
	if err := l.checkpoint(e.Claim); err != nil { // the entry stands
		l.o.Logger.Warn("write a checkpoint of the lake's log", "error", err)
	}
}

func writeAll(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}

// Lake is a random name of the lake that never changes, "" when its first entry is
// gone, or was not made yet.
func (l *Log) Lake() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Lake
}

// Version is the newest entry that this process knows of.
func (l *Log) Version() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.Version
}

// Source is the position of a partition as far as this process knows of it.
func (l *Log) Source(partition int) Source {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.partition(partition).Source
}

// Refresh reads what other processes committed.
func (l *Log) Refresh() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.refresh()
}

// KnownElsewhere reports whether another partition has, or had, rows of an epoch,
// which is 16 hex digits: the stream was once divided in another way.
func (l *Log) KnownElsewhere(epoch string, partition int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, p := range l.state.Partitions {
		if n != partition && p.knows(epoch) {
			return true
		}
	}
	return false
}

// Divided lists the epochs of a partition's chains of which another partition has, or
// had, rows too.
func (l *Log) Divided(partition int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	own, both := map[string]bool{}, map[string]bool{}
	for key := range l.state.partition(partition).Chains {
		own[epochOf(key)] = true
	}
	for n, p := range l.state.Partitions {
		if n == partition {
			continue
		}
		for key := range p.Chains {
			both[epochOf(key)] = own[epochOf(key)]
		}
		for epoch := range own {
			if _, closed := p.Closed[epoch]; closed || p.Forgotten[epoch] {
				both[epoch] = true
			}
		}
	}
	maps.DeleteFunc(both, func(_ string, is bool) bool { return !is })
	return slices.Sorted(maps.Keys(both))
}

// files is the list of all files: those in manifests, and those that no manifest
// lists yet.
func (l *Log) files() (refs []manifestRef, loose []File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.manifests, l.state.Files
}

// FilesOf lists the files that may hold rows of an epoch, which is 16 hex digits.
// It reads the manifests again, so that a writer need not remember every file.
func (l *Log) FilesOf(epoch string) ([]File, error) {
	refs, loose := l.files()
	var out []File
	add := func(files []File) {
		for _, f := range files {
			if slices.Contains(f.Epochs, epoch) {
				out = append(out, f)
			}
		}
	}
	for _, ref := range refs {
		files, err := readManifest(l.put.lake, ref)
		if err != nil {
			return nil, err
		}
		add(files)
	}
	add(loose)
	return out, nil
}

// Sweep removes temporary files and data files that older writers left behind, and
// reports how many. Those writers cannot commit any more: their partitions were
// claimed since. Only names that a writer gives are touched, and only files that no
// entry names.
func (l *Log) Sweep() (removed int, err error) {
	l.mu.Lock()
	version, alive := l.state.Version, map[uint64]bool{}
	for p := range maps.Values(l.state.Partitions) {
		alive[p.Claim] = true
	}
	l.mu.Unlock()
	dead := func(claim uint64) bool { return claim <= version && !alive[claim] }
	refs, loose := l.files() // those that dead writers committed are all among them
	named := map[string]bool{}
	for _, ref := range refs {
		files, err := readManifest(l.put.lake, ref)
		if err != nil {
			return 0, fmt.Errorf("sweep the lake: %w", err)
		}
		for _, f := range files {
			named[f.Path] = true
		}
	}
	for _, f := range loose {
		named[f.Path] = true
	}
	for _, dir := range append([]string{Folder}, l.o.Tables...) {
		n, err := l.sweepFolder(dir, named, dead)
		if removed += n; err != nil {
			return removed, fmt.Errorf("sweep the lake: %w", err)
		}
	}
	return removed, nil
}
