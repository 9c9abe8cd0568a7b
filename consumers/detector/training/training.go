// Package training makes a detector of captured rows and labels of requests: it
// fits a linear probe, picks thresholds at a stated false-alarm rate per request, and
// writes a bundle. It is deterministic: the same dataset gives the same bytes.
//
// Requests are split into two parts, never tokens: the tokens of one request know
// too much of each other. One part is fitted to. The other is judged with the very
// code that judges live requests, and gives every figure that the report states.
package training

import (
	"context"
	"fmt"
	"math"
	"strings"

	"sonde/consumers/detector"
	"sonde/lakehouse"
)

// Lake is what training reads of a dataset. *lakehouse.Lake is one.
type Lake interface {
	Version() uint64
	Requests(ctx context.Context, q lakehouse.Query, each func(*lakehouse.Request) error) error
	Vectors(ctx context.Context, q lakehouse.Query, each func(*lakehouse.Vector) error) error
}

// Label is a label of requests.
type Label struct{ Key, Value string }

// ParseLabel reads key=value.
func ParseLabel(text string) (Label, error) {
	key, value, ok := strings.Cut(text, "=")
	if !ok || key == "" {
		return Label{}, fmt.Errorf("label %q is not written key=value", text)
	}
	return Label{key, value}, nil
}

// String is "key=value".
func (l Label) String() string { return l.Key + "=" + l.Value }

// Options say what to learn. All fields but Negative and Progress are needed.
type Options struct {
	Stream      string // incarnation of the stream that the dataset was filled from, for the record
	Hook        string // TransformerLens name
	Layer       int    // -1: none
	Phase       string // tokens to judge: all | prefill | decode
	Positive    Label  // requests that the detector is to find
	Negative    *Label // requests that it is not to find; nil: all others
	Name        string // of the detector
	Version     string
	Description string
	Aggregation detector.Aggregation
	HoldOut     float64 // share of the requests that is not fitted to
	FalseAlarm  float64 // share of the clean requests that level stop may alert on
	Out         string  // folder of the bundle; it must not exist

	// Progress, when set, is told what is done: rows read, or iterations.
	Progress func(stage string, done int)
}

// Least requests of each class, so that a split and a figure make sense.
const (
	leastFit     = 5
	leastHeldOut = 3
)

// l2 weighs the squared weights against the mean loss of a token, with features of
// deviation 1. It keeps separable classes from growing weights without end.
const l2 = 1e-3

// warnFactor is how many times the false alarms of stop the milder level warn may
// raise; maxWarnRate bounds them.
const (
	warnFactor  = 5
	maxWarnRate = 0.25
)

// Where the thresholds stand in a gap between the classes, as a share of its width.
const (
	warnInGap = 0.25
	stopInGap = 0.5
)

// Result is a new bundle with what is known about it.
type Result struct {
	Bundle     *detector.Bundle
	Fit        Counts
	HeldOut    Counts
	Stride     int // every so many tokens of a request were fitted to; 1: all
	Iterations int
	Stop       Operating
	Warn       Operating
	Accuracy   float64 // share of the held-out tokens on the right side of an even chance
	Baseline   float64 // of always answering the more frequent class
	AUROC      float64 // by request: chance that a positive one scores above a clean one
}

// Counts of one part of the requests.
type Counts struct {
	Positive, Clean int // requests
	Rows            int // tokens
}

// Run learns a detector and writes its bundle.
func Run(ctx context.Context, lake Lake, o Options) (*Result, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	set, err := chooseRequests(ctx, lake, o)
	if err != nil {
		return nil, err
	}
	binding, rows, err := collect(ctx, lake, o, set)
	if err != nil {
		return nil, err
	}
	fitted, iterations, err := fit(ctx, rows, o.Progress)
	if err != nil {
		return nil, err
	}
	fitted.DType = binding.DType
	judged, err := judgeHeldOut(ctx, lake, o, set, binding, fitted)
	if err != nil {
		return nil, err
	}
	r := &Result{Fit: set.fitted(), HeldOut: Counts{Rows: judged.rows}, Stride: rows.stride, Iterations: iterations}
	r.Fit.Rows = rows.n
	r.measure(judged, o.Aggregation, o.FalseAlarm)
	r.Bundle, err = detector.Write(o.Out, detector.Draft{Manifest: r.manifest(o, lake, binding), Probe: fitted,
		Rows: judged.testRows()})
	return r, err
}

// Check reports what is wrong with the options.
func (o *Options) Check() error {
	problem := detector.NameProblem(o.Name)
	switch {
	case problem != "":
	case detector.PhaseProblem(o.Phase) != "":
		problem = detector.PhaseProblem(o.Phase)
	case !(o.HoldOut > 0 && o.HoldOut < 1):
		problem = fmt.Sprintf("holdout %v; want a share above 0 and below 1", o.HoldOut)
	case !(o.FalseAlarm > 0 && o.FalseAlarm < 1):
		problem = fmt.Sprintf("false-alarm rate %v; want a share above 0 and below 1", o.FalseAlarm)
	case o.Negative != nil && *o.Negative == o.Positive:
		problem = fmt.Sprintf("positive and negative requests both have %s", o.Positive)
	}
	if problem != "" {
		return fmt.Errorf("train a detector: %s", problem)
	}
	return detector.Vacant(o.Out)
}

// measure fills in what the held-out requests say.
func (r *Result) measure(j *judged, aggregation detector.Aggregation, falseAlarm float64) {
	var clean, positive []float64
	for _, q := range j.requests {
		if q.positive {
			positive = append(positive, float64(q.most))
		} else {
			clean = append(clean, float64(q.most))
		}
	}
	r.HeldOut.Positive, r.HeldOut.Clean = len(positive), len(clean)
	r.AUROC = auroc(positive, clean)
	r.Accuracy, r.Baseline = j.accuracy()
	stop, warn := stopInGap, warnInGap
	if aggregation.Kind == "cusum" { // grows with the length of a request, so that a gap has no width of its own
		stop, warn = 0, 0
	}
	r.Stop = operate(j.requests, clean, positive, falseAlarm, stop)
	r.Warn = operate(j.requests, clean, positive, math.Min(warnFactor*falseAlarm, math.Max(maxWarnRate, falseAlarm)), warn)
}

// manifest describes the detector. The breaker opens at twice the share of positive
// requests that were seen in training.
func (r *Result) manifest(o Options, lake Lake, b detector.Binding) detector.Manifest {
	negative := "every other request"
	if o.Negative != nil {
		negative = o.Negative.String()
	}
	all := r.Fit.Positive + r.Fit.Clean + r.HeldOut.Positive + r.HeldOut.Clean
	share := float64(r.Fit.Positive+r.HeldOut.Positive) / float64(all)
	return detector.Manifest{Name: o.Name, Version: o.Version, Description: o.Description, Binding: b,
		Feature: detector.Feature{Kind: "linear"}, Aggregation: o.Aggregation,
		Levels: []detector.Level{r.Warn.level(detector.LevelWarn), r.Stop.level(detector.LevelStop)},
		Limits: detector.Limits{MaxStopRate: rounded(math.Min(1, math.Max(0.1, 2*share)))},
		Training: &detector.Training{LakeVersion: lake.Version(), Stream: o.Stream, Positive: o.Positive.String(),
			Negative: negative, FitRequests: r.Fit.Positive + r.Fit.Clean, FitRows: r.Fit.Rows,
			HeldOutRequests: r.HeldOut.Positive + r.HeldOut.Clean, HeldOutRows: r.HeldOut.Rows,
			TokenAccuracy: rounded(r.Accuracy), BaselineAccuracy: rounded(r.Baseline), RequestAUROC: rounded(r.AUROC),
			MedianTokens: r.Stop.MedianTokens, L2: l2}}
}

// rounded keeps a manifest readable: no figure in it is known to more digits.
func rounded(x float64) float64 { return math.Round(x*1e4) / 1e4 }
