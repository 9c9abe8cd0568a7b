package ring2

import (
	"testing"
	"time"
)

// A detector that takes every capture for an hour old stops nothing any more.
func TestFreshCapturesFollowAWallClockThatSteps(t *testing.T) {
	const sec, hour = int64(time.Second), int64(time.Hour)
	const mono, base = 5000 * sec, 1_700_000_000 * sec
	c := Config{WallMinusMonoNS: uint64(base)}
	for _, w := range []struct {
		name            string
		capture, stepBy int64
		want            int64
	}{
		{"no step", mono - sec, 0, base + mono - sec},
		{"slewed", mono - sec, sec / 2, base + mono - sec},
		{"an hour on", mono - sec, hour, base + mono - sec + hour},
		{"an hour back", mono - sec, -hour, base + mono - sec - hour},
		{"captured long before the step", mono - 90*sec, hour, base + mono - 90*sec},
		{"another monotonic clock", mono + 70*sec, hour, base + mono + 70*sec},
		{"no capture at all", 0, hour, base},
	} {
		if got := c.wallNS(uint64(w.capture), uint64(mono), uint64(base+mono+w.stepBy)); got != w.want {
			t.Errorf("%s: off by %v", w.name, time.Duration(got-w.want))
		}
	}
}
