package detector

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"sonde/bus"
	"sonde/schema"
)

func TestEachLevelFiresOnceWhereItWasFirstCrossed(t *testing.T) {
	k := newDesk(t, ModeAlert, draft()) // mean of 2 tokens; warn above 0.5, stop above 2.25
	e := newEngine(t, testEpoch)
	k.feed(e.open(1, "r1", 2))
	k.feed(e.text(1, "r1", 0, 0, 1, 0.25, 4, 1, -9, 9, 9)...) // means 0, .5, .625, 2.125, 2.5, ...
	rows := k.alerts()
	if got := levels(rows); !slices.Equal(got, []string{LevelWarn, LevelStop}) {
		t.Fatalf("levels are %v", got)
	}
	warn, stop := rows[0], rows[1]
	if warn.Position != 2 || warn.Score != 0.625 || warn.Threshold != 0.5 || warn.TokensSeen != 3 || warn.Coverage != 1 {
		t.Errorf("warn is %+v", warn)
	}
	if stop.Position != 4 || stop.Score != 2.5 || stop.Action != ActionNone || stop.Outcome != "" ||
		stop.Mode != ModeAlert {
		t.Errorf("stop is %+v", stop)
	}
	if stop.Request != "r1" || stop.Number != 1 || stop.EngineEpoch != testEpoch || stop.CaptureNS != e.now ||
		stop.VerdictNS < stop.CaptureNS || stop.Digest != k.r.judges[0].bundle.Digest {
		t.Errorf("identity of stop is %+v", stop)
	}
}

// The level is crossed above the threshold, not at it: calibration counts so too.
func TestAScoreAtTheThresholdIsNoAlert(t *testing.T) {
	k := newDesk(t, ModeAlert, draft())
	e := newEngine(t, testEpoch)
	k.feed(e.open(1, "r1", 0))
	k.feed(e.text(1, "r1", 0, 0.5, 0.5)...)
	if rows := k.alerts(); len(rows) != 0 {
		t.Errorf("alerts %+v", rows)
	}
}

func TestNothingIsScoredTwice(t *testing.T) {
	k := newDesk(t, ModeAlert, draft())
	e := newEngine(t, testEpoch)
	open, text := e.open(1, "r1", 0), e.text(1, "r1", 0, 1, 2, 3)
	k.feed(open)
	k.feed(text...)
	want := slices.Clone(k.scores)
	k.feed(open)
	k.feed(text...) // the bus delivered again
	e.prev = schema.Cursor{}
	again := append(e.text(1, "r1", 0, 1, 2, 3), e.text(1, "r1", 3, 4)...)
	k.feed(again...) // preempted: the same positions as another pass
	if got := k.positions(); !slices.Equal(got, []int32{0, 1, 2, 3}) {
		t.Errorf("scored positions %v", got)
	}
	for i := range want {
		want[i].VerdictNS = k.scores[i].VerdictNS
		if k.scores[i] != want[i] {
			t.Errorf("score %d changed from %+v to %+v", i, want[i], k.scores[i])
		}
	}
	if rows := k.alerts(); len(rows) != 2 {
		t.Errorf("want warn and stop once, got %v", levels(rows))
	}
}

// Whatever comes again, in whatever order: no position is scored twice, positions
// only rise, and no level fires twice.
func TestDuplicatesAndReorderingNeverScoreTwice(t *testing.T) {
	d := draft()
	d.Manifest.Binding.Adapter = Any // else rows before their opening are left out
	b, wire := write(t, d), newBus(t)
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		k := newDeskOn(t, wire, Use{b, ModeAlert})
		e := newEngine(t, testEpoch)
		messages := []bus.Delivery{e.open(1, "r1", 3), e.open(2, "r2", 0)}
		for position := range int32(12) {
			messages = append(messages, e.step(token{number: 1, request: "r1", position: position, score: 3},
				token{number: 2, request: "r2", position: position, score: -1}))
		}
		for range 10 {
			i, j := random.IntN(len(messages)), random.IntN(len(messages))
			if random.IntN(2) == 0 {
				messages[i], messages[j] = messages[j], messages[i]
			} else {
				messages = append(messages, messages[i])
			}
		}
		k.feed(messages...)
		last := map[uint64]int32{1: -1, 2: -1}
		for _, s := range k.scores {
			if s.Position <= last[s.Number] {
				t.Fatalf("seed %d: request %d position %d after %d", seed, s.Number, s.Position, last[s.Number])
			}
			last[s.Number] = s.Position
		}
		fired := map[string]bool{}
		for _, row := range k.alerts() {
			if row.Number != 1 || fired[row.Level] {
				t.Fatalf("seed %d: unexpected alert %+v", seed, row)
			}
			fired[row.Level] = true
			if row.Coverage <= 0 || row.Coverage > 1 ||
				int32(math.Round(float64(row.Coverage)*float64(row.Position+1))) != row.TokensSeen {
				t.Errorf("seed %d: %d tokens up to position %d with coverage %v", seed, row.TokensSeen, row.Position, row.Coverage)
			}
		}
	}
}

func TestMissingTokensLowerCoverageAndAreNoZeros(t *testing.T) {
	k := newDesk(t, ModeAlert, draft())
	e := newEngine(t, testEpoch)
	k.feed(e.open(1, "r1", 0))
	k.feed(e.text(1, "r1", 4, 2)...) // a prefix cache served 4 tokens
	e.seq += 3                       // steps that never arrive
	e.prev.Seq += 3
	k.feed(e.text(1, "r1", 8, 4)...)
	rows := k.alerts()
	if got := levels(rows); !slices.Equal(got, []string{LevelWarn, LevelStop}) {
		t.Fatalf("levels are %v", got)
	}
	if rows[0].Coverage != 0.2 || rows[1].Coverage != float32(2)/9 || rows[1].TokensSeen != 2 || rows[1].Score != 3 {
		t.Errorf("warn %+v, stop %+v", rows[0], rows[1])
	}
	if got := counter(t, k.r.metrics.missing.WithLabelValues("german")); got != 7 {
		t.Errorf("%v tokens are counted as missing, want 7", got)
	}
	if got := counter(t, k.r.metrics.stream.WithLabelValues("gap")); got != 1 {
		t.Errorf("%v gaps are counted, want 1", got)
	}
}

func TestPhaseIsJudgedByTheLengthOfThePrompt(t *testing.T) {
	d := draft()
	d.Manifest.Binding.Phase = PhaseDecode
	k := newDesk(t, ModeAlert, d)
	e := newEngine(t, testEpoch)
	k.feed(e.open(1, "r1", 2))
	k.feed(e.step(token{1, "r1", 0, 9, 0, schema.PhasePrefill}, token{1, "r1", 1, 9, 0, schema.PhasePrefill}))
	k.feed(e.step(token{1, "r1", 2, 1, 0, schema.PhaseDecode}))
	// preempted: everything is computed anew, and one token that was lost before
	k.feed(e.step(token{1, "r1", 0, 9, 1, schema.PhaseRecompute}, token{1, "r1", 1, 9, 1, schema.PhaseRecompute},
		token{1, "r1", 2, 1, 1, schema.PhaseRecompute}, token{1, "r1", 3, 5, 1, schema.PhaseRecompute}))
	if got := k.positions(); !slices.Equal(got, []int32{2, 3}) {
		t.Errorf("scored positions %v, want 2 and 3", got)
	}
	if rows := k.alerts(); len(rows) != 2 || rows[1].Coverage != 1 || rows[1].TokensSeen != 2 {
		t.Errorf("alerts %+v", rows)
	}
}

func TestAnUnknownPromptNeverMakesCoverageTooHigh(t *testing.T) {
	d := draft()
	d.Manifest.Binding.Phase, d.Manifest.Binding.Adapter = PhaseDecode, Any
	k := newDesk(t, ModeAlert, d)
	e := newEngine(t, testEpoch)
	k.feed(e.text(1, "r1", 9, 9)...)
	if rows := k.alerts(); len(rows) != 2 || rows[0].Coverage != 0.1 {
		t.Errorf("alerts %+v", rows)
	}
}

func TestNonFiniteScoresDoNotPoisonARequest(t *testing.T) {
	k := newDesk(t, ModeAlert, draft())
	e := newEngine(t, testEpoch)
	k.feed(e.open(1, "r1", 0))
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	k.feed(e.text(1, "r1", 0, nan, inf, 1, 1)...)
	rows := k.alerts()
	if len(rows) != 1 || rows[0].Score != 1 || rows[0].Coverage != 0.5 {
		t.Errorf("alerts %+v", rows)
	}
	if got := counter(t, k.r.metrics.rows.WithLabelValues("german", "nonfinite")); got != 2 {
		t.Errorf("%v rows are counted as nonfinite, want 2", got)
	}
}

func TestHostilePositionsAreCountedAndNothingElse(t *testing.T) {
	k := newDesk(t, ModeAlert, draft())
	e := newEngine(t, testEpoch)
	k.feed(e.open(1, "r1", math.MaxInt32))
	k.feed(e.text(1, "r1", -5, 9)...)
	k.feed(e.text(1, "r1", math.MaxInt32, 9)...)
	k.feed(e.text(1, "r1", math.MinInt32, 9)...)
	k.feed(e.text(1, "r1", math.MaxInt32-1, 0.1)...)
	if got := counter(t, k.r.metrics.rows.WithLabelValues("german", "invalid")); got != 3 {
		t.Errorf("%v rows are counted as invalid, want 3", got)
	}
	if got := k.positions(); !slices.Equal(got, []int32{math.MaxInt32 - 1}) {
		t.Errorf("scored positions %v", got)
	}
}

// Offline replay of what was captured must find the same bits as the live run.
func TestReplayFindsTheSameBitsAsTheLiveRun(t *testing.T) {
	const seed = 11
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, text := range []string{"ema:5", "mean:7", "max_rolling_mean:4", "topk:3,2", "cusum:0.1"} {
		d := draft()
		d.Manifest.Aggregation, _ = ParseAggregation(text)
		d.Probe.Weight = []float32{0.3, -0.7, 1.1, 0.01}
		k := newDesk(t, ModeAlert, d)
		e := newEngine(t, testEpoch)
		k.feed(e.open(1, "r1", 0))
		track := NewTrack(k.r.judges[0].bundle)
		for position := range int32(200) {
			x := random.Float32()*4 - 2
			k.feed(e.step(token{number: 1, request: "r1", position: position, score: x, phase: schema.PhaseDecode}))
			v := track.Judge(Token{Position: position, Phase: schema.PhaseDecode}, e.vec(x))
			live := k.scores[len(k.scores)-1]
			if math.Float32bits(live.Score) != math.Float32bits(v.Score) ||
				math.Float32bits(live.Raw) != math.Float32bits(v.Raw) {
				t.Fatalf("%s at %d: live %v, replay %v", text, position, live.Score, v.Score)
			}
		}
	}
}

// Two runs, whatever the message borders, reach verdicts of the same ids; another
// request of the same name, or another bundle, has others.
func TestAlertIdsAreTheSameInEveryRun(t *testing.T) {
	d := draft()
	run := func(epoch uint64, number uint64, oneMessage bool, d Draft) []string {
		k := newDesk(t, ModeAlert, d)
		e := newEngine(t, epoch)
		k.feed(e.open(number, "r1", 0))
		if oneMessage {
			k.feed(e.step(token{number: number, request: "r1", position: 0, score: 1}, token{number: number, request: "r1",
				position: 1,
				score:    4}))
		} else {
			k.feed(e.text(number, "r1", 0, 1, 4)...)
		}
		var ids []string
		for _, row := range k.alerts() {
			ids = append(ids, row.ID)
		}
		return ids
	}
	first := run(testEpoch, 1, false, d)
	if len(first) != 2 || first[0] == first[1] {
		t.Fatalf("ids are %v", first)
	}
	if again := run(testEpoch, 1, true, d); !slices.Equal(first, again) {
		t.Errorf("ids are %v, and %v in a second run", first, again)
	}
	other := draft()
	other.Manifest.Version = "2"
	for name, ids := range map[string][]string{"another epoch": run(testEpoch+1, 1, false, d),
		"another request": run(testEpoch, 2, false, d), "another bundle": run(testEpoch, 1, false, other)} {
		if ids[0] == first[0] || ids[1] == first[1] {
			t.Errorf("%s has the same ids %v", name, ids)
		}
	}
}
