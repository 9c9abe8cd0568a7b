package llama

import (
	"sonde/engine/model"
	"sonde/ring2"
)

// Hooks of no layer, by their index in model.Info.
const (
	hookTokenIDs = iota
	hookEmbed
	hookResidFinal
	hookFinalLN
	hookLogits
	modelHooks // how many
)

// Hooks of a layer, by their index after those of the layers before.
const (
	hookResidPre = iota
	hookLN1
	hookQ
	hookK
	hookV
	hookZ
	hookAttnOut
	hookResidMid
	hookLN2
	hookMLPPost
	hookMLPOut
	hookResidPost
	layerHooks // how many
)

func layerHook(layer, hook int) int { return modelHooks + layer*layerHooks + hook }

// hooks describes what can be captured, all of it as it is computed, in float32.
// q, k and v are the projections, before the rotary positions; z is what the
// heads have gathered, before the output projection; attn_out and mlp_out are
// the branches before they are added; mlp_post is silu(gate) * up.
func (c *config) hooks() []model.Hook {
	wide := []uint32{uint32(c.Hidden)}
	heads := []uint32{uint32(c.Heads), uint32(c.HeadDim)}
	kvHeads := []uint32{uint32(c.KVHeads), uint32(c.HeadDim)}
	out := make([]model.Hook, modelHooks, modelHooks+c.Layers*layerHooks)
	out[hookTokenIDs] = model.Hook{Name: "token_ids", Layer: -1, DType: ring2.I32}
	out[hookEmbed] = model.Hook{Name: "embed", Layer: -1, DType: ring2.F32, Shape: wide}
	out[hookResidFinal] = model.Hook{Name: "resid_final", Layer: -1, DType: ring2.F32, Shape: wide}
	out[hookFinalLN] = model.Hook{Name: "final_ln", Layer: -1, DType: ring2.F32, Shape: wide}
	out[hookLogits] = model.Hook{Name: "final_logits", Layer: -1, DType: ring2.F32, Shape: []uint32{uint32(c.Vocab)},
		Select: ring2.SelectSampled}
	for layer := range c.Layers {
		for _, h := range [layerHooks]struct {
			name  string
			shape []uint32
		}{
			hookResidPre: {"resid_pre", wide}, hookLN1: {"ln1", wide}, hookQ: {"q", heads}, hookK: {"k", kvHeads},
			hookV: {"v", kvHeads}, hookZ: {"z", heads}, hookAttnOut: {"attn_out", wide}, hookResidMid: {"resid_mid", wide},
			hookLN2: {"ln2", wide}, hookMLPPost: {"mlp_post", []uint32{uint32(c.Intermediate)}},
			hookMLPOut: {"mlp_out", wide}, hookResidPost: {"resid_post", wide},
		} {
			out = append(out, model.Hook{Name: h.name, Layer: layer, DType: ring2.F32, Shape: h.shape})
		}
	}
	return out
}
