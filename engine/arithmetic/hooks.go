package arithmetic

import (
	"slices"

	"sonde/engine/model"
	"sonde/ring2"
)

// Sizes of the model.
const (
	DModel = 16
	Vocab  = 512
	EOS    = 0
	// patternMax is the longest row of the ragged hook, in units.
	patternMax = 48
)

// layerHooks are those that each layer has. Between them they use every element
// type that the ring knows.
var layerHooks = []model.Hook{
	{Name: "resid_pre", DType: ring2.F32, Shape: []uint32{DModel}},
	{Name: "ln1", DType: ring2.F16, Shape: []uint32{DModel}},
	{Name: "q", DType: ring2.F16, Shape: []uint32{2, 8}},
	{Name: "k", DType: ring2.BF16, Shape: []uint32{1, 8}},
	{Name: "v", DType: ring2.F8E4M3, Shape: []uint32{1, 8}},
	{Name: "pattern", DType: ring2.F16, Shape: []uint32{2}, Ragged: true},
	{Name: "z", DType: ring2.I8, Shape: []uint32{2, 8}},
	{Name: "attn_out", DType: ring2.I32, Shape: []uint32{DModel}},
	{Name: "resid_mid", DType: ring2.F16, Shape: []uint32{DModel}},
	{Name: "ln2", DType: ring2.F8E5M2, Shape: []uint32{DModel}},
	{Name: "mlp_post", DType: ring2.U8, Shape: []uint32{3, 11}},
	{Name: "mlp_out", DType: ring2.I64, Shape: []uint32{5}},
	{Name: "resid_post", DType: ring2.BF16, Shape: []uint32{DModel}},
}

// modelHooks belong to no layer.
var modelHooks = []model.Hook{
	{Name: tokenIDs, Layer: -1, DType: ring2.I32},
	{Name: "embed", Layer: -1, DType: ring2.BF16, Shape: []uint32{DModel}},
	{Name: "resid_final", Layer: -1, DType: ring2.F32, Shape: []uint32{DModel}},
	{Name: "final_ln", Layer: -1, DType: ring2.U16, Shape: []uint32{DModel}},
	{Name: "final_logits", Layer: -1, DType: ring2.F16, Shape: []uint32{Vocab}, Select: ring2.SelectSampled},
}

const tokenIDs = "token_ids"

// HookOf describes a hook, as the model's Info does; ok is false when there is
// none of that name.
func HookOf(name string, layer int) (h model.Hook, ok bool) {
	list := layerHooks
	if layer < 0 {
		list = modelHooks
	}
	i := slices.IndexFunc(list, func(h model.Hook) bool { return h.Name == name })
	if i < 0 {
		return model.Hook{}, false
	}
	h = list[i]
	h.Layer = layer
	return h, true
}

func allHooks(layers int) []model.Hook {
	out := slices.Clone(modelHooks)
	for layer := range layers {
		for _, h := range layerHooks {
			h.Layer = layer
			out = append(out, h)
		}
	}
	return out
}

// units is the number of units in a row: 1 but for the ragged hook, whose rows
// grow with the context as attention patterns do.
func units(h *model.Hook, position int) int {
	if h.Ragged {
		return min(position+1, patternMax)
	}
	return 1
}
