package commitlog

import (
	"os"
	"path/filepath"
	"testing"
)

// A log that somebody scribbled on is an error that names the file, never a panic
// and never a path outside the lake.
func FuzzLog(f *testing.F) {
	f.Add([]byte(`{"format":1,"version":1,"kind":"claim"}`), false)
	f.Add([]byte(`{"format":1,"version":1,"kind":"commit","files":[{"path":"vectors/a.parquet","rows":1}]}`), false)
	f.Add([]byte(`{"format":1,"version":1,"manifests":[{"name":"../../etc/passwd","level":0,"files":1}]}`), true)
	f.Fuzz(func(t *testing.T, body []byte, checkpoint bool) {
		lake := t.TempDir()
		if err := os.Mkdir(filepath.Join(lake, Folder), 0o755); err != nil {
			t.Fatal(err)
		}
		name := entryName(1)
		if checkpoint {
			name = checkpointName(1)
		}
		// The checksum is right: only what stands behind it is in question.
		for _, data := range [][]byte{sealBytes(body), body} {
			if err := os.WriteFile(filepath.Join(lake, Folder, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
			s, err := Load(lake)
			if err != nil {
				continue
			}
			for _, file := range s.Files {
				if !filepath.IsLocal(filepath.FromSlash(file.Path)) {
					t.Errorf("the log leads to %q", file.Path)
				}
			}
		}
	})
}
