package detector

import (
	"math"

	"sonde/schema"
)

// Token is what a track needs to know of a row beside its bytes.
type Token struct {
	Position     int32 // absolute, from 0
	Phase        uint8 // of the step that computed it
	PromptTokens int32 // of the request; -1: unknown
}

// Track judges one sample of one request, token by token. It is the same code
// online and offline: the same rows in the same order give the same bits.
type Track struct {
	bundle *Bundle
	state  aggregator
	next   int32 // every position below was judged or passed over
	seen   int32
	fired  [3]bool // by index of the manifest's levels
}

// Result says what became of a row.
type Result string

// Results of Track.Judge. They are values of a metric's label.
const (
	Scored     Result = "scored"
	Repeated   Result = "repeated"    // this position was judged before, or a later one was
	OtherPhase Result = "other_phase" // the binding leaves this token out
	NonFinite  Result = "nonfinite"   // its score is NaN or infinite: counts as not seen
	Invalid    Result = "invalid"     // no position that a token can have
)

// Verdict is the outcome of one row. Everything but Result and Skipped is set only
// when the row was scored.
type Verdict struct {
	Result   Result
	Raw      float32 // score of the token alone, a logit
	Score    float32 // aggregated up to this token
	Seen     int32   // tokens that were scored so far
	Coverage float32 // Seen as a share of the tokens so far that the binding covers
	Skipped  int32   // tokens between the last judged one and this one, that never came
	Crossed  []Level // levels that this token crossed for the first time, mildest first
}

// NewTrack starts a sample.
func NewTrack(b *Bundle) *Track { return &Track{bundle: b, state: b.Manifest.Aggregation.start()} }

// Judge scores a row unless its position was judged before: a recomputed token (a
// higher pass) and a repeated message change nothing. row has the width and dtype of
// the binding.
func (t *Track) Judge(at Token, row []byte) Verdict {
	if r := t.admits(at); r != Scored {
		return Verdict{Result: r}
	}
	return t.take(at, t.bundle.Probe.Score(row))
}

// Replay is Judge for a row whose score alone is known: that of the bundle's probe.
func (t *Track) Replay(at Token, raw float32) Verdict {
	if r := t.admits(at); r != Scored {
		return Verdict{Result: r}
	}
	return t.take(at, raw)
}

// admits is Scored for a token that is to be scored, or else what it is.
func (t *Track) admits(at Token) Result {
	_, bound := covers(t.bundle.Manifest.Binding.Phase, at)
	switch {
	case at.Position < 0 || at.Position == math.MaxInt32:
		return Invalid
	case !bound:
		return OtherPhase
	case at.Position < t.next:
		return Repeated
	}
	return Scored
}

func (t *Track) take(at Token, raw float32) Verdict {
	first, _ := covers(t.bundle.Manifest.Binding.Phase, at)
	v := Verdict{Result: Scored, Raw: raw, Skipped: at.Position - max(t.next, first)}
	t.next = at.Position + 1
	if x := float64(raw); math.IsNaN(x) || math.IsInf(x, 0) {
		v.Result = NonFinite
		return v
	}
	t.seen++
	v.Seen, v.Coverage = t.seen, float32(t.seen)/float32(at.Position-first+1)
	v.Score = float32(t.state.add(float64(raw)))
	for i, l := range t.bundle.Manifest.Levels {
		if v.Score > l.Threshold && !t.fired[i] {
			t.fired[i] = true
			v.Crossed = append(v.Crossed, l)
		}
	}
	return v
}

// Covers reports whether a phase of a binding covers a token.
func Covers(phase string, at Token) bool {
	_, bound := covers(phase, at)
	return bound
}

// covers reports whether a phase of a binding covers a token, and the first position
// that it covers in this request. The step's own word counts only while the length of the
// prompt is unknown: then coverage is counted from 0, which never makes it too high.
func covers(phase string, at Token) (first int32, bound bool) {
	if phase == PhaseAll {
		return 0, true
	}
	decode := at.Phase == schema.PhaseDecode
	if at.PromptTokens >= 0 {
		decode = at.Position >= at.PromptTokens
	} else if at.Phase == schema.PhaseRecompute {
		return 0, false
	}
	if phase == PhaseDecode {
		return max(at.PromptTokens, 0), decode
	}
	return 0, !decode
}

// mute keeps a level from firing again: somebody announced it before.
func (t *Track) mute(level string) {
	for i, l := range t.bundle.Manifest.Levels {
		if l.Name == level {
			t.fired[i] = true
		}
	}
}
