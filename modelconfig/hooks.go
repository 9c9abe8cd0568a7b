package modelconfig

import (
	"fmt"
	"strconv"
	"strings"
)

// Hook is one hook of a model.
type Hook struct {
	Name    string `json:"name"`  // as sonde.attach of the Python package takes it
	Hook    string `json:"hook"`  // without the layer
	Layer   int    `json:"layer"` // -1: none
	Shape   []int  `json:"shape"` // of the row of a token; empty: one element
	DType   string `json:"dtype"`
	Bytes   int64  `json:"bytes_per_token"`
	Sampled bool   `json:"sampled"` // only tokens that are sampled from have a row
}

// Hooks lists the hooks of the model: those of no layer, then layer by layer.
func (m *Model) Hooks() []Hook {
	var out []Hook
	for _, hook := range m.family.model {
		if h, ok := m.hook(hook, -1); ok {
			out = append(out, h)
		}
	}
	for layer := range m.Layers {
		for _, hook := range m.family.layer {
			if h, ok := m.hook(hook, layer); ok {
				out = append(out, h)
			}
		}
	}
	return out
}

// hook describes a hook, if the layer has it.
func (m *Model) hook(hook string, layer int) (Hook, bool) {
	h := Hook{Name: hook, Hook: hook, Layer: layer, DType: m.DType, Shape: m.shape(hook)}
	sparse := m.sparse != nil && m.sparse(layer)
	switch {
	case hook == "token_ids":
		h.DType = "i32"
	case hook == "logits":
		h.Sampled = !m.family.allLogits
		if m.Vocab == 0 || !m.hasHead() {
			return h, false
		}
	case hook == "router_logits" && !sparse, hook == "mlp_post" && (sparse || m.intermediate == 0):
		return h, false
	}
	if layer >= 0 {
		h.Name += "." + strconv.Itoa(layer)
	}
	h.Bytes = elementBytes[h.DType]
	for _, n := range h.Shape {
		h.Bytes *= int64(n)
	}
	return h, true
}

var elementBytes = map[string]int64{"f32": 4, "f16": 2, "bf16": 2, "i32": 4}

// hasHead says whether the class of the model gives logits.
func (m *Model) hasHead() bool {
	if m.Architecture == "" {
		return !m.family.encoder
	}
	for _, part := range [...]string{"LM", "ForConditionalGeneration", "ForPreTraining"} {
		if strings.Contains(m.Architecture, part) {
			return true
		}
	}
	return false
}

// shape is that of the row of a token.
func (m *Model) shape(hook string) []int {
	switch hook {
	case "token_ids":
		return []int{}
	case "embed", "pos_embed":
		return []int{m.embedding}
	case "logits":
		return []int{m.Vocab}
	case "q":
		return []int{m.Heads, m.queryDim}
	case "k", "v":
		return []int{m.KVHeads, m.HeadDim}
	case "z":
		return []int{m.Heads, m.valueDim}
	case "kv_latent":
		return []int{m.latentDim}
	case "mlp_post":
		return []int{m.intermediate}
	case "router_logits":
		return []int{m.experts}
	}
	return []int{m.Hidden}
}

// Total is what hooks cost together, in bytes.
type Total struct {
	PerToken   int64 `json:"bytes_per_token"`         // of hooks that every token has
	PerSampled int64 `json:"bytes_per_sampled_token"` // more, of a token that is sampled from
	PerLayer   int64 `json:"bytes_per_layer"`         // and token, of the layer with the most
}

// Sum adds hooks up.
func Sum(hooks []Hook) Total {
	var t Total
	layers := map[int]int64{}
	for _, h := range hooks {
		if h.Sampled {
			t.PerSampled += h.Bytes
			continue
		}
		t.PerToken += h.Bytes
		if h.Layer >= 0 {
			layers[h.Layer] += h.Bytes
			t.PerLayer = max(t.PerLayer, layers[h.Layer])
		}
	}
	return t
}

// Rate is bytes per second at so many tokens per second, exact.
func Rate(perToken int64, tokensPerSecond int) (int64, error) {
	rate := perToken * int64(tokensPerSecond)
	if tokensPerSecond != 0 && rate/int64(tokensPerSecond) != perToken {
		return 0, fmt.Errorf("%d bytes a token and %d tokens a second are more than can be counted", perToken,
			tokensPerSecond)
	}
	return rate, nil
}
