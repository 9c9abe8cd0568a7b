package detector

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/goccy/go-yaml"
)

// Values of a manifest that match everything.
const Any = "any"

// None is a manifest's way to write the empty quantisation or adapter.
const None = "none"

// Levels, from the mildest. Their thresholds rise in this order.
const (
	LevelWarn     = "warn"
	LevelEscalate = "escalate"
	LevelStop     = "stop"
)

// Phases that a binding may name. A token of the prompt is prefill, one that the
// model wrote is decode, whatever step computed it.
const (
	PhaseAll     = "all"
	PhasePrefill = "prefill"
	PhaseDecode  = "decode"
)

// Manifest is detector.yaml: what a detector reads, how it judges, and where its
// numbers come from.
type Manifest struct {
	Format      int         `yaml:"format"` // 1
	Name        string      `yaml:"name"`   // lower case letters, digits and dashes: it is a metric label
	Version     string      `yaml:"version"`
	Description string      `yaml:"description"`
	Binding     Binding     `yaml:"binding"`
	Feature     Feature     `yaml:"feature"`
	Aggregation Aggregation `yaml:"aggregation"`
	Levels      []Level     `yaml:"levels"`
	Limits      Limits      `yaml:"limits"`
	Training    *Training   `yaml:"training,omitempty"`
	Files       Files       `yaml:"files"`
}

// Binding says which rows the detector was made for. Rows of anything else are
// refused, never scored.
type Binding struct {
	ModelWeights string `yaml:"model_weights"` // digest, or any
	Quantisation string `yaml:"quantisation"`  // name, none, or any
	Adapter      string `yaml:"adapter"`       // name, none, or any
	Hook         string `yaml:"hook"`          // TransformerLens name
	Layer        int    `yaml:"layer"`         // -1: none
	DType        string `yaml:"dtype"`         // f32 | f16 | bf16
	Width        int    `yaml:"width"`         // elements of a row
	Phase        string `yaml:"phase"`         // all | prefill | decode
}

// Feature says how a row becomes a number. Linear: dot(row, weight) + bias, a
// logit.
type Feature struct {
	Kind string `yaml:"kind"` // linear
}

// Level raises an alert when the aggregated score rises above Threshold, once per
// request and sample.
type Level struct {
	Name           string   `yaml:"name"` // warn | escalate | stop
	Threshold      float32  `yaml:"threshold"`
	FalseAlarmRate float64  `yaml:"false_alarm_rate"` // aimed at: share of the clean requests
	Measured       Measured `yaml:"measured"`
}

// Measured says what the false-alarm rate of a level rests on. The threshold is at or
// above the clean requests' score of the rank that FalseAlarmRate allows, so
// UpperBound95, the upper end of the one-sided 95 % Clopper-Pearson interval for that
// rank, holds although they also chose it.
type Measured struct {
	CleanRequests int     `yaml:"clean_requests"` // held out from the fit
	FalseAlarms   int     `yaml:"false_alarms"`   // of them
	UpperBound95  float64 `yaml:"upper_bound_95"`
	Positives     int     `yaml:"positive_requests"` // held out from the fit
	Detected      int     `yaml:"detected"`          // of them
}

// Limits keep a detector that went wrong from stopping everything.
type Limits struct {
	MaxStopRate float64 `yaml:"max_stop_rate"` // share of the last requests; above, nothing is stopped any more
}

// Training says what the weights were fitted to.
type Training struct {
	LakeVersion      uint64  `yaml:"lake_version"`
	Stream           string  `yaml:"stream"` // incarnation that the lake was filled from
	Positive         string  `yaml:"positive"`
	Negative         string  `yaml:"negative"`
	FitRequests      int     `yaml:"fit_requests"`
	FitRows          int     `yaml:"fit_rows"`
	HeldOutRequests  int     `yaml:"held_out_requests"`
	HeldOutRows      int     `yaml:"held_out_rows"`
	TokenAccuracy    float64 `yaml:"token_accuracy"`    // held out
	BaselineAccuracy float64 `yaml:"baseline_accuracy"` // of always answering the more frequent class
	RequestAUROC     float64 `yaml:"request_auroc"`     // held out
	MedianTokens     int     `yaml:"median_tokens_to_detection"`
	L2               float64 `yaml:"l2"`
}

// Files are the SHA-256 digests, in hex, of the files beside the manifest.
type Files struct {
	Weights     string `yaml:"weights_sha256"`
	TestVectors string `yaml:"test_vectors_sha256"`
}

const (
	manifestFormat   = 1
	maxManifestBytes = 256 << 10
	maxNameBytes     = 64
	maxWidth         = 1 << 20 // elements of a row
)

// parseManifest reads and checks detector.yaml.
func parseManifest(text []byte) (Manifest, error) {
	var m Manifest
	err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(&m)
	if errors.Is(err, io.EOF) {
		return m, errors.New("it is empty; write the bundle anew with sonde detect train")
	}
	if err != nil {
		var e yaml.Error
		if errors.As(err, &e) && e.GetToken() != nil {
			return m, fmt.Errorf("line %d: %s; compare it with a bundle that sonde detect train wrote",
				e.GetToken().Position.Line, firstLine(e.GetMessage()))
		}
		return m, errors.New(firstLine(err.Error()))
	}
	if m.Format != manifestFormat {
		return m, fmt.Errorf("format is %d and this program reads format %d", m.Format, manifestFormat)
	}
	for _, problem := range []string{m.nameProblem(), m.Binding.problem(), m.featureProblem(),
		prefixed("aggregation: ", m.Aggregation.problem()), m.levelProblem(), m.Limits.problem()} {
		if problem != "" {
			return m, errors.New(problem)
		}
	}
	return m, nil
}

func prefixed(prefix, problem string) string {
	if problem == "" {
		return ""
	}
	return prefix + problem
}

// NameProblem says why a text cannot be the name of a detector, or "".
func NameProblem(name string) string {
	if name == "" || len(name) > maxNameBytes || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Sprintf("name %q: want 1 to %d lower case letters, digits and dashes", clip(name), maxNameBytes)
	}
	return ""
}

func (m *Manifest) nameProblem() string {
	if m.Version == "" || len(m.Version) > maxNameBytes {
		return fmt.Sprintf("version %q: want 1 to %d letters", clip(m.Version), maxNameBytes)
	}
	return NameProblem(m.Name)
}

func (m *Manifest) featureProblem() string {
	if m.Feature.Kind != "linear" {
		return fmt.Sprintf("feature: kind %q is unknown; want linear", clip(m.Feature.Kind))
	}
	return ""
}

func (b Binding) problem() string {
	switch {
	case b.ModelWeights == "":
		return "binding: model_weights is empty; write the digest of the model's weights, or any"
	case b.Quantisation == "":
		return "binding: quantisation is empty; write its name, none, or any"
	case b.Adapter == "":
		return "binding: adapter is empty; write its name, none, or any"
	case b.Hook == "":
		return "binding: hook is empty; write a name like resid_post"
	case b.Layer < -1:
		return fmt.Sprintf("binding: layer %d; want -1 (none) or more", b.Layer)
	case elementBytes(b.DType) == 0:
		return fmt.Sprintf("binding: dtype %q cannot be scored; want f32, f16 or bf16", clip(b.DType))
	case b.Width < 1 || b.Width > maxWidth:
		return fmt.Sprintf("binding: width %d; want 1 to %d elements", b.Width, maxWidth)
	}
	return PhaseProblem(b.Phase)
}

// PhaseProblem says why a text is no phase, or "".
func PhaseProblem(phase string) string {
	if phase != PhaseAll && phase != PhasePrefill && phase != PhaseDecode {
		return fmt.Sprintf("phase %q; want all, prefill or decode", clip(phase))
	}
	return ""
}

func (m *Manifest) levelProblem() string {
	if len(m.Levels) == 0 {
		return "levels: there is none; write at least one of warn, escalate, stop"
	}
	rank := map[string]int{LevelWarn: 1, LevelEscalate: 2, LevelStop: 3}
	last := 0
	below := math.Inf(-1)
	for _, l := range m.Levels {
		if rank[l.Name] == 0 {
			return fmt.Sprintf("levels: %q is unknown; want warn, escalate or stop", clip(l.Name))
		}
		if rank[l.Name] <= last {
			return fmt.Sprintf("levels: %s is in the wrong place; write warn, escalate, stop, each at most once", l.Name)
		}
		last = rank[l.Name]
		threshold := float64(l.Threshold)
		if math.IsNaN(threshold) || math.IsInf(threshold, 0) || threshold < below {
			return fmt.Sprintf("levels: threshold %v of %s; want a number that is not below the level before it",
				l.Threshold, l.Name)
		}
		below = threshold
	}
	return ""
}

func (l Limits) problem() string {
	if !(l.MaxStopRate > 0 && l.MaxStopRate <= 1) {
		return fmt.Sprintf("limits: max_stop_rate %v; want above 0 and up to 1", l.MaxStopRate)
	}
	return ""
}

func elementBytes(dtype string) int {
	switch dtype {
	case "f32":
		return 4
	case "f16", "bf16":
		return 2
	}
	return 0
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// clip keeps a text from outside from filling a log.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
