// Package faultdisk makes a small disk whose writes fail on request, under files that
// are open: a file system in user space before one in memory.
package faultdisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"sonde/trials/fleet"
)

// Mode says what fails.
type Mode int32

const (
	Sound      Mode = iota
	FailWrites      // each write ends with an I/O error
	FailSyncs       // writes end well, and each fsync with an I/O error
	ReadOnly        // whatever would change something is refused
	Slow            // each write and each fsync waits for slowness
)

// slowness is what a disk with trouble takes for one request.
const slowness = 80 * time.Millisecond

// Disk is a mounted disk.
type Disk struct {
	Dir     string // where it is mounted
	under   string
	mode    atomic.Int32
	refused atomic.Int64
	server  *fuse.Server
	unmount func() error
	free    func() error // gives the ballast back; nil: there is none
}

// New mounts a disk of so many MiB below a folder, in whose mount namespace everything
// must happen: see fleet.InNamespace. Its error is a fleet.ErrNotHere where that is not
// allowed.
func New(folder, name string, mib int) (*Disk, error) {
	d := &Disk{Dir: filepath.Join(folder, name), under: filepath.Join(folder, name+".under")}
	for _, dir := range []string{d.Dir, d.under} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make a disk: %w", err)
		}
	}
	var err error
	if d.unmount, err = fleet.MountDisk(d.under, mib); err != nil {
		return nil, err
	}
	root, err := fs.NewLoopbackRoot(d.under)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a disk: %w", err), d.unmount())
	}
	d.server, err = fs.Mount(d.Dir, &node{root.(*fs.LoopbackNode), d}, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "sonde-faultdisk", Name: "faultdisk"}})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: mount a file system in user space: %w", fleet.ErrNotHere, err), d.unmount())
	}
	return d, nil
}

// Set says what fails from now on.
func (d *Disk) Set(m Mode) { d.mode.Store(int32(m)) }

// Refused counts the requests that failed.
func (d *Disk) Refused() int64 { return d.refused.Load() }

// Fill takes the last byte.
func (d *Disk) Fill() (err error) {
	d.free, err = fleet.Fill(d.under)
	return err
}

// Free gives back what Fill took.
func (d *Disk) Free() error {
	if d.free == nil {
		return nil
	}
	free := d.free
	d.free = nil
	return free()
}

// Close unmounts the disk; nobody may use it any more. What it held is gone.
func (d *Disk) Close() error {
	d.Set(Sound)
	return errors.Join(d.server.Unmount(), d.unmount(), os.Remove(d.Dir), os.Remove(d.under))
}
