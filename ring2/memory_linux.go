package ring2

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// wantedSeals keep a memfd from being truncated, which would turn a read of the
// mapping into a SIGBUS, and keep that promise from being taken back.
const wantedSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// The clock is read once with a system call. From then on the runtime's own
// monotonic clock, which is the same one, goes on without.
var clockStart, clockStartNS = startClock()

func startClock() (time.Time, uint64) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic("BUG: CLOCK_MONOTONIC cannot be read: " + err.Error())
	}
	return time.Now(), uint64(t.Nano())
}

// monotonicNS is CLOCK_MONOTONIC, which all processes of a machine share.
func monotonicNS() uint64 { return clockStartNS + uint64(time.Since(clockStart)) }

// lifetime counts who may still touch a mapping. The last one to leave unmaps.
type lifetime struct {
	mu     sync.Mutex
	users  int
	closed bool
	unmap  func()
}

// enter adds a user. It fails after close.
func (l *lifetime) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.users++
	return true
}

// hold adds a user on behalf of one that is inside.
func (l *lifetime) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users++
}

func (l *lifetime) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users--
	if l.users < 0 {
		panic("BUG: a mapping was left more often than entered")
	}
	if l.closed && l.users == 0 {
		l.unmap()
	}
}

// close lets nobody in any more. The memory goes when the last user leaves. It
// says whether this was the first call.
func (l *lifetime) close() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.closed = true
	if l.users == 0 {
		l.unmap()
	}
	return true
}

// ringMemory is the writer's end of a ring: two sealed memfds, mapped, and the
// eventfd that wakes the reader. The descriptors stay open, for the next agent.
type ringMemory struct {
	lifetime
	ctl, data         []byte
	ctlFD, dataFD, wk int
}

func newRingMemory(descCount, dataBytes uint64) (*ringMemory, error) {
	m := &ringMemory{ctlFD: -1, dataFD: -1, wk: -1}
	m.unmap = m.free
	var err error
	if m.ctlFD, m.ctl, err = sealedMemory(ctlName, pageUp(ctlBytes(descCount))); err == nil {
		if m.dataFD, m.data, err = sealedMemory(dataName, dataBytes); err == nil {
			if m.wk, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
				return m, nil
			}
		}
	}
	m.free()
	return nil, fmt.Errorf("make ring of %d descriptors and %d bytes: %w", descCount, dataBytes, err)
}

func pageUp(n uint64) uint64 {
	page := uint64(os.Getpagesize())
	return (n + page - 1) &^ (page - 1)
}

// sealedMemory makes a memfd whose size is final, and maps it.
func sealedMemory(name string, size uint64) (int, []byte, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, nil, fmt.Errorf("create memfd: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return fd, nil, fmt.Errorf("size memfd: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, wantedSeals); err != nil {
		return fd, nil, fmt.Errorf("seal memfd: %w", err)
	}
	b, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fd, nil, fmt.Errorf("map memfd: %w", err)
	}
	return fd, b, nil
}

// wake ends the reader's wait. A full counter means that it is awake already.
func (m *ringMemory) wake() {
	one := [8]byte{1}
	// EAGAIN is the full counter; no other error can happen to an open eventfd.
	_, _ = unix.Write(m.wk, one[:])
}

func (m *ringMemory) free() {
	unmap(m.ctl)
	unmap(m.data)
	for _, fd := range [...]int{m.ctlFD, m.dataFD, m.wk} {
		if fd >= 0 {
			// An error of close leaves nothing to do: the descriptor is gone.
			_ = unix.Close(fd)
		}
	}
}

func unmap(b []byte) {
	if b == nil {
		return
	}
	if err := unix.Munmap(b); err != nil {
		panic("BUG: a mapping cannot be unmapped: " + err.Error())
	}
}

// readerMemory is the reader's end: everything mapped for reading but the
// consumer zone.
type readerMemory struct {
	lifetime
	ctl, consumer, data []byte
	wake                *os.File
}

// mapPeer maps the memory of an untrusted engine. It takes over the three
// descriptors, also when it fails.
func mapPeer(fds []int, maxBytes uint64) (*readerMemory, error) {
	m := &readerMemory{}
	m.unmap = m.free
	ctlFD, dataFD, wakeFD := fds[0], fds[1], fds[2]
	defer func() {
		_ = unix.Close(ctlFD) // the mapping keeps the memory
		_ = unix.Close(dataFD)
	}()
	var err error
	if m.wake, err = wakeFile(wakeFD); err != nil {
		_ = unix.Close(wakeFD)
		return nil, err
	}
	ctlSize, err := checkSealed(ctlFD, "ctl")
	if err == nil {
		var dataSize uint64
		if dataSize, err = checkSealed(dataFD, "data"); err == nil {
			err = m.mapAll(ctlFD, dataFD, ctlSize, dataSize, maxBytes)
		}
	}
	if err != nil {
		m.free()
		return nil, err
	}
	return m, nil
}

func (m *readerMemory) mapAll(ctlFD, dataFD int, ctlSize, dataSize, maxBytes uint64) error {
	if ctlSize < ctlBytes(1) || dataSize == 0 || ctlSize > maxBytes || dataSize > maxBytes || ctlSize+dataSize > maxBytes {
		return fmt.Errorf("map ring: ctl has %d bytes and data %d; want at least %d and 1, and at most %d together", ctlSize,
			dataSize, ctlBytes(1), maxBytes)
	}
	var err error
	if m.ctl, err = unix.Mmap(ctlFD, 0, int(ctlSize), unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map ring: ctl: %w", err)
	}
	m.consumer, err = unix.Mmap(ctlFD, abiConsumerOff, abiZoneBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map ring: consumer zone: %w", err)
	}
	if m.data, err = unix.Mmap(dataFD, 0, int(dataSize), unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map ring: data: %w", err)
	}
	return nil
}

// checkSealed returns the size of a memfd that can neither shrink nor grow.
func checkSealed(fd int, what string) (uint64, error) {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return 0, fmt.Errorf("map ring: %s is not a memfd: %w", what, err)
	}
	const must = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	if seals&must != must {
		return 0, fmt.Errorf("map ring: %s has seals %#x; it must be sealed against shrinking and growing", what, seals)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("map ring: size of %s: %w", what, err)
	}
	return uint64(st.Size), nil
}

// wakeFile hands an eventfd to the netpoller.
func wakeFile(fd int) (*os.File, error) {
	target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil || target != "anon_inode:[eventfd]" {
		return nil, fmt.Errorf("map ring: wake is %q, not an eventfd (%v)", target, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("map ring: wake: %w", err)
	}
	return os.NewFile(uintptr(fd), "eventfd"), nil
}

// drainWake takes the counter of an eventfd. It never blocks, also when the peer
// made the description blocking. done is false when there was nothing to take.
func drainWake(fd uintptr) (done bool) {
	var b [8]byte
	_, err := unix.Preadv2(int(fd), [][]byte{b[:]}, -1, unix.RWF_NOWAIT)
	return !errors.Is(err, unix.EAGAIN)
}

func (m *readerMemory) free() {
	unmap(m.ctl)
	unmap(m.consumer)
	unmap(m.data)
	// An error of close leaves nothing to do: the descriptor is gone.
	_ = m.wake.Close()
}
