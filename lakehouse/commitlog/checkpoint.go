package commitlog

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// A checkpoint follows every checkpointEvery entries, and mergeAt manifests of one
// level become one of the next: opening a lake of n files reads n lines in about
// mergeAt x log(n) files, and each file is written down log(n) times. Of several
// writers, the one whose entry is due makes it; when it fails, there is none.
const (
	checkpointEvery = 64
	mergeAt         = 8
)

func loadCheckpoint(lake string, version uint64) (*State, error) {
	s, err := loadSaved(lake, version)
	if err != nil {
		return nil, err
	}
	for _, ref := range s.manifests {
		files, err := readManifest(lake, ref)
		if err != nil {
			return nil, fmt.Errorf("%w (named by %s)", err, filepath.Join(lake, Folder, checkpointName(version)))
		}
		s.Files = append(s.Files, files...)
	}
	return s, nil
}

// loadSaved is loadCheckpoint without the files that the manifests list.
func loadSaved(lake string, version uint64) (*State, error) {
	var c checkpoint
	name := checkpointName(version)
	hint := "remove the file: the entries before it say the same"
	if err := readLogFile(lake, name, &c); err != nil {
		return nil, fmt.Errorf("%w; %s", err, hint)
	}
	path := filepath.Join(lake, Folder, name)
	if c.Format != formatOf(len(c.Others)) || c.Version != version {
		return nil, fmt.Errorf("read %s: it says format %d and version %d; %s", path, c.Format, c.Version, hint)
	}
	s := emptyState()
	s.Version, s.WallNS, s.Lake, s.Totals = c.Version, c.WallNS, c.Lake, c.Totals.clone()
	s.checkpoint, s.manifests = c.Version, c.Manifests
	for _, saved := range append([]savedPartition{c.savedPartition}, c.Others...) {
		if saved.Partition < 0 || saved.Partition >= MaxPartitions {
			return nil, fmt.Errorf("read %s: partition %d; want 0 to %d; %s", path, saved.Partition, MaxPartitions-1, hint)
		}
		if saved.Claim > 0 {
			s.Partitions[saved.Partition] = saved.load()
		}
	}
	return s, nil
}

func (v savedPartition) load() *Partition {
	p := (&State{}).partition(v.Partition)
	p.Writer, p.Claim, p.Source = v.Writer, v.Claim, v.Source
	maps.Copy(p.Chains, v.Chains)
	maps.Copy(p.Closed, v.Closed)
	for _, epoch := range v.Forgotten {
		p.Forgotten[epoch] = true
	}
	return p
}

func (p *Partition) save(n int) savedPartition {
	return savedPartition{Partition: n, Writer: p.Writer, Claim: p.Claim, Source: p.Source, Chains: p.Chains,
		Closed: p.Closed, Forgotten: slices.Sorted(maps.Keys(p.Forgotten))}
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
	if m.Format != formatOne || len(m.Files) != ref.Files {
		return nil, fmt.Errorf("read %s: it has format %d and %d files; want %d and %d", path, m.Format, len(m.Files),
			formatOne, ref.Files)
	}
	for _, f := range m.Files {
		if err := checkPath(f.Path); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
	}
	return m.Files, nil
}

// checkpoint writes a checkpoint after the entry of this process that is the newest,
// when one is due there. The log is locked.
func (l *Log) checkpoint(claim uint64) error {
	s := l.state
	if s.Version%checkpointEvery != 0 || s.checkpoint == s.Version {
		return nil
	}
	put := func(name string, v any) error { return l.putLog(name, claim, seal(v)) }
	refs := slices.Clone(s.manifests)
	add := func(files []File, level int) error {
		ref := manifestRef{Name: manifestName(s.Version, level), Level: level, Files: len(files)}
		refs = append(refs, ref)
		return put(ref.Name, manifest{Format: formatOne, Files: files})
	}
	if s.loose > 0 {
		if err := add(s.Files[len(s.Files)-s.loose:], 0); err != nil {
			return err
		}
	}
	for mergeable(refs) {
		var files []File
		tail := slices.Clone(refs[len(refs)-mergeAt:])
		for _, ref := range tail {
			part, err := readManifest(l.put.lake, ref)
			if err != nil {
				return err
			}
			files = append(files, part...)
		}
		refs = refs[:len(refs)-mergeAt]
		if err := add(files, tail[0].Level+1); err != nil {
			return err
		}
	}
	c := checkpoint{Version: s.Version, WallNS: s.WallNS, Lake: s.Lake, Totals: s.Totals, Manifests: refs,
		savedPartition: s.partition(0).save(0)}
	for _, n := range slices.Sorted(maps.Keys(s.Partitions)) {
		if n > 0 {
			c.Others = append(c.Others, s.Partitions[n].save(n))
		}
	}
	c.Format = formatOf(len(c.Others))
	if err := put(checkpointName(s.Version), c); err != nil {
		return err
	}
	s.checkpoint, s.manifests, s.loose, s.Files = s.Version, refs, 0, nil
	return nil
}

// mergeable reports whether the last mergeAt manifests have one level.
func mergeable(refs []manifestRef) bool {
	if len(refs) < mergeAt {
		return false
	}
	tail := refs[len(refs)-mergeAt:]
	return !slices.ContainsFunc(tail, func(r manifestRef) bool { return r.Level != tail[0].Level })
}

// adopt goes on from a checkpoint that another process wrote, so that this one need
// not remember the files that it lists. The log is locked.
func (l *Log) adopt() error {
	due := l.state.Version / checkpointEvery * checkpointEvery
	if due <= l.state.checkpoint {
		return nil
	}
	_, err := os.Lstat(filepath.Join(l.put.lake, Folder, checkpointName(due)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // not yet, or never
	}
	if err != nil {
		return fmt.Errorf("look for a checkpoint: %w", err)
	}
	s, err := loadSaved(l.put.lake, due)
	if err != nil {
		return err
	}
	if err := s.follow(l.put.lake); err != nil {
		return err
	}
	l.state = s
	return nil
}

// putLog makes a file of the log. One of that name is from an attempt before, with
// the same content: it follows from the version.
func (l *Log) putLog(name string, claim uint64, data []byte) error {
	_, _, _, err := l.put.put(filepath.Join(Folder, name), tempName(claim, name), writeAll(data))
	if errors.Is(err, errTaken) {
		return nil
	}
	return err
}
