package commitlog

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// FuzzLog puts one file of a sound log in question: the claim, a commit, a
// checkpoint, or the list of files that the checkpoint names. Whatever stands there
// is an error that names a file, or a state, never a panic and never a path outside
// the lake.
func FuzzLog(f *testing.F) {
	lake := f.TempDir()
	w := claim(f, lake, nil)
	for i := uint64(1); i <= checkpointEvery; i++ {
		if err := commit(w, i); err != nil {
			f.Fatal(err)
		}
	}
	names := []string{entryName(1), entryName(2), checkpointName(checkpointEvery), "", entryName(checkpointEvery + 1)}
	manifests, err := filepath.Glob(filepath.Join(lake, Folder, "*.files.json"))
	if err != nil || len(manifests) != 1 {
		f.Fatalf("%d lists of files, %v", len(manifests), err)
	}
	names[3] = filepath.Base(manifests[0])
	sound := map[string][]byte{}
	for i, name := range names {
		data, err := os.ReadFile(filepath.Join(lake, Folder, name))
		if err != nil {
			f.Fatal(err)
		}
		sound[name] = data
		body, _, _ := bytes.Cut(data, []byte("\n"))
		f.Add(body, uint8(i))
	}
	f.Add([]byte(`{"format":1,"version":1,"kind":"commit","files":[{"path":"vectors/a.parquet","rows":1}]}`), uint8(1))
	f.Add([]byte(`{"format":1,"version":1,"manifests":[{"name":"../../etc/passwd","level":0,"files":1}]}`), uint8(2))
	f.Fuzz(func(t *testing.T, body []byte, which uint8) {
		lake, set := t.TempDir(), names[2:]
		if which %= uint8(len(names)); which < 2 {
			set = names[:2]
		}
		if err := os.Mkdir(filepath.Join(lake, Folder), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range set {
			data := sound[name]
			if name == names[which] {
				data = sealBytes(bytes.Clone(body)) // The checksum is right: what it covers is in question.
			}
			if err := os.WriteFile(filepath.Join(lake, Folder, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		s, err := Load(lake)
		if err != nil {
			return
		}
		for _, file := range s.Files {
			if !filepath.IsLocal(filepath.FromSlash(file.Path)) {
				t.Errorf("the log leads to %q", file.Path)
			}
		}
	})
}

// A seed that is refused would only fuzz the first check.
func TestSeedsOfTheLogAreSound(t *testing.T) {
	lake := t.TempDir()
	w := claim(t, lake, nil)
	for i := uint64(1); i <= checkpointEvery; i++ {
		if err := commit(w, i); err != nil {
			t.Fatal(err)
		}
	}
	for i := uint64(1); i < checkpointEvery; i++ {
		if err := os.Remove(filepath.Join(lake, Folder, entryName(i))); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := Load(lake); err != nil || len(s.Files) != checkpointEvery {
		t.Errorf("a log without the entries before its checkpoint: %v", err)
	}
}
