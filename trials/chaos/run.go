package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"sonde/trials/fleet"
)

// run makes the faults of a schedule on one bus, and judges what is left. It returns a
// result also with an error.
func run(ctx context.Context, on busName, o options, dir string) (*result, error) {
	r := &result{on: on, seed: o.seed}
	began := time.Now()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return r, err
	}
	w, err := newWorld(ctx, on, o, dir)
	if err == nil {
		err = w.harm(ctx, newSchedule(o.seed, on, o.faults, o.only), r)
	}
	if err == nil {
		err = w.judge(ctx, r)
	}
	r.took, r.why = time.Since(began), err
	keep := err != nil && ctx.Err() == nil
	if keep {
		w.autopsy()
	}
	return r, errors.Join(err, w.close(), w.unmount(keep))
}

// harm follows a schedule: calm, one or two faults at once, and recovery.
func (w *world) harm(ctx context.Context, schedule []fault, r *result) error {
	progress := fleet.NewProgress()
	defer progress.Done()
	for len(schedule) > 0 {
		event := schedule[:1]
		if len(schedule) > 1 && schedule[1].Together {
			event = schedule[:2]
		}
		schedule = schedule[len(event):]
		progress.Show("%s: fault %d of %d: %s", w.on, event[0].Number+1, event[0].Number+len(event)+len(schedule),
			event[0].Kind.name)
		outcomes, err := w.strike(ctx, event)
		r.outcomes = append(r.outcomes, outcomes...)
		if err != nil {
			return err
		}
	}
	return nil
}

// chargeLead is how long before a fault new requests are charged to it: so long may one
// of them last, and a fault takes rows of requests that run.
const chargeLead = 1200 * time.Millisecond

// strike makes one event of one fault or two, and waits until everything works again.
func (w *world) strike(ctx context.Context, event []fault) ([]outcome, error) {
	if err := pause(ctx, event[0].Before); err != nil {
		return nil, err
	}
	w.current.Store(int64(event[0].Number))
	if err := pause(ctx, chargeLead); err != nil {
		return nil, err
	}
	w.healed.Store(0)
	errs := make([]chan error, len(event))
	limit, leaveDead := time.Duration(0), false
	for i, f := range event {
		errs[i] = make(chan error, 1)
		go func() {
			if err := pause(ctx, time.Duration(i)*event[0].Hold/2); err != nil {
				errs[i] <- err
				return
			}
			errs[i] <- f.Kind.run(ctx, w, f)
		}()
		limit, leaveDead = max(limit, f.Kind.within(w.on)), leaveDead || f.Kind.leaveDead
	}
	outcomes := make([]outcome, len(event))
	var failed []error
	for i, f := range event {
		outcomes[i].fault = f
		err := <-errs[i]
		switch {
		case errors.Is(err, fleet.ErrNotHere):
			outcomes[i].notHere, err = err.Error(), nil
		case errors.Is(err, errUnfelt):
			outcomes[i].unfelt, err = true, nil
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", f.Kind.name, err))
		}
	}
	if err := errors.Join(failed...); err != nil {
		return outcomes, err
	}
	ended := time.Now()
	if at := w.healed.Load(); at > 0 {
		ended = time.Unix(0, at)
	}
	if leaveDead {
		w.mend(ctx)
	}
	took, err := w.recovered(ctx, ended, limit)
	err = errors.Join(err, w.mended())
	for i := range outcomes {
		outcomes[i].recovery = took
	}
	if err != nil {
		return outcomes, fmt.Errorf("after fault %v: %w", event, err)
	}
	return outcomes, nil
}
