package main

import (
	"context"
	"fmt"
)

// growth is section f.
func (b *bench) growth(ctx context.Context) (*section, error) {
	s := &section{Title: "the cost of a row grows with nothing: the agent's time and CPU for a row of 1 KiB",
		header: []string{"ranks", "hooks", "us a row", "CPU us a row", "time to the first line", "CPU to the first line"}}
	w, err := b.newWire(ctx, "interval", 64<<10)
	if err != nil {
		return nil, err
	}
	defer w.close()
	type load struct {
		ranks int
		shape
	}
	loads := []load{{1, shape{16, 8, 512}}, {4, shape{16, 8, 512}}, {16, shape{16, 8, 512}}, {1, shape{16, 64, 512}},
		{1, shape{16, 256, 512}}}
	var arms []arm
	var rows []float64
	name := func(l load) string { return fmt.Sprintf("%d ranks, %d hooks", l.ranks, l.hooks) }
	for _, l := range loads {
		steps := max(b.sizes.growBytes/(l.ranks*l.stepBytes()), 1)
		rows = append(rows, float64(l.ranks*steps*l.stepRows()))
		arms = append(arms, arm{name(l), func(ctx context.Context) (sample, error) {
			return w.ours(ctx, l.shape, l.ranks, steps)
		}})
	}
	r, err := b.compare(ctx, "f", arms...)
	if err != nil {
		return nil, fmt.Errorf("%w; the agent said: %s", err, w.agent.Tail())
	}
	first := name(loads[0])
	for i, l := range loads {
		n := name(l)
		perRow := spreadOf(each(r[n], func(s sample) float64 { return 1e6 * s.seconds / rows[i] }))
		cpu := spreadOf(each(r[n], func(s sample) float64 { return 1e6 * s.cpu / rows[i] }))
		against := func(get func(sample) float64) spread {
			return spreadOf(r.eachRound(n, first, func(a, b sample) float64 {
				return get(a) / rows[i] / (get(b) / rows[0])
			}))
		}
		time := figure{ID: fmt.Sprintf("f.%d_ranks.%d_hooks.time_per_row_to_first", l.ranks, l.hooks), Unit: "ratio",
			spread: against(func(s sample) float64 { return s.seconds })}
		work := figure{ID: fmt.Sprintf("f.%d_ranks.%d_hooks.cpu_per_row_to_first", l.ranks, l.hooks), Unit: "ratio",
			spread: against(func(s sample) float64 { return s.cpu })}
		timeText, workText := ratio(time.spread), ratio(work.spread)
		if i > 0 {
			// Twice would be a cost that grows with the number of ranks or hooks.
			time, work = time.atMost(1.5), work.atMost(1.5)
			timeText, workText = judged(time), judged(work)
		}
		s.keep(time, work)
		s.row(fmt.Sprint(l.ranks), fmt.Sprint(l.hooks), ratio(perRow), ratio(cpu), timeText, workText)
	}
	s.afterf("Each line moves the same bytes. A cost that grew with ranks or hooks would show as 4 and more.")
	return s, nil
}
