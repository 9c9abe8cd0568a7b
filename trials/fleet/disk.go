package fleet

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MountDisk mounts a file system of so many MiB in memory on a folder, which must be in
// a mount namespace of its own: see InNamespace. Its error is an ErrNotHere where
// mounting is refused.
func MountDisk(dir string, mib int) (unmount func() error, err error) {
	if os.Getenv(inside) != insideOwn {
		return nil, fmt.Errorf("%w: there are no mount namespaces for this user", ErrNotHere)
	}
	if err := unix.Mount("sonde-trial", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=755", mib)); err != nil {
		return nil, fmt.Errorf("%w: mount a file system in memory: %w", ErrNotHere, err)
	}
	return func() error {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		return nil
	}, nil
}

// Fill takes the last byte of a disk, and returns how to give it back.
func Fill(dir string) (free func() error, err error) {
	f, err := os.CreateTemp(dir, "ballast-*")
	if err != nil {
		return nil, fmt.Errorf("fill a disk: %w", err)
	}
	defer f.Close()
	for block := 1 << 20; block >= 512; block /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, block))
		}
		if !errors.Is(err, unix.ENOSPC) {
			return nil, fmt.Errorf("fill a disk: %w", err)
		}
	}
	return func() error { return os.Remove(f.Name()) }, nil
}
