package edges

import (
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"sonde/trials/fleet"
	"sonde/trials/oracle"
)

// The embedded server never writes again after one failed write; what was captured
// meanwhile must be counted, and nobody must have to start anything again.
func TestADiskThatFillsUnderJetStreamLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	r := newRig(t, setup{store: disk(t, 32)})
	r.start()
	r.startEngine("--ring-bytes", "256KiB")
	stop := r.load()
	r.await("rows in the lake", func() bool { return r.stored() > 500 })
	free := fill(t, r.store)
	r.starve()
	before := r.acknowledged()
	free()
	r.recover(before)
	if _, err := oracle.Pending(t.Context(), "nats://"+r.bus, r.lake); err != nil {
		t.Errorf("other processes no longer reach the bus: %v", err)
	}
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
	r.await("rows on the bus again", func() bool { return r.acknowledged() > before+500 })
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
	t.Parallel()
	r := newRig(t, setup{lake: disk(t, 16)})
	r.start()
	r.startEngine()
	stop := r.load()
	r.await("rows in the lake", func() bool { return r.stored() > 500 })
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
	r.await("lag", func() bool { return r.agent()[`sonde_materializer_lag_messages{partition="0"}`] > 0 })
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

// A recording on a full disk ends where it last synced; the engine and the pipeline
// after it must not notice more than that.
func TestAFullDiskUnderARecordingEndsItWhereItCanBeReplayed(t *testing.T) {
	t.Parallel()
	r := newRig(t, setup{})
	dir := disk(t, 8)
	r.record(dir)
	r.startEngine("--ring-bytes", "256KiB")
	stop := r.load()
	r.await("a recording that grows", func() bool { return size(dir) > 64<<10 })
	fill(t, dir)
	r.recordingEnded(dir, "no space left")
	r.goOnAfter(dir)
	stop()
	r.judge()
}

// record puts a recorder in the place of the pipeline.
func (r *rig) record(dir string) {
	r.Helper()
	bin, err := sondeBinary()
	if err != nil {
		r.Fatal(err)
	}
	r.recorder = fleet.NewProcess("record", r.dir, bin, "record", "--socket", r.socket, "--out", dir)
	if err := r.recorder.Start(); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if r.recorder.Running() {
			_ = r.recorder.Kill() // The test gave up.
		}
	})
}

// recordingEnded waits for the recorder's own end, with one sentence, and reads what
// it kept.
func (r *rig) recordingEnded(dir, reason string) {
	r.Helper()
	if err := r.recorder.Wait(patience); err != nil {
		r.Fatal(err)
	}
	if last := r.recorder.Tail(); !strings.HasPrefix(last, "sonde: ") || !strings.Contains(last, reason) {
		r.Errorf("the recorder's last words are %q", last)
	}
	if out, code := sonde(r.T, "replay", dir, "--info"); code != 0 {
		r.Errorf("the recording cannot be read, exit code %d:\n%s", code, out)
	}
}

// goOnAfter replays a recording into the lake, and lets the pipeline take over the
// engine that was recorded.
func (r *rig) goOnAfter(dir string) {
	r.Helper()
	if out, code := sonde(r.T, "replay", dir, "--config", r.config); code != 0 {
		r.Fatalf("the replay ended with %d:\n%s", code, out)
	}
	r.replayed = true
	r.start()
	r.await("rows of the engine on the bus", func() bool { return r.acknowledged() > 500 })
}

// size adds up the files of a folder.
func size(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			if info, err := d.Info(); err == nil { // It may be gone by now.
				n += info.Size()
			}
		}
		return nil
	})
	return n
}
