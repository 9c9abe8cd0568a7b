package edges

import (
	"errors"
	"testing"
	"time"

	"sonde/internal/notrun"
	"sonde/trials/fleet"
)

// wallClock is the wall clock of one process, for this test alone.
type wallClock struct {
	t *testing.T
	c *fleet.WallClock
}

func newWallClock(t *testing.T, pid int) *wallClock {
	t.Helper()
	c, err := fleet.OpenWallClock(pid)
	if errors.Is(err, fleet.ErrNotHere) {
		notrun.Mark(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &wallClock{t, c}
}

// set makes the clock differ from the machine's by so much.
func (c *wallClock) set(offset time.Duration) {
	c.t.Helper()
	if err := c.c.Set(offset); err != nil {
		c.t.Fatal(err)
	}
}
