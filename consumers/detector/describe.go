package detector

import (
	"fmt"
	"io"
)

// Describe writes what a bundle judges, how, and what its thresholds rest on.
func (b *Bundle) Describe(w io.Writer) error {
	m := &b.Manifest
	lines := []string{
		fmt.Sprintf("%s %s  %s", m.Name, m.Version, m.Description),
		fmt.Sprintf("digest     %s", b.Digest),
		fmt.Sprintf("bound to   weights %s, quantisation %s, adapter %s", m.Binding.ModelWeights, m.Binding.Quantisation,
			m.Binding.Adapter),
		fmt.Sprintf("reads      %s layer %d, %d x %s, %s tokens", m.Binding.Hook, m.Binding.Layer, m.Binding.Width,
			m.Binding.DType, m.Binding.Phase),
		fmt.Sprintf("scores     %s probe, a logit; aggregated by %s", m.Feature.Kind, m.Aggregation)}
	for _, l := range m.Levels {
		lines = append(lines, l.line())
	}
	lines = append(lines, fmt.Sprintf("breaker    stops nothing any more when more than %.4g %% of the last %d "+
		"requests were "+
		"to be stopped", 100*m.Limits.MaxStopRate, breakerWindow))
	if t := m.Training; t != nil {
		lines = append(lines,
			fmt.Sprintf("trained    %s against %s: %d requests and %d tokens of lake version %d", t.Positive, t.Negative,
				t.FitRequests, t.FitRows, t.LakeVersion),
			fmt.Sprintf("held out   %d requests and %d tokens: %.4g %% of the tokens right (more frequent class alone: "+
				"%.4g %%), AUROC by request %.4f", t.HeldOutRequests, t.HeldOutRows, 100*t.TokenAccuracy,
				100*t.BaselineAccuracy, t.RequestAUROC))
	}
	lines = append(lines, b.SelfTest())
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

// SelfTest says how the self-test went, in one line.
func (b *Bundle) SelfTest() string {
	return fmt.Sprintf("self-test  %d rows scored as expected on this machine; largest deviation %.2g %% of what "+
		"rounding may do",
		b.Tested, 100*b.Worst)
}

func (l Level) line() string {
	text := fmt.Sprintf("%-10s above %v, aiming at false alarms in %.4g %% of the requests", l.Name, l.Threshold,
		100*l.FalseAlarmRate)
	if n := l.Measured; n.CleanRequests > 0 {
		text += fmt.Sprintf(": measured %d of %d clean requests (at most %.4g %% with 95 %% confidence), %d of %d "+
			"positive ones "+
			"found", n.FalseAlarms, n.CleanRequests, 100*n.UpperBound95, n.Detected, n.Positives)
	}
	return text
}
