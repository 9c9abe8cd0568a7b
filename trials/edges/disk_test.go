package edges

import (
	"strings"
	"testing"
)

// The embedded server never writes again after one failed write; what was captured
// meanwhile must be counted, and nobody must have to start anything again.
func TestADiskThatFillsUnderJetStreamLosesNothingAcknowledged(t *testing.T) {
	r := newRig(t, setup{store: disk(t, 32)})
	r.start()
	r.startEngine("--ring-bytes", "512KiB")
	stop := r.load()
	r.await("rows in the lake", func() bool { return r.stored() > 1000 })
	free := fill(t, r.store)
	r.starve()
	before := r.acknowledged()
	free()
	r.recover(before)
	stop()
	a := r.judge()
	if a.Dropped["no_space"]+a.Dropped["no_slot"] == 0 {
		t.Errorf("nothing was dropped: the disk was never felt\n%v", a)
	}
	t.Logf("\n%v", a)
}

// starve waits until everybody knows that the store takes nothing.
func (r *rig) starve() {
	r.Helper()
	r.await("readiness that names the store", func() bool { return strings.Contains(r.ready(), "cannot be written") })
	if m := r.agent(); m["sonde_bus_store_failed"] != 1 {
		r.Errorf("sonde_bus_store_failed is %v", m["sonde_bus_store_failed"])
	}
	r.await("drops that the engine counts", func() bool { return r.dropped() > 0 })
}

// recover waits until rows flow again, which nobody helped along.
func (r *rig) recover(before float64) {
	r.Helper()
	r.await("rows on the bus again", func() bool { return r.acknowledged() > before+1000 })
	r.await("ready pipeline", func() bool { return r.ready() == "ready\n" })
	if n := r.lines("the bus cannot write its store"); n < 1 || n > 3 {
		r.Errorf("%d lines of the log say that the store cannot be written", n)
	}
	if m := r.agent(); m["sonde_bus_store_failed"] != 0 || m["sonde_bus_store_reopened_total"] < 1 {
		r.Errorf("sonde_bus_store_failed %v, sonde_bus_store_reopened_total %v", m["sonde_bus_store_failed"],
			m["sonde_bus_store_reopened_total"])
	}
}

// A lake on a full disk must not hold half a commit, and nothing may be stored twice
// once there is room.
func TestAFullDiskUnderTheLakeShowsNothingHalfWrittenAndNothingTwice(t *testing.T) {
	r := newRig(t, setup{lake: disk(t, 16)})
	r.start()
	r.startEngine()
	stop := r.load()
	r.await("rows in the lake", func() bool { return r.stored() > 1000 })
	free := fill(t, r.lake)
	r.lakeWaits("no space left")
	free()
	r.lakeGoesOn()
	stop()
	if a := r.judge(); a.DroppedRows() > 0 {
		t.Errorf("the lake's disk cost rows, though the stream had room\n%v", a)
	}
}

// lakeWaits sees the lag grow while commits fail, and the lake stay readable.
func (r *rig) lakeWaits(reason string) {
	r.Helper()
	r.await("commits that fail", func() bool { return r.agent()["sonde_materializer_commit_failures_total"] >= 2 })
	r.await("readiness that names the lake", func() bool {
		return strings.Contains(r.ready(), "materializer: ") && strings.Contains(r.ready(), reason)
	})
	before := r.acknowledged()
	r.await("rows on the bus", func() bool { return r.acknowledged() > before+500 })
	r.await("lag", func() bool { return r.agent()["sonde_materializer_lag_messages"] > 0 })
	if r.lines("commit failed; it is tried again") == 0 {
		r.Error("the log does not say that a commit failed")
	}
	stored := r.stored()
	if a := r.verify(); float64(a.Stored) != stored {
		r.Errorf("the lake shows %d rows; %v are committed", a.Stored, stored)
	}
}

// lakeGoesOn sees the lake catch up by itself.
func (r *rig) lakeGoesOn() {
	r.Helper()
	stored := r.stored()
	r.await("rows in the lake again", func() bool { return r.stored() > stored+500 })
	r.await("ready pipeline", func() bool { return r.ready() == "ready\n" })
}
