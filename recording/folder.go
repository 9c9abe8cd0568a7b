package recording

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	segmentSuffix = ".seg"
	newSuffix     = ".new" // of a session whose beginning is not written yet
	lockName      = "recording.lock"
	maxSessions   = 1 << 16 // of one recording; then it is full
)

func segmentPath(dir string, index uint32) string {
	return filepath.Join(dir, fmt.Sprintf("%08d%s", index, segmentSuffix))
}

// sessionFolder is the next free name for a session of an epoch.
func sessionFolder(dir string, start *Start) (string, error) {
	for n := range maxSessions {
		name := filepath.Join(dir, fmt.Sprintf("rank%d-%016x-%d", start.Ring.Rank, start.Ring.Epoch, n))
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return name, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", ErrFull
}

// sessionFolders lists the sessions of a recording, by name.
func sessionFolders(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "rank") && !strings.HasSuffix(e.Name(), newSuffix) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, nil
}

// segments lists the files of a session, which are numbered without a gap.
func segments(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), segmentSuffix) {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(out)
	for i, path := range out {
		if want := segmentPath(dir, uint32(i)); path != want {
			return nil, fmt.Errorf("%w: %s is missing", ErrCorrupt, want)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: %s is missing", ErrCorrupt, segmentPath(dir, 0))
	}
	return out, nil
}

// claimFolder makes the folder of a recording and keeps other recorders out. It
// returns the bytes that are there already, and removes sessions that never began.
func claimFolder(dir string) (lock *os.File, used int64, err error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, 0, err
	}
	lock, err = os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, 0, err
	}
	if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = fmt.Errorf("another recorder writes there (%w)", err)
	} else {
		used, err = usedBytes(dir)
	}
	if err != nil {
		return nil, 0, errors.Join(err, lock.Close())
	}
	return lock, used, nil
}

func usedBytes(dir string) (used int64, err error) {
	leftovers, err := filepath.Glob(filepath.Join(dir, "rank*"+newSuffix))
	if err != nil {
		return 0, err
	}
	for _, path := range leftovers {
		if err := os.RemoveAll(path); err != nil {
			return 0, err
		}
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, segmentSuffix) {
			return err
		}
		info, err := d.Info()
		if err == nil {
			used += info.Size()
		}
		return err
	})
	return used, err
}

// syncFolder makes names in a folder safe.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
