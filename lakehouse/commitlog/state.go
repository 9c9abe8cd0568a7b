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

// MaxForgotten bounds State.Forgotten. Beyond it, every epoch without chains may
// be one whose chains were dropped.
const MaxForgotten = 1 << 16

// State is what the log says up to an entry. A State that was handed out does not
// change; Next makes the following one.
type State struct {
	Version   uint64 // 0: no entry yet
	Writer    string // of the newest claim
	Claim     uint64
	WallNS    int64 // of the newest entry
	Source    Source
	Files     []File            // in the order of the commits
	Chains    map[string]string // states of chains
	Closed    map[string]int64  // epochs that ended, and the wall clock of the commit
	Forgotten map[string]bool   // epochs whose chains were dropped, up to MaxForgotten: the files know their rows
	Totals    Totals

	manifests  []manifestRef
	loose      int    // files at the end of Files that no manifest lists
	checkpoint uint64 // version of the newest checkpoint; 0: none
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
	if s, err = s.Refresh(lake); err != nil {
		return nil, err
	}
	if s.Version < entries {
		return nil, fmt.Errorf("open %s: entry %d of the log is missing, and there is an entry %d: restore %s", lake,
			s.Version+1, entries, filepath.Join(lake, Folder, entryName(s.Version+1)))
	}
	return s, nil
}

func emptyState() *State {
	return &State{Chains: map[string]string{}, Closed: map[string]int64{}, Forgotten: map[string]bool{},
		Totals: Totals{Rows: map[string]uint64{}}}
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

func loadCheckpoint(lake string, version uint64) (*State, error) {
	var c checkpoint
	name := checkpointName(version)
	hint := "remove the file: the entries before it say the same"
	if err := readLogFile(lake, name, &c); err != nil {
		return nil, fmt.Errorf("%w; %s", err, hint)
	}
	path := filepath.Join(lake, Folder, name)
	if c.Format != Format || c.Version != version {
		return nil, fmt.Errorf("read %s: it says format %d and version %d; %s", path, c.Format, c.Version, hint)
	}
	s := emptyState()
	s.Version, s.Writer, s.Claim, s.WallNS, s.Source = c.Version, c.Writer, c.Claim, c.WallNS, c.Source
	s.checkpoint, s.manifests = c.Version, c.Manifests
	maps.Copy(s.Chains, c.Chains)
	maps.Copy(s.Closed, c.Closed)
	for _, epoch := range c.Forgotten {
		s.Forgotten[epoch] = true
	}
	s.Totals = c.Totals.clone()
	for _, ref := range c.Manifests {
		files, err := readManifest(lake, ref)
		if err != nil {
			return nil, fmt.Errorf("%w (named by %s)", err, path)
		}
		s.Files = append(s.Files, files...)
	}
	return s, nil
}

func readManifest(lake string, ref manifestRef) ([]File, error) {
	if err := checkPath(ref.Name); err != nil {
		return nil, err
	}
	var m manifest
	if err := readLogFile(lake, ref.Name, &m); err != nil {
		return nil, err
	}
	path := filepath.Join(lake, Folder, ref.Name)
	if m.Format != Format || len(m.Files) != ref.Files {
		return nil, fmt.Errorf("read %s: it has format %d and %d files; want %d and %d", path, m.Format, len(m.Files), Format,
			ref.Files)
	}
	for _, f := range m.Files {
		if err := checkPath(f.Path); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	return m.Files, nil
}

// Refresh reads the entries behind s and returns the newest state: s itself when
// there is none.
func (s *State) Refresh(lake string) (*State, error) {
	next := s
	for {
		e, err := readEntry(lake, next.Version+1)
		if errors.Is(err, fs.ErrNotExist) {
			return next, nil
		}
		if err != nil {
			return nil, err
		}
		if next == s {
			next = s.clone()
		}
		if err := next.apply(e); err != nil {
			return nil, fmt.Errorf("read %s: %w", filepath.Join(lake, Folder, entryName(e.Version)), err)
		}
	}
}

// clone copies what apply changes. Files may share memory: they only grow.
func (s *State) clone() *State {
	c := *s
	c.Files = slices.Clip(s.Files)
	c.Chains, c.Closed, c.Forgotten = maps.Clone(s.Chains), maps.Clone(s.Closed), maps.Clone(s.Forgotten)
	c.Totals = s.Totals.clone()
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

func (s *State) apply(e *Entry) error {
	if e.Kind == KindCommit && (e.Claim != s.Claim || e.Writer != s.Writer) {
		return fmt.Errorf("writer %.40q with claim %d committed, but the newest claim is %d by %.40q", e.Writer, e.Claim,
			s.Claim, s.Writer)
	}
	if e.Kind == KindClaim && e.Claim != e.Version {
		return fmt.Errorf("it claims %d in version %d", e.Claim, e.Version)
	}
	s.Version, s.Writer, s.Claim, s.WallNS, s.Source = e.Version, e.Writer, e.Claim, e.WallNS, e.Source
	s.Files = append(s.Files, e.Files...)
	s.loose += len(e.Files)
	maps.Copy(s.Chains, e.Chains)
	for _, epoch := range e.Closed {
		s.Closed[epoch] = e.WallNS
	}
	for _, epoch := range e.Forgotten {
		if len(s.Forgotten) < MaxForgotten {
			s.Forgotten[epoch] = true
		}
		delete(s.Closed, epoch)
		for key := range s.Chains {
			if len(key) > len(epoch) && key[:len(epoch)] == epoch {
				delete(s.Chains, key)
			}
		}
	}
	s.Totals = e.Totals.clone()
	return nil
}
