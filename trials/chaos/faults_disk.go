package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sonde/trials/chaos/faultdisk"
)

// errUnfelt says that a fault met nobody: it is counted as not made.
var errUnfelt = errors.New("nobody met the fault")

var diskKinds = makeDiskKinds()

// makeDiskKinds is each trouble of a disk under each place where something is kept.
func makeDiskKinds() []kind {
	var out []kind
	for _, place := range []string{"store", "lake", "spool"} {
		for _, t := range []trouble{{"full disk", faultdisk.Sound, true},
			{"I/O errors of writes", faultdisk.FailWrites, false}, {"I/O errors of fsync", faultdisk.FailSyncs, false},
			{"read-only disk", faultdisk.ReadOnly, false}, {"slow disk", faultdisk.Slow, false}} {
			k := kind{name: t.name + " under the " + place, group: disks, mixes: true, holdMS: seconds, limit: afterLost,
				leaveDead: place == "store",
				run:       func(ctx context.Context, w *world, f fault) error { return w.spoil(ctx, f, place, t) }}
			if place == "spool" { // it is written to only while the bus is away
				k.name, k.group, k.run = k.name+", bus away", network, spoilSpool(t)
			}
			out = append(out, k)
		}
	}
	return out
}

// trouble is what a disk can have.
type trouble struct {
	name string
	mode faultdisk.Mode
	full bool
}

// spoolFills is how long the bus has been away when the spool is sure to be written to.
const spoolFills = 1500 * time.Millisecond

// spoilSpool spoils the disk of the spool while the agent's link is cut. The fault's
// amount says which of the two is well again first.
func spoilSpool(t trouble) func(context.Context, *world, fault) error {
	return func(ctx context.Context, w *world, f fault) error {
		w.cutAgentOff()
		err := pause(ctx, spoolFills)
		if f.Amount < 0.5 {
			return errors.Join(err, w.spoil(ctx, f, "spool", t), pause(ctx, spoolFills), w.letAgentIn())
		}
		back := make(chan error, 1)
		go func() { back <- errors.Join(pause(ctx, f.Hold/2), w.letAgentIn()) }()
		return errors.Join(err, w.spoil(ctx, f, "spool", t), <-back)
	}
}

// cutAgentOff cuts the agent's link and lets nobody in.
func (w *world) cutAgentOff() {
	for _, l := range w.links[:len(w.links)/linkCount] {
		l.Refuse()
	}
}

// letAgentIn ends cutAgentOff.
func (w *world) letAgentIn() (err error) {
	for _, l := range w.links[:len(w.links)/linkCount] {
		err = errors.Join(err, l.Admit())
	}
	return err
}

// spoil makes a disk fail for a while.
func (w *world) spoil(ctx context.Context, f fault, place string, t trouble) error {
	d := w.disks[place]
	if d == nil {
		return fmt.Errorf("no disk under the %s: %w", place, w.noDisks)
	}
	before := d.Refused()
	if t.full {
		if err := d.Fill(); err != nil {
			return err
		}
	}
	d.Set(t.mode)
	err := pause(ctx, f.Hold)
	d.Set(faultdisk.Sound)
	err = errors.Join(err, d.Free())
	w.heals()
	if err == nil && d.Refused() == before && !t.full && t.mode != faultdisk.Slow {
		return errUnfelt
	}
	return err
}
