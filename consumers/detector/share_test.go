package detector

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"sonde/bus"
	"sonde/bus/bustest"
	"sonde/schema"
)

const heartbeat = 20 * time.Millisecond

// sharedDesk is a runtime that has others beside it.
func sharedDesk(t *testing.T, b *bustest.Bus, uses ...Use) *desk {
	t.Helper()
	k := newDeskOn(t, b, uses...)
	o := k.r.o
	o.Heartbeat, o.Settle, o.Registerer = heartbeat, heartbeat, nil
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	k.r = r
	return k
}

// fleet is engines enough that each partition has one.
func fleet(t *testing.T, partitions int) []*engine {
	var out []*engine
	seen := map[int]bool{}
	for i := 0; len(seen) < partitions || len(out) < 2*partitions; i++ {
		e := newEngine(t, testEpoch+uint64(i))
		e.header.Engine = fmt.Sprint("llm", i)
		seen[bus.PartitionOf(e.open(1, "r", 0).Subject, partitions)] = true
		out = append(out, e)
	}
	return out
}

// requestOf is the request of an engine.
func requestOf(i int) string { return fmt.Sprint("r", i) }

// Each token is judged by the owner of its partition; when one leaves in the middle of
// all requests, the other one builds their state from the stream, and every verdict is
// published once, with the score that one process alone would have found.
func TestPartitionsMoveInTheMiddleOfRequestsWithoutChangingAVerdict(t *testing.T) {
	const partitions = 3
	b := bustest.NewPartitioned(partitions)
	t.Cleanup(func() { _ = b.Close() })
	bundle := write(t, draft())
	first, second := sharedDesk(t, b, Use{bundle, ModeAlert}), sharedDesk(t, b, Use{bundle, ModeAlert})
	stop := first.start(t)
	eventually(t, "the first to hold all", func() bool { return first.r.member.Held() == partitions })
	second.start(t)
	eventually(t, "two to share", func() bool { return second.r.member.Held() > 0 && first.r.member.Held() < partitions })
	engines := fleet(t, partitions)
	for i, e := range engines {
		publish(t, b, e.open(1, requestOf(i), 0))
		publish(t, b, e.text(1, requestOf(i), 0, 0.2, 0.2)...)
	}
	eventually(t, "both to judge", func() bool { return first.scored() > 0 && second.scored() > 0 })
	stop()
	for i, e := range engines {
		publish(t, b, e.text(1, requestOf(i), 2, 9)...)
	}
	eventually(t, "all verdicts", func() bool { rows, _ := detections(t, b); return len(rows) >= 2*len(engines) })
	time.Sleep(5 * heartbeat)
	rows, headers := detections(t, b)
	if len(rows) != 2*len(engines) {
		t.Errorf("%d verdicts on %d requests; want 2 on each", len(rows), len(engines))
	}
	chains := map[uint64]int{}
	for i, row := range rows {
		if row.Coverage != 1 || row.TokensSeen != 3 || row.Score != rows[0].Score {
			t.Errorf("%+v", row)
		}
		n := bus.PartitionOf(schema.Subject(headers[i]), partitions)
		if other, known := chains[headers[i].Epoch]; known && other != n {
			t.Errorf("the chain %x lies in partitions %d and %d", headers[i].Epoch, other, n)
		}
		chains[headers[i].Epoch] = n
	}
}

func TestDetectorsOfOtherBundlesJudgeEverything(t *testing.T) {
	b := bustest.NewPartitioned(2)
	t.Cleanup(func() { _ = b.Close() })
	d := draft()
	d.Manifest.Name = "another"
	desks := []*desk{sharedDesk(t, b, Use{write(t, draft()), ModeAlert}), sharedDesk(t, b, Use{write(t, d), ModeAlert})}
	for _, k := range desks {
		k.start(t)
	}
	engines := fleet(t, 2)
	for i, e := range engines {
		publish(t, b, e.open(1, requestOf(i), 0))
		publish(t, b, e.text(1, requestOf(i), 0, 0.1)...)
	}
	for _, k := range desks {
		eventually(t, "all tokens", func() bool { return k.scored() == len(engines) })
	}
}

// A stop must reach the engine while partitions move to and fro.
func TestAbortsAreSentWhoeverJudges(t *testing.T) {
	b := bustest.NewPartitioned(2)
	t.Cleanup(func() { _ = b.Close() })
	d := draft()
	d.Manifest.Limits.MaxStopRate = 1
	bundle := write(t, d)
	engines := fleet(t, 2)
	var stopped atomic.Int64
	for _, e := range engines {
		end, err := b.Serve(schema.AbortSubject("acme", e.header.Engine, 0), func([]byte) []byte {
			stopped.Add(1)
			return schema.AbortReply{Outcome: schema.AbortStopped, FinalLength: 2}.Encode()
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(end)
	}
	keep := sharedDesk(t, b, Use{bundle, ModeEnforce})
	keep.start(t)
	var others []func()
	for round := range int32(6) {
		if round%2 == 0 {
			others = append(others, sharedDesk(t, b, Use{bundle, ModeEnforce}).start(t))
		} else {
			others[len(others)-1]()
		}
		for i, e := range engines {
			number := uint64(round) + 1
			request := fmt.Sprint(requestOf(i), "-", round)
			publish(t, b, e.open(number, request, 0))
			publish(t, b, e.text(number, request, 0, 9)...)
		}
		time.Sleep(2 * heartbeat)
	}
	want := 6 * len(engines)
	eventually(t, "all outcomes", func() bool {
		rows, _ := detections(t, b)
		var ids []string
		for _, row := range rows {
			if row.Level == LevelStop && row.Outcome == schema.AbortStopped && !slices.Contains(ids, row.ID) {
				ids = append(ids, row.ID)
			}
		}
		return len(ids) == want
	})
	if n := stopped.Load(); n < int64(want) {
		t.Errorf("%d requests were stopped; want %d", n, want)
	}
}
