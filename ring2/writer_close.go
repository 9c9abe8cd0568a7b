package ring2

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const closeEvery = time.Millisecond // how often Close looks at the reader

// Close says goodbye and waits until the agent has released everything, or until
// ctx ends; without a socket it does not wait. Then the connection ends, and the
// ring's memory goes when the open step and detached copies are done. What the
// agent did not release is an error; a journal stays then, for the next writer
// on the same state folder. The writer's owner must not be inside another call.
func (w *Writer) Close(ctx context.Context) error {
	w.mu.Lock()
	if w.closing {
		w.mu.Unlock()
		return nil
	}
	w.closing = true
	w.mu.Unlock()
	left := w.sayGoodbye(ctx)
	w.stop()
	w.background.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.countLater()
	w.closed = true
	w.dead.released(w.core.release, w.core.claim)
	w.dead.close()
	err := w.journal.close(left == 0)
	w.memory.close()
	if left > 0 && w.o.Socket != "" {
		err = errors.Join(err, fmt.Errorf("close ring: the agent did not release %d records: %w", left, ctx.Err()))
	}
	return err
}

// sayGoodbye puts the BYE and waits. It returns how many records, waiting ones
// included, were not released.
func (w *Writer) sayGoodbye(ctx context.Context) uint64 {
	said := false
	for {
		w.mu.Lock()
		w.refresh()
		before := w.core.claim
		if !said && w.flush() {
			// Pairs with the load in readerCore.counters. Stored first: who sees the BYE
			// knows that the end is a clean one.
			atomic.StoreUint32(&w.core.producer.Closing, 1)
			said = w.put(&queued{kind: KindBye})
		}
		if w.core.claim != before {
			w.wakeReader()
		}
		left := w.core.claim - w.core.release + uint64(w.queue.records())
		if !said {
			left++
		}
		w.mu.Unlock()
		if left == 0 || w.o.Socket == "" {
			return left
		}
		select {
		case <-ctx.Done():
			return left
		case <-time.After(closeEvery):
		}
	}
}
