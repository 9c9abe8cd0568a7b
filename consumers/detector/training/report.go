package training

import (
	"fmt"
	"io"
)

// weakAUROC is where a detector hardly knows more than a coin.
const weakAUROC = 0.75

// Report writes what is known of a new bundle, for a reader who decides whether to
// let it stop requests.
func (r *Result) Report(w io.Writer) error {
	if err := r.Bundle.Describe(w); err != nil {
		return err
	}
	thinned := ""
	if r.Stride > 1 {
		thinned = fmt.Sprintf(", every %d. token of each", r.Stride)
	}
	lines := []string{fmt.Sprintf("requests   fitted to %d positive and %d clean ones%s, in %d iterations; held out %d "+
		"and %d",
		r.Fit.Positive, r.Fit.Clean, thinned, r.Iterations, r.HeldOut.Positive, r.HeldOut.Clean)}
	if r.Stop.MedianTokens > 0 {
		lines = append(lines, fmt.Sprintf("latency    stop comes after %d judged tokens, in the median of the found requests",
			r.Stop.MedianTokens))
	}
	if r.AUROC < weakAUROC {
		lines = append(lines, "note       this detector hardly tells the classes apart: try another layer or hook, or more "+
			"requests")
	}
	if n := r.Stop.Measured.CleanRequests; n < r.Stop.Shown {
		lines = append(lines, fmt.Sprintf("note       %d clean requests cannot show a rate of %.3g %%; %d without a false "+
			"alarm "+
			"would", n, 100*r.Stop.Target, r.Stop.Shown))
	}
	lines = append(lines, "written to "+r.Bundle.Dir)
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}
