package commitlog

import (
	"errors"
	"maps"
	"path/filepath"
	"slices"
)

// A checkpoint follows after so many entries, and so many manifests of one level
// become one of the next: opening a lake of n files reads n lines in about
// mergeAt x log(n) files, and each file is written down log(n) times.
const (
	checkpointEvery = 64
	mergeAt         = 8
)

// checkpoint writes a checkpoint when one is due.
func (w *Writer) checkpoint() error {
	s := w.state
	if s.Version-s.checkpoint < checkpointEvery {
		return nil
	}
	refs := slices.Clone(s.manifests)
	if s.loose > 0 {
		ref, err := w.manifest(s.Files[len(s.Files)-s.loose:], 0)
		if err != nil {
			return err
		}
		refs = append(refs, ref)
	}
	for mergeable(refs) {
		var files []File
		tail := refs[len(refs)-mergeAt:]
		for _, ref := range tail {
			part, err := readManifest(w.put.lake, ref)
			if err != nil {
				return err
			}
			files = append(files, part...)
		}
		ref, err := w.manifest(files, tail[0].Level+1)
		if err != nil {
			return err
		}
		refs = append(refs[:len(refs)-mergeAt], ref)
	}
	c := checkpoint{Format: Format, Version: s.Version, Writer: s.Writer, Claim: s.Claim, WallNS: s.WallNS,
		Source: s.Source, Chains: s.Chains, Closed: s.Closed, Forgotten: slices.Sorted(maps.Keys(s.Forgotten)),
		Totals:    s.Totals,
		Manifests: refs}
	if err := w.putLog(checkpointName(s.Version), seal(c)); err != nil {
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

func (w *Writer) manifest(files []File, level int) (manifestRef, error) {
	ref := manifestRef{Name: manifestName(w.state.Version, level), Level: level, Files: len(files)}
	return ref, w.putLog(ref.Name, seal(manifest{Format: Format, Files: files}))
}

// putLog makes a file of the log. One of that name is from an attempt before, with
// the same content: it follows from the version.
func (w *Writer) putLog(name string, data []byte) error {
	_, _, _, err := w.put.put(filepath.Join(Folder, name), tempName(w.state.Claim, name), writeAll(data))
	if errors.Is(err, errTaken) {
		return nil
	}
	return err
}
