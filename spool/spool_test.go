package spool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
)

// segmentsIn lists the names of segments in a folder.
func segmentsIn(t *testing.T, dir string) (out []string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), segmentSuffix) {
			out = append(out, f.Name())
		}
	}
	return out
}

func TestNoByteIsWrittenWhileTheBusAnswers(t *testing.T) {
	steps := 0
	r := newRig(t, Options{After: time.Hour, check: func(string, string) error { steps++; return nil }})
	r.rows(0, 2000, 1, 100)
	r.answered(2000)
	r.complete(2000)
	if r.s.Close(); steps != 0 || r.acked != 2000 {
		t.Errorf("%d steps on the disk; %d of 2000 messages were acknowledged by the bus", steps, r.acked)
	}
}

func TestEverythingArrivesInOrderWhenTheBusComesBack(t *testing.T) {
	r := newRig(t, Options{MaxBytes: 8 << 20})
	r.rows(0, 100, 1, 1000)
	r.bus.Stop()
	r.rows(100, 1500, 1, 1000)
	r.answered(1500)
	if r.spooled == 0 || r.s.Stats().Messages == 0 {
		t.Errorf("%d messages were spooled: %+v", r.spooled, r.s.Stats())
	}
	r.bus.Start()
	r.rows(1500, 3000, 1, 1000) // while it drains
	r.answered(3000)
	r.empty()
	r.complete(3000)
	if rows, named := r.arrived(); len(rows) != 3000 || len(named) != 0 {
		t.Errorf("%d rows arrived, %d are named", len(rows), len(named))
	}
	if left := segmentsIn(t, r.o.Dir); len(left) != 0 {
		t.Errorf("the empty spool has the files %v", left)
	}
	r.rows(3000, 3100, 1, 10)
	r.answered(3100)
	r.empty()
	r.complete(3100)
}

// The bus may take some, fail, and forget that it took some: nothing is lost and
// nothing overtakes.
func TestAFlappingBusLosesAndReordersNothing(t *testing.T) {
	r := newRig(t, Options{MaxBytes: 8 << 20, WindowBytes: 64 << 10})
	rng := random(t)
	fates := []bustest.Fate{bustest.Take, bustest.Take, bustest.Take, bustest.Fail, bustest.LoseAcks, bustest.Duplicate}
	r.bus.OnPublish(func(bus.Message, int) bustest.Fate { return fates[rng.IntN(len(fates))] })
	stop := make(chan struct{})
	flapped := make(chan struct{})
	go func() {
		defer close(flapped)
		for {
			r.bus.Stop()
			time.Sleep(10 * time.Millisecond)
			r.bus.Start()
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	r.rows(0, 3000, 1, 300)
	r.answered(3000)
	close(stop)
	<-flapped
	r.empty()
	r.complete(3000)
}

// What a killed agent had spooled comes first when the next one publishes.
func TestTheNextAgentDrainsWhatItFindsBeforeItsOwn(t *testing.T) {
	r := newRig(t, Options{})
	r.bus.Stop()
	r.rows(0, 500, 1, 100)
	r.answered(500)
	if err := r.s.Close(); err != nil {
		t.Fatal(err)
	}
	r.counted = 0 // of the first agent
	r.open()
	if got := r.s.Found()["owner"]; got != 500 {
		t.Errorf("the next agent finds %d rows", got)
	}
	r.rows(500, 700, 1, 100)
	r.bus.Start()
	r.answered(700)
	r.empty()
	r.complete(700)
}

func TestABarrierIsPublishedWhenAllBeforeItIsSettled(t *testing.T) {
	for _, spooled := range []bool{false, true} {
		r := newRig(t, Options{})
		if spooled {
			r.bus.Stop()
		}
		taken := make(chan struct{})
		r.bus.OnPublish(func(m bus.Message, _ int) bustest.Fate {
			if m.ID == "barrier" || m.Subject == factSubject {
				return bustest.Take
			}
			select {
			case <-taken:
				return bustest.Take
			default:
				return bustest.Refuse // the fact about it comes behind what follows
			}
		})
		r.rows(0, 1, 1, 10)
		m := dataMessage([]testRow{{1, 1}}, 10)
		m.ID, m.Barrier = "barrier", true
		if err := r.publish(deadline(t), m); err != nil {
			t.Fatal(err)
		}
		if spooled {
			r.answered(2)
			r.bus.Start()
		}
		until(t, "the barrier is there or the first is refused", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return len(r.refused) == 1 || len(r.failed) == 1
		})
		close(taken)
		r.answered(2)
		r.empty()
		rows, named := r.arrived()
		if len(rows) != 1 || rows[0] != 1 || spooled != named[0] {
			t.Errorf("spooled %v: arrived %v, named %v", spooled, rows, named)
		}
		if all := r.bus.Messages(); spooled && all[len(all)-1].Data[0] != 'd' {
			t.Error("the barrier does not come last")
		}
	}
}

// A caller may reuse its memory once it was told that it gave up.
func TestACallerThatGivesUpIsToldOnceAndHoldsUpNobody(t *testing.T) {
	r := newRig(t, Options{After: 20 * time.Millisecond})
	rng := random(t)
	r.bus.Stop()
	for i := range uint64(400) {
		ctx, cancel := context.WithCancel(deadline(t))
		if err := r.publish(ctx, dataMessage([]testRow{{i, 1}}, 100)); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(2) == 0 {
			time.AfterFunc(time.Duration(rng.IntN(30))*time.Millisecond, cancel)
		}
		defer cancel()
		if i%50 == 0 {
			time.Sleep(5 * time.Millisecond)
		}
	}
	r.answered(400)
	r.bus.Start()
	r.empty()
	r.mu.Lock()
	told := r.spooled + r.acked + len(r.failed)
	for _, err := range r.failed {
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	r.mu.Unlock()
	if told != 400 {
		t.Errorf("done was called %d times for 400 messages", told)
	}
	rows, _ := r.arrived()
	there := map[uint64]bool{}
	for _, number := range rows {
		there[number] = true
	}
	for number := range r.of {
		if !there[number] {
			t.Errorf("row %d was told to be safe and did not arrive", number)
		}
	}
}

func TestCloseGivesUpWhatIsNotInTheSpool(t *testing.T) {
	r := newRig(t, Options{After: time.Hour})
	r.bus.Stop()
	r.rows(0, 10, 1, 10)
	if err := r.s.Close(); err != nil {
		t.Fatal(err)
	}
	r.answered(10)
	if len(r.failed) != 10 {
		t.Errorf("%d of 10 messages were given up: spooled %d, acknowledged %d", len(r.failed), r.spooled, r.acked)
	}
	if err := r.publish(deadline(t), dataMessage([]testRow{{1, 1}}, 0)); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("publishing to a closed spool: %v", err)
	}
}

func TestTwoAgentsOnOneFolderTheSecondIsToldWhatToDo(t *testing.T) {
	r := newRig(t, Options{})
	o := r.o
	o.Bus = r.bus
	_, err := Open(o)
	if err == nil || !strings.Contains(err.Error(), "another agent uses it") {
		t.Errorf("the second agent: %v", err)
	}
}

func TestOptionsThatMakeNoSenseAreRefused(t *testing.T) {
	b := bustest.New()
	defer b.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{"no bus": {Dir: t.TempDir()}, "no folder": {Bus: b},
		"tiny": {Bus: b, Dir: t.TempDir(), MaxBytes: 1000}, "a file": {Bus: b, Dir: file}} {
		if s, err := Open(o); err == nil {
			s.Close()
			t.Errorf("%s: it opens", name)
		}
	}
}
