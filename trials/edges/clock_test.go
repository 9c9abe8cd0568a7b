package edges

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"sonde/lakehouse"
	"sonde/trials/oracle"
)

// A wall clock that is set right by an hour, either way, must neither stop commits nor
// let a detector take fresh tokens for old ones: it would stop no request any more.
func TestAClockThatStepsByAnHourEachWayBreaksNothing(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, setup{more: fmt.Sprintf("detectors:\n- {bundle: %q, mode: enforce}\n",
		filepath.Join(root, "detectors/german"))})
	r.start()
	r.startEngine("--model", filepath.Join(root, "models/trilingual"), "--hooks", "token_ids,resid_post", "--threads", "1",
		"--step-delay", "20ms")
	pipeline, engine := newWallClock(t, r.run.PID()), newWallClock(t, r.engine.PID())
	var offset time.Duration
	for n, by := range []time.Duration{0, time.Hour, -time.Hour, -time.Hour, time.Hour} {
		offset += by
		pipeline.set(offset)
		engine.set(offset)
		stopped, request := r.stopped(), fmt.Sprintf("clock-%d", n)
		for try := 0; r.stopped() == stopped; try++ {
			if try == 5 {
				t.Fatalf("%v off: the detector stopped none of %d requests; aborts: %v", offset, try, r.aborts())
			}
			r.complete(fmt.Sprintf(`{"prompt": "Der Administrator muss zuerst das Netzwerk einrichten", "max_tokens": 120,
				"temperature": 0.8, "seed": %d, "sonde": {"request_id": "%s-%d"}}`, 10*n+try, request, try))
		}
		r.await("the last row of the request in the lake", func() bool { return r.endedInLake(request + "-0") })
		if away := r.captured(request+"-0") - offset; away.Abs() > 10*time.Minute {
			t.Errorf("%v off: the rows were captured %v away from the clock", offset, away)
		}
	}
	if n := r.aborts()[`sonde_detector_aborts_total{detector="german",outcome="expired"}`]; n > 0 {
		t.Errorf("%v aborts expired", n)
	}
	if err := r.engine.Stop(patience); err != nil {
		t.Fatal(err)
	}
	if _, err := oracle.AwaitRest(t.Context(), r.lake, r.witness, patience); err != nil {
		t.Fatal(err)
	}
	r.end()
	if a := r.verify(); a.Stored != a.Expected || a.Stored == 0 {
		t.Errorf("not everything is stored\n%v", a)
	}
}

// stopped is how many requests a detector has stopped.
func (r *rig) stopped() float64 {
	return metrics(r.engineURL + "/metrics")[`sonde_engine_requests_total{reason="detector"}`]
}

func (r *rig) aborts() map[string]float64 {
	out := map[string]float64{}
	for series, n := range r.agent() {
		if len(series) > 27 && series[:27] == "sonde_detector_aborts_total" {
			out[series] = n
		}
	}
	return out
}

func (r *rig) endedInLake(request string) (ended bool) {
	r.Helper()
	l, err := lakehouse.Open(r.lake)
	if err != nil {
		return false
	}
	err = l.Requests(r.Context(), lakehouse.Query{Request: request}, func(q *lakehouse.Request) error {
		ended = ended || q.Ended
		return nil
	})
	if err != nil {
		r.Fatal(err)
	}
	return ended
}

// captured says how far the last capture of a request is from the clock of this
// process.
func (r *rig) captured(request string) time.Duration {
	r.Helper()
	l, err := lakehouse.Open(r.lake)
	if err != nil {
		r.Fatal(err)
	}
	last := int64(0)
	err = l.Vectors(r.Context(), lakehouse.Query{Request: request}, func(v *lakehouse.Vector) error {
		last = max(last, v.CaptureNS)
		return nil
	})
	if err != nil {
		r.Fatal(err)
	}
	return time.Until(time.Unix(0, last))
}
