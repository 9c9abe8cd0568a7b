// Command benchring measures the way from the ring to the bytes of an Arrow
// message as the agent goes it: read records from shared memory, divide captures
// into rows, collect them by hook, and write messages. Its baselines run in the
// same process, in turns with it: memcpy of the same bytes, and arrow-go's own
// IPC writer on batches that are ready made.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"
)

// A step is one token of each of 16 sequences at 8 hooks of 2048 bf16 elements.
const (
	sequences = 16
	hooks     = 8
	elements  = 2048
	rowBytes  = 2 * elements
	stepBytes = sequences * hooks * rowBytes
	fillSteps = 64 // measured at a time, half of the ring
	turns     = 21 // of each way, after one that only warms up
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintf(os.Stderr, "bench-ring failed: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	r, err := newRig(ctx)
	if err != nil {
		return err
	}
	defer r.close()
	fmt.Printf("ring to Arrow message bytes; %d sequences, %d hooks, rows of %d bytes; median of %d turns [range]; %s\n",
		sequences, hooks, rowBytes, turns, runtime.Version())
	fmt.Printf("%-9s %-26s %-22s %-26s %s\n", "message", "time a message", "to memcpy of the rows",
		"to arrow-go's writer alone", "allocations a token")
	for _, size := range []int{64 << 10, 256 << 10, 1 << 20} {
		m, err := measure(ctx, r, size)
		if err != nil {
			return err
		}
		fmt.Printf("%4d KiB  %-26s %-22s %-26s %.3f\n", size>>10, spread(m.ours, "%.1f µs"),
			spread(m.toMemcpy, "%.2f x"), spread(m.toArrow, "%.2f x"), median(m.allocations))
	}
	return nil
}

// measurement holds one figure for each turn.
type measurement struct {
	ours              []float64 // µs a message
	toMemcpy, toArrow []float64
	allocations       []float64 // a token
}

// measure takes turns: ours, memcpy, arrow-go.
func measure(ctx context.Context, r *rig, size int) (*measurement, error) {
	m := &measurement{}
	for turn := range turns + 1 {
		if err := r.fill(); err != nil {
			return nil, err
		}
		runtime.GC()
		before := mallocs()
		began := time.Now()
		messages, err := r.drain(ctx, size)
		ours := time.Since(began)
		allocated := mallocs() - before
		if err != nil {
			return nil, err
		}
		batches, err := r.batches(messages)
		if err != nil {
			return nil, err
		}
		runtime.GC()
		began = time.Now()
		r.copyRows()
		copied := time.Since(began)
		runtime.GC()
		began = time.Now()
		err = r.writeBatches(batches)
		written := time.Since(began)
		if err != nil {
			return nil, err
		}
		if turn == 0 {
			continue
		}
		m.ours = append(m.ours, float64(ours.Microseconds())/float64(len(messages)))
		m.toMemcpy = append(m.toMemcpy, float64(ours)/float64(copied))
		m.toArrow = append(m.toArrow, float64(ours)/float64(written))
		m.allocations = append(m.allocations, float64(allocated)/(fillSteps*sequences))
	}
	return m, nil
}

func mallocs() uint64 {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.Mallocs
}

func median(figures []float64) float64 { return slices.Sorted(slices.Values(figures))[len(figures)/2] }

// spread writes the median and the range of some figures.
func spread(figures []float64, format string) string {
	return fmt.Sprintf(format+" [%.2f..%.2f]", median(figures), slices.Min(figures), slices.Max(figures))
}
