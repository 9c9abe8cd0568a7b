package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sonde/trials/faultproxy"
	"sonde/trials/fleet"
)

// struck are the proxies that a fault is about: those of the agent's link, of the
// consumers' link, or all.
func (w *world) struck(f fault) []*faultproxy.Proxy {
	per := len(w.links) / linkCount
	switch f.Target % 3 {
	case agentLink:
		return w.links[:per]
	case consumerLink:
		return w.links[per:]
	}
	return w.links
}

// disturb sets a fault on the links and clears it.
func disturb(ctx context.Context, w *world, f fault, how faultproxy.Fault) error {
	links := w.struck(f)
	for _, l := range links {
		l.Set(how)
	}
	err := pause(ctx, f.Hold)
	for _, l := range links {
		l.Clear()
	}
	return err
}

func resetLinks(_ context.Context, w *world, f fault) error {
	for _, l := range w.struck(f) {
		l.Reset()
	}
	return nil
}

func finishLinks(_ context.Context, w *world, f fault) error {
	for _, l := range w.struck(f) {
		l.Finish()
	}
	return nil
}

func refuseLinks(ctx context.Context, w *world, f fault) error {
	links := w.struck(f)
	for _, l := range links {
		l.Refuse()
	}
	err := pause(ctx, f.Hold)
	for _, l := range links {
		err = errors.Join(err, l.Admit())
	}
	return err
}

// cutLinks resets each connection after so many bytes, which falls into a message.
func cutLinks(ctx context.Context, w *world, f fault) error {
	after := 500 + int(f.Amount*20_000)
	return disturb(ctx, w, f, faultproxy.Fault{Up: faultproxy.Harm, Down: faultproxy.Harm, CutAfter: after})
}

func holdLinks(ctx context.Context, w *world, f fault) error {
	return disturb(ctx, w, f, faultproxy.Fault{Up: faultproxy.Hold, Down: faultproxy.Hold})
}

func swallowLinks(ctx context.Context, w *world, f fault) error {
	return disturb(ctx, w, f, faultproxy.Fault{Up: faultproxy.Swallow, Down: faultproxy.Swallow})
}

// swallowAnswers takes what the broker says: publications are stored and never
// acknowledged.
func swallowAnswers(ctx context.Context, w *world, f fault) error {
	return disturb(ctx, w, f, faultproxy.Fault{Down: faultproxy.Swallow})
}

func delayLinks(ctx context.Context, w *world, f fault) error {
	delay := 20*time.Millisecond + time.Duration(f.Amount*float64(300*time.Millisecond))
	return disturb(ctx, w, f, faultproxy.Fault{Up: faultproxy.Harm, Down: faultproxy.Harm, Delay: delay})
}

func slowLinks(ctx context.Context, w *world, f fault) error {
	rate := 4_000 + int(f.Amount*60_000)
	return disturb(ctx, w, f, faultproxy.Fault{Up: faultproxy.Harm, Down: faultproxy.Harm, BytesPerSecond: rate})
}

// corruptLinks turns bits. It is for buses that can notice: those with checksums.
func corruptLinks(ctx context.Context, w *world, f fault) error {
	every := 3_000 + int(f.Amount*30_000)
	before := w.corrupted()
	err := disturb(ctx, w, f, faultproxy.Fault{Up: faultproxy.Harm, Down: faultproxy.Harm, CorruptEvery: every})
	if err == nil && w.corrupted() == before {
		return errUnfelt
	}
	return err
}

func (w *world) corrupted() (bits int64) {
	for _, l := range w.links {
		bits += l.Corrupted()
	}
	return bits
}

// jumpClock sets the wall clock of one process away and back.
func jumpClock(ctx context.Context, w *world, f fault) error {
	var pid int
	switch f.Target % 4 {
	case 0:
		pid = w.agent.PID()
	case 1:
		pid = w.consumers[0].PID()
	case 2:
		pid = w.engines[f.Target/4%len(w.engines)].PID()
	case 3:
		pid = w.broker.pid(f.Target / 4 % w.broker.nodes())
	}
	clock, err := fleet.OpenWallClock(pid)
	if errors.Is(err, fleet.ErrNotHere) {
		return err
	}
	if err != nil && !alive(pid) { // another fault has killed it
		return errUnfelt
	}
	if err != nil {
		return fmt.Errorf("take the clock of process %d: %w", pid, err)
	}
	defer clock.Close()
	steps := []time.Duration{90 * time.Second, -90 * time.Second, time.Hour, -time.Hour, 26 * time.Hour, -26 * time.Hour}
	if err := clock.Set(steps[int(f.Amount*float64(len(steps)))]); err != nil {
		return gone(pid, err)
	}
	err = pause(ctx, f.Hold)
	return errors.Join(err, gone(pid, clock.Set(0)))
}

// gone forgives the error of a process that another fault has killed meanwhile.
func gone(pid int, err error) error {
	if !alive(pid) {
		return nil
	}
	return err
}
