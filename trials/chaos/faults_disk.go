package main

import (
	"context"
	"errors"
	"fmt"

	"sonde/trials/chaos/faultdisk"
)

// errUnfelt says that a fault met nobody: it is counted as not made.
var errUnfelt = errors.New("nobody met the fault")

var diskKinds = makeDiskKinds("store", "lake")

// makeDiskKinds is each trouble of a disk under each place where something is kept.
func makeDiskKinds(places ...string) []kind {
	var out []kind
	for _, place := range places {
		add := func(name string, mode faultdisk.Mode, full bool) {
			out = append(out, kind{name: name + " under the " + place, group: disks, mixes: true, holdMS: seconds,
				limit: afterLost, leaveDead: place == "store",
				run: func(ctx context.Context, w *world, f fault) error { return w.spoil(ctx, f, place, mode, full) }})
		}
		add("full disk", faultdisk.Sound, true)
		add("I/O errors of writes", faultdisk.FailWrites, false)
		add("I/O errors of fsync", faultdisk.FailSyncs, false)
		add("read-only disk", faultdisk.ReadOnly, false)
		add("slow disk", faultdisk.Slow, false)
	}
	return out
}

// spoil makes a disk fail for a while.
func (w *world) spoil(ctx context.Context, f fault, place string, mode faultdisk.Mode, full bool) error {
	d := w.disks[place]
	if d == nil {
		return fmt.Errorf("no disk under the %s: %w", place, w.noDisks)
	}
	before := d.Refused()
	if full {
		if err := d.Fill(); err != nil {
			return err
		}
	}
	d.Set(mode)
	err := pause(ctx, f.Hold)
	d.Set(faultdisk.Sound)
	err = errors.Join(err, d.Free())
	w.heals()
	if err == nil && d.Refused() == before && !full && mode != faultdisk.Slow {
		return errUnfelt
	}
	return err
}
