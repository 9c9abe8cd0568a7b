package spool

import (
	"slices"
	"testing"
	"time"
)

// outage publishes messages while the bus is away and brings it back. It returns what
// arrived, in order, and what is named.
func outage(r *rig, messages []Message) (rows []uint64, named map[uint64]bool) {
	r.Helper()
	r.bus.Stop()
	for _, m := range messages {
		if err := r.publish(deadline(r.T), m); err != nil {
			r.Fatal(err)
		}
	}
	r.answered(len(messages))
	if st := r.s.Stats(); st.Bytes > st.MaxBytes {
		r.Errorf("the spool has %d bytes; at most %d", st.Bytes, st.MaxBytes)
	}
	r.bus.Start()
	r.empty()
	return r.arrived()
}

// tiny holds few messages, and gives the bus none of them to begin with.
func tiny(whenFull WhenFull) Options {
	return Options{MaxBytes: minMaxBytes, WindowBytes: 16 << 10, WhenFull: whenFull}
}

func numbered(n uint64, priority func(i uint64) int32) (out []Message) {
	for i := range n {
		out = append(out, dataMessage([]testRow{{i, priority(i)}}, 1000))
	}
	return out
}

func TestWithDropOldestTheNewestArrive(t *testing.T) {
	r := newRig(t, tiny(DropOldest))
	r.bus.SetWindow(1)
	rows, named := outage(r, numbered(1000, func(uint64) int32 { return 7 }))
	r.complete(1000)
	// The first ones are in the hands of the bus.
	if len(rows) < 50 || len(named) < 500 || rows[len(rows)-1] != 999 || rows[2] < 500 {
		t.Errorf("%d rows arrived, %v; %d are named", len(rows), rows[:3], len(named))
	}
	if r.settled[Discarded] != uint64(len(named)) {
		t.Errorf("%d rows are named, %d counted", len(named), r.settled[Discarded])
	}
}

func TestWithDropNewestTheOldestArrive(t *testing.T) {
	r := newRig(t, tiny(DropNewest))
	rows, named := outage(r, numbered(1000, func(uint64) int32 { return 7 }))
	r.complete(1000)
	if len(rows) < 50 || len(named) < 500 || rows[len(rows)-1] != uint64(len(rows)-1) {
		t.Errorf("%d rows arrived, the last is %d; %d are named", len(rows), rows[len(rows)-1], len(named))
	}
}

// complete mode: nothing is discarded, and publishing waits.
func TestWithWaitNothingIsDroppedAndPublishingWaits(t *testing.T) {
	r := newRig(t, tiny(Wait))
	r.bus.Stop()
	published := make(chan struct{})
	go func() {
		defer close(published)
		for _, m := range numbered(1000, func(uint64) int32 { return 7 }) {
			if err := r.publish(deadline(t), m); err != nil {
				t.Error(err)
			}
		}
	}()
	until(t, "publishing waits", func() bool {
		st := r.s.Stats()
		return st.Memory >= 15<<10 && st.Bytes > minMaxBytes/2
	})
	select {
	case <-published:
		t.Fatal("1000 messages had room")
	case <-time.After(20 * time.Millisecond):
	}
	r.bus.Start()
	<-published
	r.answered(1000)
	r.empty()
	r.complete(1000)
	if rows, named := r.arrived(); len(rows) != 1000 || len(named) != 0 {
		t.Errorf("%d rows arrived, %d are named", len(rows), len(named))
	}
}

// Facts are never discarded, whatever is: where they alone fill the spool, publishing
// waits.
func TestFactsAreNeverDiscarded(t *testing.T) {
	r := newRig(t, tiny(DropOldest))
	var all []Message
	facts := 0
	for _, m := range numbered(400, func(uint64) int32 { return 7 }) {
		if len(all)%8 == 0 {
			m.Rows = nil
			facts++
		}
		all = append(all, m)
	}
	rows, named := outage(r, all)
	r.complete(400)
	there := 0
	for _, number := range rows {
		if number%8 == 0 {
			there++
		}
	}
	if there != facts || len(named) == 0 {
		t.Errorf("%d of %d facts arrived; %d rows are named", there, facts, len(named))
	}
}

// The promise of priorities: while a row was dropped, every row of a lower priority
// that came before it into the spool was dropped, too; and those that came later, as
// long as it was full.
func TestTheLowestPriorityGoesBeforeAHigherOneLosesARow(t *testing.T) {
	for _, whenFull := range []WhenFull{DropOldest, DropNewest} {
		for range 2 {
			t.Run(string(whenFull), func(t *testing.T) { checkPriorities(t, whenFull) })
		}
	}
}

func checkPriorities(t *testing.T, whenFull WhenFull) {
	rng := random(t)
	r := newRig(t, tiny(whenFull))
	r.bus.SetWindow(1)
	var all []Message
	number := uint64(0)
	levels := 1 + rng.IntN(4)
	for range 300 + rng.IntN(300) {
		var rows []testRow
		for range 1 + rng.IntN(3) {
			rows = append(rows, testRow{number, int32(rng.IntN(levels)) - 1})
			number++
		}
		all = append(all, dataMessage(rows, 400+rng.IntN(1000)))
	}
	rows, named := outage(r, all)
	r.complete(number)
	for _, row := range rows {
		if named[row] {
			t.Errorf("row %d arrived and is named", row)
		}
	}
	checkEvents(t, r.events, uint64(all[0].RowCount()+all[1].RowCount()))
	if number > 600 && len(named) == 0 {
		t.Error("the spool was not full")
	}
}

// checkEvents: when a row of some priority is taken out, each row of a lower one that
// was safe before is gone, but for those that the bus had in its hands from the first.
func checkEvents(t *testing.T, events []event, hands uint64) {
	t.Helper()
	kept := map[testRow]bool{}
	out := map[testRow]bool{}
	for _, e := range events {
		switch {
		case !e.safe:
			out[e.testRow] = true
			delete(kept, e.testRow)
			for row := range kept {
				if row.priority < e.priority {
					t.Fatalf("row %d of priority %d is taken out while row %d of priority %d is kept", e.number, e.priority,
						row.number, row.priority)
				}
			}
		case e.number >= hands && !out[e.testRow]:
			kept[e.testRow] = true
		}
	}
}

// Rows of a message that the bus has in its hands are not dropped: it may store them.
func TestRowsInTheHandsOfTheBusAreKept(t *testing.T) {
	r := newRig(t, tiny(DropOldest))
	r.bus.SetWindow(20 << 10)                                                         // more than the spool's own window
	rows, named := outage(r, numbered(600, func(i uint64) int32 { return int32(i) })) // ever more important
	r.complete(600)
	if !slices.Contains(rows, 0) || named[0] {
		t.Errorf("the first row is not kept: %v", rows[:3])
	}
}

func TestLowestOfPrioritiesAtTheirEnds(t *testing.T) {
	rows := []Run{{1<<31 - 1, 1}, {-1 << 31, 1}, {0, 1}}
	for _, want := range []int32{-1 << 31, 0, 1<<31 - 1} {
		got, any := lowestFrom(rows, int64(want))
		if !any || got != want {
			t.Errorf("lowest from %d: %d, %v", want, got, any)
		}
	}
	if _, any := lowestFrom(rows, 1<<31); any {
		t.Error("there is one above the highest")
	}
}
