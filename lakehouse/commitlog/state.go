package commitlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// ErrNoLake: the folder holds no lake. It is wrapped with what to do.
var ErrNoLake = errors.New("no lake here")

// MaxForgotten bounds Partition.Forgotten. Beyond it, every epoch without chains may
// be one whose chains were dropped.
const MaxForgotten = 1 << 16

// State is what the log says up to an entry. A State that Load or Refresh handed out
// does not change; Refresh makes the following one.
type State struct {
	Version    uint64 // 0: no entry yet
	WallNS     int64  // of the newest entry
	Lake       string // the writer of the first entry: a random name for the lake; "": unknown
	Partitions map[int]*Partition
	Files      []File // in the order of the commits
	Totals     Totals

	manifests  []manifestRef
	loose      int    // files at the end of Files that no manifest lists
	checkpoint uint64 // version of the newest checkpoint; 0: none
}

// Partition is what the log says of one partition of the stream.
type Partition struct {
	Writer    string // of the newest claim
	Claim     uint64
	Source    Source
	Chains    map[string]string // states of chains
	Closed    map[string]int64  // epochs that ended, and the wall clock of the commit
	Forgotten map[string]bool   // epochs whose chains were dropped, up to MaxForgotten: the files know their rows
}

// Load reads the newest state of a lake.
func Load(lake string) (*State, error) {
	entries, checkpoints, err := listLog(lake)
	if err != nil {
		return nil, err
	}
	if entries == 0 {
		return nil, fmt.Errorf("open %s: its log is empty: %w: run the materializer (sonde run), which makes it", lake,
			ErrNoLake)
	}
	s := emptyState()
	if checkpoints > 0 {
		if s, err = loadCheckpoint(lake, checkpoints); err != nil {
			return nil, err
		}
	}
	if err = s.follow(lake); err != nil {
		return nil, err
	}
	if s.Version < entries {
		return nil, fmt.Errorf("open %s: entry %d of the log is missing, and there is an entry %d: restore %s", lake,
			s.Version+1, entries, filepath.Join(lake, Folder, entryName(s.Version+1)))
	}
	return s, nil
}

func emptyState() *State {
	return &State{Partitions: map[int]*Partition{}, Totals: Totals{Rows: map[string]uint64{}}}
}

// listLog finds the newest entry and the newest checkpoint; 0: none.
func listLog(lake string) (entry, checkpoint uint64, err error) {
	dir, err := os.Open(filepath.Join(lake, Folder))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, fmt.Errorf("open %s: it has no folder %s: %w: run the materializer (sonde run), which makes it, "+
			"or name another folder", lake, Folder, ErrNoLake)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("open the log: %w", err)
	}
	defer dir.Close() // was only read
	for {
		names, err := dir.Readdirnames(4096)
		for _, name := range names {
			version, isCheckpoint, ok := parseLogName(name)
			switch {
			case ok && isCheckpoint:
				checkpoint = max(checkpoint, version)
			case ok:
				entry = max(entry, version)
			}
		}
		if errors.Is(err, io.EOF) {
			return entry, checkpoint, nil
		}
		if err != nil {
			return 0, 0, fmt.Errorf("list %s: %w", dir.Name(), err)
		}
	}
}

// Refresh reads the entries behind s and returns the newest state: s itself when
// there is none.
func (s *State) Refresh(lake string) (*State, error) {
	_, err := os.Lstat(filepath.Join(lake, Folder, entryName(s.Version+1)))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	next := s.clone()
	if err := next.follow(lake); err != nil {
		return nil, err
	}
	return next, nil
}

// follow reads the entries behind s into it. After an error, s is at the entry
// before the one that could not be read.
func (s *State) follow(lake string) error {
	for {
		e, err := readEntry(lake, s.Version+1)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.apply(e); err != nil {
			return fmt.Errorf("read %s: %w", filepath.Join(lake, Folder, entryName(e.Version)), err)
		}
	}
}

// clone copies what apply changes. Files may share memory: they only grow.
func (s *State) clone() *State {
	c := *s
	c.Files = slices.Clip(s.Files)
	c.Partitions = make(map[int]*Partition, len(s.Partitions))
	for n, p := range s.Partitions {
		c.Partitions[n] = p.clone()
	}
	c.Totals = s.Totals.clone()
	return &c
}

func (p *Partition) clone() *Partition {
	c := *p
	c.Chains, c.Closed, c.Forgotten = maps.Clone(p.Chains), maps.Clone(p.Closed), maps.Clone(p.Forgotten)
	return &c
}

func (t Totals) clone() Totals {
	rows := maps.Clone(t.Rows)
	if rows == nil {
		rows = map[string]uint64{}
	}
	t.Rows = rows
	return t
}

// Sources are the positions of all partitions that were claimed.
func (s *State) Sources() map[int]Source {
	out := make(map[int]Source, len(s.Partitions))
	for n, p := range s.Partitions {
		out[n] = p.Source
	}
	return out
}

// plus adds counts.
func (t Totals) plus(more Totals) Totals {
	sum := t.clone()
	for table, n := range more.Rows {
		sum.Rows[table] += n
	}
	sum.Duplicates += more.Duplicates
	sum.DeadLetters += more.DeadLetters
	sum.Trimmed += more.Trimmed
	return sum
}

// partition is the state of a partition: an empty one for one that nobody claimed.
func (s *State) partition(n int) *Partition {
	if p := s.Partitions[n]; p != nil {
		return p
	}
	return &Partition{Chains: map[string]string{}, Closed: map[string]int64{}, Forgotten: map[string]bool{}}
}

func (s *State) apply(e *Entry) error {
	p := s.partition(e.Partition)
	if e.Kind == KindCommit && (e.Claim != p.Claim || e.Writer != p.Writer) {
		return fmt.Errorf("writer %.40q with claim %d of partition %d committed, but the newest claim is %d by %.40q",
			e.Writer, e.Claim, e.Partition, p.Claim, p.Writer)
	}
	if e.Kind == KindClaim && e.Claim != e.Version {
		return fmt.Errorf("it claims %d in version %d", e.Claim, e.Version)
	}
	if e.Version == 1 {
		s.Lake = e.Writer
	}
	s.Partitions[e.Partition] = p
	s.Version, s.WallNS = e.Version, e.WallNS
	p.Writer, p.Claim, p.Source = e.Writer, e.Claim, e.Source
	s.Files = append(s.Files, e.Files...)
	s.loose += len(e.Files)
	maps.Copy(p.Chains, e.Chains)
	for _, epoch := range e.Closed {
		p.Closed[epoch] = e.WallNS
	}
	p.forget(e.Forgotten)
	s.Totals = e.Totals.clone()
	return nil
}

// forget drops the chain states of epochs.
func (p *Partition) forget(epochs []string) {
	for _, epoch := range epochs {
		if len(p.Forgotten) < MaxForgotten {
			p.Forgotten[epoch] = true
		}
		delete(p.Closed, epoch)
		maps.DeleteFunc(p.Chains, func(key, _ string) bool { return epochOf(key) == epoch })
	}
}

// epochOf is the epoch of a chain: its key begins with 16 hex digits of it.
func epochOf(key string) string { return key[:min(len(key), 16)] }

// knows reports whether the partition has, or had, rows of an epoch.
func (p *Partition) knows(epoch string) bool {
	if _, closed := p.Closed[epoch]; closed || p.Forgotten[epoch] {
		return true
	}
	for key := range p.Chains {
		if epochOf(key) == epoch {
			return true
		}
	}
	return false
}
