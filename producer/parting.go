package producer

import (
	"context"
	"time"
)

// Bounds of what an agent that was told to stop does for rings that no other agent
// will read. The memory of a ring goes with the last process that has it.
const (
	// dyingEngine is how long it looks for the end of an engine. The kernel ends the
	// connection of a process that was killed some time after the signal.
	dyingEngine = 200 * time.Millisecond
	// longestParting is how long it then reads, publishes and waits for answers.
	longestParting = 5 * time.Second
)

// part gives the context in which a rank is read. It outlives ctx as long as that
// may save rows: for a moment, and until the epoch is closed where the engine is
// gone or says goodbye. The rows of a living engine stay in its ring, for the
// next agent.
func (r *rank) part(ctx context.Context) (context.Context, context.CancelFunc) {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	unwatch := context.AfterFunc(ctx, func() {
		defer end()
		limit := time.NewTimer(r.agent.longestParting)
		defer limit.Stop()
		dying := time.NewTimer(r.agent.dyingEngine)
		defer dying.Stop()
		select {
		case <-life.Done():
			return
		case <-r.s.Gone():
		case <-dying.C:
			if !r.parting() {
				return
			}
		}
		select {
		case <-life.Done():
		case <-limit.C:
		}
	})
	return life, func() { unwatch(); end() }
}

// parting reports whether nobody else will read this ring to its end.
func (r *rank) parting() bool {
	select {
	case <-r.s.Gone():
		return true
	default:
		return r.s.Producer().Closing
	}
}

// abandoned tells of rows that go with this agent: the engine is gone and its epoch
// is not closed. Where the engine has a journal, its next start names them.
func (r *rank) abandoned() bool {
	select {
	case <-r.s.Gone():
	default:
		return false
	}
	return r.quarantine == nil && !r.own.closedDone
}
