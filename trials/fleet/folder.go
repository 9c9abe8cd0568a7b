package fleet

import (
	"fmt"
	"os"
	"path/filepath"
)

// marker is the file by which a folder says that a trial made it, so that the
// next trial may empty it.
const marker = ".sonde-trial"

// EmptyFolder makes an empty folder for a trial and gives its absolute path. It
// empties a folder that an earlier trial made, and refuses one with files of
// somebody else.
func EmptyFolder(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return "", fmt.Errorf("look into %s: %w", dir, err)
	}
	_, err = os.Lstat(filepath.Join(dir, marker))
	if len(entries) > 0 && err != nil {
		return "", fmt.Errorf("empty %s: it holds %s, and no trial made it; remove it, or name a new folder with -dir",
			dir, entries[0].Name())
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("empty %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make %s: %w", dir, err)
	}
	return dir, os.WriteFile(filepath.Join(dir, marker), nil, 0o644)
}
