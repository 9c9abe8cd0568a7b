package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"sonde/trials/fleet"
)

// pause waits, or ends with ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// heals notes that a fault is over, and that what died of it is started now: the time of
// recovery counts from here.
func (w *world) heals() { w.healed.Store(time.Now().UnixNano()) }

// killAndStart kills processes at once, and starts them again after a while.
func (w *world) killAndStart(ctx context.Context, hold time.Duration, victims ...*fleet.Process) error {
	for _, p := range victims {
		if err := p.Kill(); err != nil {
			return err
		}
	}
	if err := pause(ctx, hold); err != nil {
		return err
	}
	w.heals()
	for _, p := range victims {
		if err := p.Start(); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) engine(f fault) *fleet.Process   { return w.engines[f.Target%len(w.engines)].Process }
func (w *world) consumer(f fault) *fleet.Process { return w.consumers[f.Target%members] }
func (w *world) node(f fault) int                { return f.Target % w.broker.nodes() }

func killEngine(ctx context.Context, w *world, f fault) error {
	return w.killAndStart(ctx, f.Hold, w.engine(f))
}

func killAgent(ctx context.Context, w *world, f fault) error {
	return w.killAndStart(ctx, f.Hold, w.agent)
}

func killConsumer(ctx context.Context, w *world, f fault) error {
	return w.killAndStart(ctx, f.Hold, w.consumer(f))
}

func killBothEnds(ctx context.Context, w *world, f fault) error {
	return w.killAndStart(ctx, f.Hold, w.engine(f), w.agent)
}

// killAgentWithSpool kills the agent while the bus is away and its spool holds messages,
// perhaps twice.
func killAgentWithSpool(ctx context.Context, w *world, f fault) error {
	w.cutAgentOff()
	err := pause(ctx, spoolFills+f.Hold)
	for range 1 + int(2*f.Amount) {
		err = errors.Join(err, w.killAndStart(ctx, f.Hold/4, w.agent), pause(ctx, spoolFills))
	}
	w.heals()
	return errors.Join(err, w.letAgentIn())
}

func killEverything(ctx context.Context, w *world, f fault) error {
	for _, p := range w.all() {
		if err := p.Kill(); err != nil {
			return err
		}
	}
	for node := range w.broker.nodes() {
		if err := w.broker.kill(node); err != nil {
			return err
		}
	}
	if err := pause(ctx, f.Hold); err != nil {
		return err
	}
	w.heals()
	for _, p := range w.all() {
		if err := p.Start(); err != nil {
			return err
		}
	}
	w.mend(ctx)
	return nil
}

func killBroker(ctx context.Context, w *world, f fault) error {
	return w.killNodes(ctx, f.Hold, w.node(f))
}

func killLeader(ctx context.Context, w *world, f fault) error {
	node, err := w.broker.leader(ctx, f.Target%partitions)
	if err != nil {
		return err
	}
	return w.killNodes(ctx, f.Hold, node)
}

func killQuorum(ctx context.Context, w *world, f fault) error {
	return w.killNodes(ctx, f.Hold, w.node(f), (w.node(f)+1)%w.broker.nodes())
}

func (w *world) killNodes(ctx context.Context, hold time.Duration, nodes ...int) error {
	for _, node := range nodes {
		if err := w.broker.kill(node); err != nil {
			return err
		}
	}
	if err := pause(ctx, hold); err != nil {
		return err
	}
	w.heals()
	w.mend(ctx)
	return nil
}

// brokerPatience is how long a supervisor tries to start a node: a start fails while its
// disk does, and the nodes of a cluster wait for each other.
const brokerPatience = 3 * time.Minute

// illFor is how long a node's health check may fail before its supervisor starts it again.
const illFor = 20 * time.Second

// mend does beside everything else what a supervisor of the broker does: it starts nodes
// that do not run, and once more those that say for a while that they are not well.
// mended waits for it.
func (w *world) mend(ctx context.Context) {
	w.mending.Go(func() {
		w.mendMu.Lock() // one supervisor at a time
		defer w.mendMu.Unlock()
		err := w.startNodes(ctx)
		for node := range w.broker.nodes() {
			if err == nil {
				err = w.nurse(ctx, node)
			}
		}
		w.mendErr = errors.Join(w.mendErr, err)
	})
}

// nurse waits until a node is well, and starts it again when that takes too long.
func (w *world) nurse(ctx context.Context, node int) error {
	ill := time.Now()
	for !w.broker.well(node) {
		if time.Since(ill) > illFor {
			return errors.Join(w.broker.kill(node), w.startNode(ctx, node))
		}
		if err := pause(ctx, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// mended waits until every node is well.
func (w *world) mended() error {
	w.mending.Wait()
	return w.mendErr
}

// startNodes starts every node that does not run, all at once, and waits for them.
func (w *world) startNodes(ctx context.Context) error {
	done := make(chan error)
	nodes := 0
	for node := range w.broker.nodes() {
		if alive(w.broker.pid(node)) {
			continue
		}
		nodes++
		go func() { done <- w.startNode(ctx, node) }()
	}
	var errs []error
	for range nodes {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}

func (w *world) startNode(ctx context.Context, node int) error {
	until := time.Now().Add(brokerPatience)
	for {
		if w.broker.pid(node) != 0 { // it ended by itself, and is to be buried first
			if err := w.broker.kill(node); err != nil {
				return err
			}
		}
		err := w.broker.up(node)
		if err == nil {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("start node %d of the broker for %v: %w", node, brokerPatience, err)
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
}

// freeze stops a process with SIGSTOP and lets it go on.
func freeze(ctx context.Context, hold time.Duration, signal func(syscall.Signal) error) error {
	if err := signal(syscall.SIGSTOP); err != nil {
		return err
	}
	err := pause(ctx, hold)
	return errors.Join(err, signal(syscall.SIGCONT))
}

func freezeEngine(ctx context.Context, w *world, f fault) error {
	return freeze(ctx, f.Hold, w.engine(f).Signal)
}

func freezeAgent(ctx context.Context, w *world, f fault) error {
	return freeze(ctx, f.Hold, w.agent.Signal)
}

func freezeConsumer(ctx context.Context, w *world, f fault) error {
	return freeze(ctx, f.Hold, w.consumer(f).Signal)
}

func freezeBroker(ctx context.Context, w *world, f fault) error {
	node := w.node(f)
	return freeze(ctx, f.Hold, func(s syscall.Signal) error { return w.broker.signal(node, s) })
}

func freezeLeader(ctx context.Context, w *world, f fault) error {
	node, err := w.broker.leader(ctx, f.Target%partitions)
	if err != nil {
		return err
	}
	return freeze(ctx, f.Hold, func(s syscall.Signal) error { return w.broker.signal(node, s) })
}

// stopGrace is how long a process may take to stop in order.
const stopGrace = time.Minute

// leaveGroup has a consumer leave in order, and come back.
func leaveGroup(ctx context.Context, w *world, f fault) error {
	c := w.consumer(f)
	if err := c.Stop(stopGrace); err != nil {
		return err
	}
	if err := pause(ctx, f.Hold); err != nil {
		return err
	}
	return c.Start()
}

// joinGroup has one more consumer join, and leave in order.
func joinGroup(ctx context.Context, w *world, f fault) error {
	guest := w.consumers[members]
	if err := guest.Start(); err != nil {
		return err
	}
	if err := pause(ctx, f.Hold); err != nil {
		return err
	}
	if f.Amount < 0.5 {
		return guest.Kill()
	}
	return guest.Stop(stopGrace)
}
