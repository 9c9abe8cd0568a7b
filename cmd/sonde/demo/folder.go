package demo

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// marker is the file by which a folder says that a demo made it, so that the
// next demo may empty it. While a demo runs, it holds a lock on it.
const marker = ".sonde-demo"

// folder is where one demo writes. Its dataset stays when the demo ends.
type folder struct {
	dir  string
	lock *os.File
}

func (f folder) path(name string) string { return filepath.Join(f.dir, name) }

// openFolder makes an empty folder for a fresh run. It empties a folder that an
// earlier demo left, and refuses any other that holds something.
func openFolder(dir string) (folder, error) {
	f := folder{dir: dir}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return f, fmt.Errorf("open the demo's folder: %w; choose another with --out", err)
	}
	ours := len(entries) == 0
	for _, e := range entries {
		ours = ours || e.Name() == marker
	}
	if !ours {
		return f, fmt.Errorf("folder %s holds files that no demo wrote; choose another with --out", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return f, fmt.Errorf("make the demo's folder: %w; choose another with --out", err)
	}
	if f.lock, err = os.OpenFile(f.path(marker), os.O_CREATE|os.O_RDWR, 0o644); err != nil {
		return f, fmt.Errorf("write in the demo's folder: %w; choose another with --out", err)
	}
	if err := syscall.Flock(int(f.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.lock.Close()
		return f, fmt.Errorf("another demo is running in %s; wait for it, or choose another folder with --out", dir)
	}
	for _, e := range entries {
		if e.Name() == marker {
			continue
		}
		if err := os.RemoveAll(f.path(e.Name())); err != nil {
			f.lock.Close()
			return f, fmt.Errorf("empty the folder of the last demo: %w", err)
		}
	}
	return f, nil
}

// close releases the folder. Unless keep is set, what only the run needed goes:
// the dataset and the reports stay.
func (f folder) close(keep bool) error {
	defer f.lock.Close()
	if keep {
		return nil
	}
	for _, name := range []string{"bus", "witness", "engine-state"} {
		if err := os.RemoveAll(f.path(name)); err != nil {
			return fmt.Errorf("tidy the demo's folder: %w", err)
		}
	}
	return nil
}
