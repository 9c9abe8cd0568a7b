package main

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// gauge is something that must not grow while a pipeline works.
type gauge struct {
	name     string
	unit     string  // "" for a count
	share    float64 // growth over the run that is taken for noise, as a share of the median
	absolute float64 // the same, in units; the larger of both is allowed
}

// Of each process, and then of what they keep on disk. A leak of one for each
// batch, commit or request shows as hundreds over a run; what stands here is
// noise: a segment that is about to be removed, and for memory what the garbage
// collector lets pile up, which follows what a commit holds at the moment.
var gauges = []gauge{
	{"run: resident memory", "MiB", 0.30, 16},
	{"run: goroutines", "", 0.10, 8},
	{"run: open files", "", 0.10, 8},
	{"engine: resident memory", "MiB", 0.25, 16},
	{"engine: goroutines", "", 0.10, 8},
	{"engine: open files", "", 0.10, 8},
	{"bus store", "MiB", 0.10, 8},
	{"bus store: files", "", 0.10, 8},
	{"journal", "MiB", 0.10, 8},
	{"journal: files", "", 0.10, 4},
	// The dataset grows: that is what it is for. What it takes to grow must not.
	{"lake: files per commit", "", 0.10, 0.5},
	{"lake: log per commit", "KiB", 0.10, 1},
	{"lake: bytes per token", "", 0.10, 16},
	{"logs, dead letters: files", "", 0, 1},
	{"logs, dead letters", "MiB", 0.10, 1},
}

// point is a value of a gauge at a time since the start.
type point struct {
	at    time.Duration
	value float64
}

// verdict says whether a gauge is flat. The first half of a run fills caches and
// buffers; the second half is judged.
type verdict struct {
	gauge
	points  []point
	median  float64 // of the second half
	slope   float64 // of the second half, units per second
	drift   float64 // slope over the whole run, units
	allowed float64
}

func (v *verdict) flat() bool { return v.drift <= v.allowed }

// minSamples makes at least ten in the half that is judged.
const minSamples = 20

// judge takes the slope of the second half of a run by Theil and Sen (the median
// of the slopes of all pairs of points), which a minority of outliers cannot
// move. If the whole run at that slope would add more than is allowed, the gauge
// is not flat. A gauge that falls is.
func judge(g gauge, points []point) (verdict, error) {
	v := verdict{gauge: g, points: points}
	if len(points) < minSamples {
		return v, fmt.Errorf("judge %s: %d samples, and at least %d are needed; sample more often, or longer", g.name,
			len(points), minSamples)
	}
	late := points[len(points)/2:]
	var slopes, values []float64
	for i, p := range late {
		values = append(values, p.value)
		for _, q := range late[:i] {
			if p.at > q.at {
				slopes = append(slopes, (p.value-q.value)/(p.at-q.at).Seconds())
			}
		}
	}
	v.median, v.slope = middle(values), middle(slopes)
	v.drift = v.slope * (points[len(points)-1].at - points[0].at).Seconds()
	v.allowed = max(g.share*math.Abs(v.median), g.absolute)
	if math.IsNaN(v.drift) || math.IsNaN(v.median) {
		return v, fmt.Errorf("judge %s: some sample is no number", g.name)
	}
	return v, nil
}

// middle is the median; of nothing it is 0.
func middle(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}
