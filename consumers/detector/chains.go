package detector

import (
	"fmt"
	"slices"
	"time"

	"sonde/schema"
)

// chain is what the runtime knows of one chain of vectors.
type chain struct {
	part      *part
	header    schema.Header // of its latest message, without spans
	watermark schema.Cursor // everything below was read
	refused   []string      // by detector: why its rows are refused, or ""
}

// chainOf finds the chain of a message and looks at what changed in its header.
func (r *Detector) chainOf(p *part, h *schema.Header, now time.Time) *chain {
	key := h.Chain()
	c, known := r.chains.get(key, now)
	if !known {
		if r.chains.len() >= maxChains {
			oldest, _, _, _ := r.chains.oldest()
			r.chains.remove(oldest)
		}
		c = &chain{part: p}
		r.chains.put(key, c, now)
	} else if c.watermark.Less(h.Prev) {
		r.metrics.stream.WithLabelValues("gap").Inc()
	}
	if !known || !sameMaker(&c.header, h) {
		c.header, c.refused = *h, make([]string, len(r.judges))
		c.header.Spans = nil
		for _, j := range r.judges {
			c.refused[j.index] = j.bundle.Manifest.Binding.refuses(h)
		}
	}
	return c
}

// sameMaker reports whether two messages of a chain hold rows of the same form, of
// the same model.
func sameMaker(a, b *schema.Header) bool {
	return a.WeightsDigest == b.WeightsDigest && a.Quantisation == b.Quantisation && a.DType == b.DType &&
		slices.Equal(a.Shape, b.Shape) && a.Ragged == b.Ragged && a.ShardCount == b.ShardCount
}

// reads reports whether rows of a hook and layer are meant for the detector.
func (b Binding) reads(h *schema.Header) bool { return h.Hook == b.Hook && h.Layer == b.Layer }

// refuses says why rows must not be scored with this binding, or "".
func (b Binding) refuses(h *schema.Header) string {
	width := 1
	for _, n := range h.Shape {
		width *= n // cannot overflow: the message was checked against the size of a row
	}
	switch {
	case b.ModelWeights != Any && b.ModelWeights != h.WeightsDigest:
		return fmt.Sprintf("model weights %q, bound to %s", clip(h.WeightsDigest), b.ModelWeights)
	case b.Quantisation != Any && b.Quantisation != orNone(h.Quantisation):
		return fmt.Sprintf("quantisation %q, bound to %s", clip(orNone(h.Quantisation)), b.Quantisation)
	case b.DType != h.DType:
		return fmt.Sprintf("dtype %s, bound to %s", clip(h.DType), b.DType)
	case h.Ragged || width != b.Width:
		return fmt.Sprintf("shape %v, bound to %d elements", h.Shape, b.Width)
	case h.ShardCount > 1:
		return fmt.Sprintf("rows split over %d ranks, bound to whole rows", h.ShardCount)
	}
	return ""
}

func orNone(text string) string {
	if text == "" {
		return None
	}
	return text
}

func adapterFits(bound, adapter string) bool { return bound == Any || bound == orNone(adapter) }

// refuse counts rows that a detector must not score and makes the reason visible.
func (r *Detector) refuse(j *judge, h *schema.Header, why string, rows int, now time.Time) {
	j.metrics.rows.WithLabelValues("unbound").Add(float64(rows))
	b := j.bundle.Manifest.Binding
	r.raise(j, problemBinding, fmt.Sprintf("detector %s refuses %s layer %d of engine %q: %s; use a bundle that was "+
		"trained on this model", j.bundle.Manifest.Name, b.Hook, b.Layer, clip(h.Engine), why), now.Add(problemTTL))
}
