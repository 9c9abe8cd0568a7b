package doctor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of the measurement of one disk.
const (
	leaveFree  = 256 << 20 // with less space, nothing is measured
	maxSyncs   = 32
	maxWritten = 64 << 20
	chunkBytes = 4 << 20
	phaseLimit = 400 * time.Millisecond // of each of the two phases, checked between writes
)

// Above these, a disk holds the pipeline up.
const (
	slowSync     = 20 * time.Millisecond
	slowBytesPS  = 50 << 20
	pageOfASync  = 4 << 10
	bytesPerMega = 1 << 20
)

// speed is what a disk does.
type speed struct {
	sync    time.Duration // of one page, the median
	bytesPS float64       // written and synced
}

// measure writes for less than a second into a file that has no name, or loses it at
// once, so that nothing is left whenever it ends.
func measure(dir string) (s speed, err error) {
	f, err := nameless(dir)
	if err != nil {
		return s, fmt.Errorf("measure the disk of %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	page, chunk := make([]byte, pageOfASync), make([]byte, chunkBytes)
	for i := range chunk {
		chunk[i] = byte(i * 2654435761 >> 16)
	}
	var syncs []time.Duration
	for start := time.Now(); len(syncs) == 0 || len(syncs) < maxSyncs && time.Since(start) < phaseLimit; {
		before := time.Now()
		if err := put(f, page); err != nil {
			return s, err
		}
		syncs = append(syncs, time.Since(before))
	}
	slices.Sort(syncs)
	s.sync = syncs[len(syncs)/2]
	written, start := 0, time.Now()
	for written == 0 || written < maxWritten && time.Since(start) < phaseLimit {
		if err := put(f, chunk); err != nil {
			return s, err
		}
		written += len(chunk)
	}
	s.bytesPS = float64(written) / max(1e-9, time.Since(start).Seconds())
	return s, nil
}

func put(f *os.File, data []byte) error {
	if _, err := f.Write(data); err != nil {
		return fmt.Errorf("measure the disk: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("measure the disk: %w", err)
	}
	return nil
}

func nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir), nil
	}
	f, err := os.CreateTemp(dir, ".sonde-doctor-*") // some file systems know no O_TMPFILE
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func speedFinding(dir string, s speed, syncAlways bool) Finding {
	found := fmt.Sprintf("%s: a sync takes %v, %.0f MiB/s are written", dir, s.sync.Round(10*time.Microsecond),
		s.bytesPS/bytesPerMega)
	switch {
	case s.sync > slowSync && syncAlways:
		return Finding{Warn, "disk speed", found + "; each acknowledgement waits for a sync",
			"use a faster disk, or bus.embedded.sync: interval, which can lose minutes with the power"}
	case s.bytesPS < slowBytesPS:
		return Finding{Warn, "disk speed", found, "use a faster disk, or a policy that keeps fewer rows"}
	}
	return Finding{OK, "disk speed", found, ""}
}
