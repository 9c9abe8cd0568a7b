package training

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"sonde/consumers/detector"
	"sonde/lakehouse"
)

func TestSeparableRequestsAreToldApart(t *testing.T) {
	w := newWorld(1, 4)
	r := train(t, w.lake(40, 80, 24), nil)
	if r.Accuracy < 0.999 || r.AUROC != 1 || r.Stop.Measured.Detected != r.Stop.Measured.Positives {
		t.Errorf("accuracy %v, AUROC %v, stop %+v", r.Accuracy, r.AUROC, r.Stop)
	}
	if r.Fit != (Counts{30, 60, 90 * 24}) || r.HeldOut != (Counts{10, 20, 30 * 24}) {
		t.Errorf("fitted to %+v, held out %+v", r.Fit, r.HeldOut)
	}
	if r.Stop.MedianTokens < 1 || r.Stop.MedianTokens > 4 {
		t.Errorf("detected after %d tokens", r.Stop.MedianTokens)
	}
	m := r.Bundle.Manifest
	want := detector.Binding{ModelWeights: "sha256:abc", Quantisation: "none", Adapter: "none", Hook: "resid_post",
		Layer: 2,
		DType: "f32", Width: testWidth, Phase: "decode"}
	if m.Binding != want || m.Training.LakeVersion != 42 || m.Training.Stream != "stream" ||
		m.Training.Positive != "language=de" {
		t.Errorf("manifest %+v, training %+v", m, m.Training)
	}
	if share := m.Limits.MaxStopRate; math.Abs(share-2.0/3) > 1e-3 {
		t.Errorf("the breaker opens at %v, want twice the share of German requests", share)
	}
}

// Normal classes at a known distance: the probe must come close to the best that is
// possible, and no figure may claim more.
func TestAccuracyIsWhatTheDistanceOfTheClassesAllows(t *testing.T) {
	for _, shift := range []float64{0.5, 1, 2} {
		w := newWorld(2, shift)
		r := train(t, w.lake(60, 60, 60), nil)
		best := 0.5 * math.Erfc(-shift/math.Sqrt2)
		if math.Abs(r.Accuracy-best) > 0.025 {
			t.Errorf("shift %v: accuracy %v, the best possible is %v", shift, r.Accuracy, best)
		}
		if r.Baseline != 0.5 {
			t.Errorf("baseline %v of two equal classes", r.Baseline)
		}
	}
}

// Labels that mean nothing: nothing is found, and the alarms on requests that were
// never seen keep to the stated rate and bound all the same.
func TestTheFalseAlarmRateHoldsOnRequestsNeverSeen(t *testing.T) {
	for _, shift := range []float64{0, 1} {
		w := newWorld(3, shift)
		r := train(t, w.lake(200, 1200, 12), func(o *Options) { o.HoldOut = 0.5 })
		if shift == 0 && (math.Abs(r.AUROC-0.5) > 0.1 || math.Abs(r.Accuracy-0.5) > 0.1) {
			t.Errorf("without any difference the AUROC is %v and the accuracy %v", r.AUROC, r.Accuracy)
		}
		if bound := r.Stop.Measured.UpperBound95; bound > 0.05 || bound < 0.045 {
			t.Errorf("the bound of the threshold is %v, want just below 0.05", bound)
		}
		alarms := map[string]int{}
		const fresh = 3000
		for range fresh {
			track := detector.NewTrack(r.Bundle)
			for position := range int32(12) {
				v := track.Judge(detector.Token{Position: testPrompt + position, PromptTokens: testPrompt}, w.row(false))
				for _, l := range v.Crossed {
					alarms[l.Name]++
				}
			}
		}
		stop, warn := float64(alarms[detector.LevelStop])/fresh, float64(alarms[detector.LevelWarn])/fresh
		// Where the classes leave a gap, the rate may be far lower.
		if stop > 0.05 || shift == 0 && stop < 0.02 {
			t.Errorf("shift %v: %v of the fresh requests alarm, bound %v", shift, stop, r.Stop.Measured.UpperBound95)
		}
		if warn > 0.25 || shift == 0 && warn < 0.15 {
			t.Errorf("shift %v: %v of the fresh requests warn, bound %v", shift, warn, r.Warn.Measured.UpperBound95)
		}
	}
}

// What the report says of the held-out requests is what a live detector does with
// their rows.
func TestTheReportIsWhatTheRuntimeDoes(t *testing.T) {
	w := newWorld(4, 0.6)
	lake := w.lake(40, 120, 20)
	o := options(t)
	r, err := Run(context.Background(), lake, o)
	if err != nil {
		t.Fatal(err)
	}
	s, err := chooseRequests(context.Background(), lake, o)
	if err != nil {
		t.Fatal(err)
	}
	tracks, crossed := map[uint64]*detector.Track{}, map[bool]int{}
	for _, v := range lake.vectors {
		q := s.samples[sampleKey{v.Epoch, v.Number}].request
		if !q.heldOut {
			continue
		}
		if tracks[v.Number] == nil {
			tracks[v.Number] = detector.NewTrack(r.Bundle)
		}
		verdict := tracks[v.Number].Judge(detector.Token{Position: v.Position, Phase: v.Phase, PromptTokens: testPrompt},
			v.Raw)
		for _, l := range verdict.Crossed {
			if l.Name == detector.LevelStop {
				crossed[q.positive]++
			}
		}
	}
	if crossed[true] != r.Stop.Measured.Detected || crossed[false] != r.Stop.Measured.FalseAlarms {
		t.Errorf("live %v, report %+v", crossed, r.Stop.Measured)
	}
}

func TestTrainingIsDeterministic(t *testing.T) {
	lake := newWorld(5, 1).lake(20, 20, 30)
	first := train(t, lake, nil)
	old := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(old)
	if again := train(t, lake, nil); again.Bundle.Digest != first.Bundle.Digest {
		t.Errorf("digests %s and %s", first.Bundle.Digest, again.Bundle.Digest)
	}
}

// A preempted request is in the dataset twice, position by position: it must not
// weigh twice.
func TestRecomputedRowsDoNotCountTwice(t *testing.T) {
	lake := newWorld(6, 1).lake(20, 20, 30)
	first := train(t, lake, nil)
	for _, v := range slices.Clone(lake.vectors[:300]) {
		v.Pass, v.Phase = 1, 2
		lake.vectors = append(lake.vectors, v)
	}
	if again := train(t, lake, nil); again.Bundle.Digest != first.Bundle.Digest {
		t.Error("recomputed rows changed the bundle")
	}
}

func TestSamplesOfARequestStayTogether(t *testing.T) {
	w := newWorld(7, 1)
	lake := &fakeLake{}
	for i := range 120 {
		w.add(lake, uint64(i+1), fmt.Sprint("request-", i/3), i/3%2 == 0, 8) // three samples each
	}
	s, err := chooseRequests(context.Background(), lake, options(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.requests) != 40 || len(s.samples) != 120 {
		t.Errorf("%d requests of %d samples, want 40 of 120", len(s.requests), len(s.samples))
	}
	r := train(t, lake, nil)
	if got := r.Stop.Measured.CleanRequests + r.Stop.Measured.Positives; got != 10 {
		t.Errorf("figures rest on %d requests, want 10", got)
	}
}

func TestPhasesSeeTheirTokensOnly(t *testing.T) {
	lake := newWorld(8, 3).lake(20, 20, 16)
	for phase, want := range map[string]int{detector.PhaseDecode: 16, detector.PhasePrefill: testPrompt,
		detector.PhaseAll: 20} {
		r := train(t, lake, func(o *Options) { o.Phase = phase })
		if r.Fit.Rows != want*30 || r.HeldOut.Rows != want*10 {
			t.Errorf("phase %s: %d and %d rows", phase, r.Fit.Rows, r.HeldOut.Rows)
		}
		if phase == detector.PhasePrefill && r.AUROC > 0.95 {
			t.Errorf("prompts of one distribution are told apart: AUROC %v", r.AUROC)
		}
	}
}

func TestTheReportIsReadable(t *testing.T) {
	r := train(t, newWorld(9, 0).lake(20, 20, 8), func(o *Options) { o.FalseAlarm = 0.01 })
	var out strings.Builder
	if err := r.Report(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"language=de against every other request: 30 requests and 240 tokens of lake version 42",
		"measured 0 of 5 clean requests (at most 45.07 % with 95 % confidence)", "aiming at false alarms in 1 %",
		"5 clean requests cannot show a rate of 1 %; 299 without a false alarm would", "hardly tells the classes apart",
		"fitted to 15 positive and 15 clean ones", "self-test  8 rows scored as expected", "resid_post layer 2, 12 x f32"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("report has no %q:\n%s", want, out.String())
		}
	}
}

func TestDatasetsThatCannotBeLearntFromAreRefusedInOneSentence(t *testing.T) {
	base := func() *fakeLake { return newWorld(10, 2).lake(20, 20, 8) }
	for name, c := range map[string]struct {
		lake   func(f *fakeLake)
		change func(o *Options)
		want   string
	}{
		"empty": {func(f *fakeLake) { *f = fakeLake{} }, nil, "0 requests language=de"},
		"too few positive": {func(f *fakeLake) {
			for i := range f.requests[:14] {
				f.requests[i].Labels = nil
			}
		}, nil, "6 requests language=de, of which 2 would be held out; at least 5"},
		"too few negative": {func(f *fakeLake) {}, func(o *Options) { o.Negative = &Label{"language", "fr"} },
			"0 requests language=fr"},
		"no rows": {func(f *fakeLake) {}, func(o *Options) { o.Layer = 7 }, "no row of resid_post layer 7"},
		"rows of one class": {func(f *fakeLake) {
			f.vectors = slices.DeleteFunc(f.vectors, func(v lakehouse.Vector) bool { return v.Number > 20 })
		}, nil, "are of one class"},
		"two models": {func(f *fakeLake) { f.vectors[len(f.vectors)-1].WeightsDigest = "other" }, nil, "two models"},
		"two widths": {func(f *fakeLake) { f.vectors[len(f.vectors)-1].Shape = []int{3} }, nil, "two models"},
		"token ids":  {func(f *fakeLake) { each(f, func(v *lakehouse.Vector) { v.DType = "i32" }) }, nil, "are i32"},
		"ragged": {func(f *fakeLake) { each(f, func(v *lakehouse.Vector) { v.Ragged = true }) }, nil,
			"differ in length"},
		"sharded": {func(f *fakeLake) { each(f, func(v *lakehouse.Vector) { v.ShardCount = 4 }) }, nil,
			"split over ranks"},
		"adapters":    {func(f *fakeLake) { f.requests[3].Adapter = "lora" }, nil, "2 adapters"},
		"both labels": {func(f *fakeLake) { f.requests[0].Request = f.requests[39].Request }, nil, "both labels"},
		"rows of few held-out requests": {func(f *fakeLake) {
			s, err := chooseRequests(context.Background(), f, options(t))
			if err != nil {
				t.Fatal(err)
			}
			f.vectors = slices.DeleteFunc(f.vectors, func(v lakehouse.Vector) bool {
				q := s.samples[sampleKey{v.Epoch, v.Number}].request
				return q.heldOut && q.positive
			})
		}, nil, "only 0 positive"},
		"name":       {func(f *fakeLake) {}, func(o *Options) { o.Name = "No!" }, `name "No!"`},
		"phase":      {func(f *fakeLake) {}, func(o *Options) { o.Phase = "" }, `phase ""`},
		"holdout":    {func(f *fakeLake) {}, func(o *Options) { o.HoldOut = 1 }, "holdout 1"},
		"rate":       {func(f *fakeLake) {}, func(o *Options) { o.FalseAlarm = math.NaN() }, "false-alarm rate NaN"},
		"same label": {func(f *fakeLake) {}, func(o *Options) { o.Negative = &o.Positive }, "both have language=de"},
		"taken":      {func(f *fakeLake) {}, func(o *Options) { o.Out = "." }, "not empty"},
	} {
		t.Run(name, func(t *testing.T) {
			f, o := base(), options(t)
			c.lake(f)
			if c.change != nil {
				c.change(&o)
			}
			_, err := Run(context.Background(), f, o)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("want one line with %q, got %v", c.want, err)
			}
		})
	}
}

func each(f *fakeLake, change func(v *lakehouse.Vector)) {
	for i := range f.vectors {
		change(&f.vectors[i])
	}
}

func TestAnEndedContextEndsTheTraining(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	o := options(t)
	o.Progress = func(stage string, _ int) {
		if stage == "fitting" {
			cancel()
		}
	}
	if _, err := Run(ctx, newWorld(11, 0.2).lake(20, 20, 20), o); err == nil || ctx.Err() == nil {
		t.Errorf("want the error of the context, got %v", err)
	}
}

func TestLabelsAreReadAsTheyAreWritten(t *testing.T) {
	for _, text := range []string{"a=b", "a=", "a=b=c"} {
		if l, err := ParseLabel(text); err != nil || l.String() != text {
			t.Errorf("%q is %q: %v", text, l, err)
		}
	}
	for _, text := range []string{"", "a", "=b"} {
		if l, err := ParseLabel(text); err == nil {
			t.Errorf("%q is %q", text, l)
		}
	}
}
