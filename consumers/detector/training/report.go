package training

import (
	"fmt"
	"io"

	"sonde/consumers/detector"
)

// weakAUROC is where a detector hardly knows more than a coin.
const weakAUROC = 0.75

// Report writes what is known of a new bundle, for a reader who decides whether to
// let it stop requests.
func (r *Result) Report(w io.Writer) error {
	m := &r.Bundle.Manifest
	t := m.Training
	thinned := ""
	if r.Stride > 1 {
		thinned = fmt.Sprintf(", every %d. token", r.Stride)
	}
	lines := []string{
		fmt.Sprintf("%s %s: %s against %s", m.Name, m.Version, t.Positive, t.Negative),
		fmt.Sprintf("reads      %s layer %d, %d x %s, %s tokens, aggregated by %s", m.Binding.Hook, m.Binding.Layer,
			m.Binding.Width, m.Binding.DType, m.Binding.Phase, m.Aggregation),
		fmt.Sprintf("fitted to  %d positive and %d clean requests, %d tokens%s, in %d iterations", r.Fit.Positive,
			r.Fit.Clean, r.Fit.Rows, thinned, r.Iterations),
		fmt.Sprintf("held out   %d positive and %d clean requests, %d tokens", r.HeldOut.Positive, r.HeldOut.Clean,
			r.HeldOut.Rows),
		fmt.Sprintf("tokens     %s right; the more frequent class alone: %s", percent(r.Accuracy), percent(r.Baseline)),
		fmt.Sprintf("requests   AUROC %.4f", r.AUROC),
		levelLine(detector.LevelWarn, r.Warn), levelLine(detector.LevelStop, r.Stop)}
	if r.AUROC < weakAUROC {
		lines = append(lines, "note       this detector hardly tells the classes apart: try another layer, hook or more "+
			"requests")
	}
	if r.Stop.Measured.CleanRequests < r.Stop.Shown {
		lines = append(lines, fmt.Sprintf("note       %d clean requests cannot show a rate of %s; %d without a false "+
			"alarm would",
			r.Stop.Measured.CleanRequests, percent(r.Stop.Target), r.Stop.Shown))
	}
	lines = append(lines, fmt.Sprintf("bundle     %s, digest %.12s, self-test of %d rows passed", r.Bundle.Dir,
		r.Bundle.Digest, r.Bundle.Tested))
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

func levelLine(name string, o Operating) string {
	text := fmt.Sprintf("%-10s above %.4g: %d of %d clean requests alarm, at most %s with 95 %% confidence (aim %s); "+
		"finds %d of %d",
		name, o.Threshold, o.Measured.FalseAlarms, o.Measured.CleanRequests, percent(o.Measured.UpperBound95),
		percent(o.Target), o.Measured.Detected, o.Measured.Positives)
	if o.MedianTokens > 0 {
		text += fmt.Sprintf(", after %d tokens in the median", o.MedianTokens)
	}
	return text
}

func percent(share float64) string { return fmt.Sprintf("%.3g %%", 100*share) }
