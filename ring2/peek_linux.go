package ring2

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Names of the memfds of a ring, as /proc shows them.
const (
	ctlName  = "sonde-ring-ctl"
	dataName = "sonde-ring-data"
	// MemoryLinkCtl and MemoryLinkData are where the descriptors of a ring link to in
	// /proc/PID/fd.
	MemoryLinkCtl  = "/memfd:" + ctlName + " (deleted)"
	MemoryLinkData = "/memfd:" + dataName + " (deleted)"
)

// MapPeek maps the two memfds of a ring for reading. The files, opened for reading,
// stay the caller's.
func MapPeek(ctl, data *os.File) (*Peek, error) {
	ctlMemory, err := mapForReading(ctl, "ctl")
	if err != nil {
		return nil, err
	}
	dataMemory, err := mapForReading(data, "data")
	if err != nil {
		unmap(ctlMemory)
		return nil, err
	}
	p, err := OpenPeek(ctlMemory, dataMemory)
	if err != nil {
		unmap(ctlMemory)
		unmap(dataMemory)
		return nil, err
	}
	p.unmap = func() {
		unmap(ctlMemory)
		unmap(dataMemory)
	}
	return p, nil
}

// mapForReading refuses a memfd that could shrink, which would end this process.
func mapForReading(f *os.File, what string) ([]byte, error) {
	size, err := checkSealed(int(f.Fd()), what)
	if err != nil {
		return nil, err
	}
	if size == 0 || size > maxDataBytes {
		return nil, fmt.Errorf("map ring: %s has %d bytes; want 1 to %d", what, size, uint64(maxDataBytes))
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map ring: %s: %w", what, err)
	}
	return b, nil
}
