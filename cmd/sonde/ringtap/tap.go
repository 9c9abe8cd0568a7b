package ringtap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"sonde/ring2"
)

// Bounds of a tap.
const (
	pendingLimit = 6 * time.Second // longer than a detached copy may take; then the tap goes on
	stateEvery   = 5 * time.Second // a line about the ring between those of records
)

// Options of a tap.
type Options struct {
	Filter   Filter
	Last     int           // newest records to show at first
	Follow   bool          // go on until the context ends or the engine is gone
	Stats    bool          // decode captures
	Interval time.Duration // between two looks
	Rate     int           // most records shown in a second; older ones are skipped and counted
	JSON     bool          // one object a line
	Screen   func() (width, height int)
	Out      io.Writer
}

// Skipped counts what a tap did not show.
type Skipped struct {
	Rate        uint64 `json:"rate"`        // over the rate
	Overwritten uint64 `json:"overwritten"` // the writer was a lap ahead
	Torn        uint64 `json:"torn"`        // changed while they were read
}

// tap follows one ring.
type tap struct {
	o       Options
	r       *Ring
	next    uint64
	pending time.Time // since when the next record has been pending
	skipped Skipped
	shown   []Record // on a screen: the newest
}

// Tap shows a ring. It returns when the context ends, which is no error, when the
// engine is gone, or, without Follow, at once.
func Tap(ctx context.Context, r *Ring, o Options) error {
	r.learnAll()
	t := &tap{o: o, r: r}
	records := t.newest()
	if !o.Follow || o.Screen == nil {
		if err := t.print(true, records); err != nil || !o.Follow {
			return err
		}
	}
	tick := time.NewTicker(o.Interval)
	defer tick.Stop()
	stated := time.Now()
	for {
		t.shown = append(t.shown, records...)
		if o.Screen != nil {
			if err := t.draw(); err != nil {
				return err
			}
		}
		if r.exited() {
			return fmt.Errorf("tap the ring of process %d: it has ended", r.PID)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		records = t.look(max(1, int(float64(o.Rate)*o.Interval.Seconds())))
		if o.Screen == nil {
			due := time.Since(stated) >= stateEvery
			if due {
				stated = time.Now()
			}
			if err := t.print(due, records); err != nil {
				return err
			}
		}
	}
}

// newest finds the last records that the filter wants, from the end of the ring.
func (t *tap) newest() []Record {
	st := t.r.State()
	t.next = st.Claim
	var out []Record
	for seq := st.Claim; seq != first(t.r.Peek, st.Claim) && len(out) < t.o.Last; {
		seq--
		g, sight := t.r.Look(seq)
		switch sight {
		case ring2.SightWhole:
			if rec, wanted := t.r.describe(&g, &t.o.Filter, st.Release); wanted {
				if t.o.Stats {
					t.r.decode(&rec, &g, &t.o.Filter)
				}
				out = append(out, rec)
			}
		case ring2.SightPending:
			if t.o.Filter.empty() {
				out = append(out, t.pendingRecord(seq))
			}
		case ring2.SightTorn:
			t.skipped.Torn++
		}
	}
	slices.Reverse(out)
	return out
}

func (t *tap) pendingRecord(seq uint64) Record {
	c := t.r.Config()
	return Record{Type: "record", Epoch: fmt.Sprintf("%016x", c.Epoch), Rank: c.Rank, Seq: seq, Kind: "pending",
		Text: "claimed, not committed"}
}

// look finds what came since the last look, at most so many records.
func (t *tap) look(most int) []Record {
	st := t.r.State()
	if oldest := first(t.r.Peek, st.Claim); int64(oldest-t.next) > 0 {
		t.skipped.Overwritten += oldest - t.next
		t.next = oldest
	}
	var out []Record
	var seen []ring2.Glance // of out
	for ; t.next != st.Claim; t.next++ {
		g, sight := t.r.Look(t.next)
		if sight == ring2.SightPending {
			if t.pending.IsZero() {
				t.pending = time.Now()
			}
			if time.Since(t.pending) < pendingLimit {
				break
			}
		} else {
			t.pending = time.Time{}
		}
		switch sight {
		case ring2.SightGone:
			t.skipped.Overwritten++
		case ring2.SightTorn:
			t.skipped.Torn++
		case ring2.SightPending:
			if t.o.Filter.empty() {
				out, seen = append(out, t.pendingRecord(t.next)), append(seen, g)
			}
		default:
			if rec, wanted := t.r.describe(&g, &t.o.Filter, st.Release); wanted {
				out, seen = append(out, rec), append(seen, g)
			}
		}
	}
	if n := len(out) - most; n > 0 {
		t.skipped.Rate += uint64(n)
		out, seen = out[n:], seen[n:]
	}
	if t.o.Stats { // of what is shown alone
		for i := range out {
			t.r.decode(&out[i], &seen[i], &t.o.Filter)
		}
	}
	return out
}

// Select chooses one of several rings, by the epoch in 16 hex digits when it is
// given. It closes the others.
func Select(rings []*Ring, epoch string) (*Ring, error) {
	var chosen *Ring
	for _, r := range rings {
		if chosen == nil && (epoch == "" || epoch == fmt.Sprintf("%016x", r.Config().Epoch)) {
			chosen = r
			continue
		}
		r.Close()
	}
	if chosen == nil {
		return nil, errors.New("select a ring: none has epoch " + epoch + "; leave --epoch out to see which there are")
	}
	return chosen, nil
}
