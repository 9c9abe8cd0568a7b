package modelconfig

import "slices"

// family is one way of building a model: the hooks that its layers and the model
// have, in the order of a forward, by the names of the Python package.
type family struct {
	layer, model []string
	fourfold     bool                               // intermediate is four times hidden unless given
	latent       bool                               // attention keeps one vector for the keys and values of all heads
	allLogits    bool                               // logits of every token, not only of sampled ones
	encoder      bool                               // a configuration without architectures has no head
	sparse       func(k *keys) func(layer int) bool // which layers have a router
	defaults     standards
}

func (f *family) has(hook string) bool { return slices.Contains(f.layer, hook) }

var (
	llamaLayer = []string{"resid_pre", "ln1", "q", "k", "v", "z", "attn_out", "resid_mid", "ln2", "router_logits",
		"mlp_post", "mlp_out", "resid_post"}
	decoderModel = []string{"token_ids", "embed", "ln_final", "logits"}
	llama        = family{layer: llamaLayer, model: decoderModel}
	bertLayer    = without("ln1", "ln2", "router_logits")
	bert         = family{layer: bertLayer, model: []string{"token_ids", "embed", "pos_embed", "logits"}, allLogits: true,
		encoder: true}
	electra = family{layer: bertLayer, model: []string{"token_ids", "embed", "pos_embed"}, encoder: true}
	roberta = family{layer: bertLayer, model: bert.model, encoder: true}
)

// without is a layer that has not all hooks of the llama family.
func without(hooks ...string) []string {
	return slices.DeleteFunc(slices.Clone(llamaLayer), func(h string) bool { return slices.Contains(hooks, h) })
}

// families by model_type. What a layer has depends on its sizes, too: a layer
// with a router has no mlp_post, and the others have no router_logits.
var families = map[string]family{
	"llama":       llama,
	"mistral":     llama,
	"qwen2":       llama,
	"phi3":        llama,
	"granite":     llama,
	"smollm3":     llama,
	"olmo":        llama,
	"gemma":       by(llamaLayer, nil, standards{"head_dim": 256}),
	"gemma2":      by(llamaLayer, nil, standards{"head_dim": 256}),
	"qwen3":       by(llamaLayer, nil, standards{"head_dim": 128}),
	"gemma3":      gemma3,
	"gemma3_text": gemma3,
	"mixtral":     by(llamaLayer, everyLayer, standards{"num_experts": 8}),
	"gpt_oss":     by(llamaLayer, everyLayer, standards{"head_dim": 64}),
	"qwen2_moe":   by(llamaLayer, sparseSteps, nil),
	"qwen3_moe":   by(llamaLayer, sparseSteps, standards{"head_dim": 128}),
	"olmo2":       by(without("ln1", "ln2"), nil, nil),
	"phi":         by(without("resid_mid", "ln2"), nil, nil),
	"cohere":      by(without("resid_mid", "ln2"), nil, nil),
	"deepseek_v2": latentFamily,
	"deepseek_v3": latentFamily,
	"gpt2": {layer: llamaLayer, fourfold: true,
		model: []string{"token_ids", "embed", "pos_embed", "ln_final", "logits"}},
	"gpt_neox":    by(without("q", "k", "v", "resid_mid"), nil, nil),
	"bert":        bert,
	"electra":     electra,
	"roberta":     roberta,
	"xlm-roberta": roberta,
	"camembert":   roberta,
}

// standards are what a model's class says where its configuration is silent.
type standards map[string]int

// by is a family of decoders.
func by(layer []string, sparse func(*keys) func(int) bool, defaults standards) family {
	return family{layer: layer, model: decoderModel, sparse: sparse, defaults: defaults}
}

var latentFamily = family{latent: true, sparse: denseFirst, model: decoderModel,
	layer: slices.Insert(without("k", "v"), 3, "kv_latent")}

var gemma3 = by(llamaLayer, nil, standards{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
	"vocab_size": 262208})

// unknownFamily has what nearly every model has.
var unknownFamily = family{layer: []string{"resid_pre", "attn_out", "mlp_out", "resid_post"}, model: decoderModel}

func everyLayer(*keys) func(int) bool { return func(int) bool { return true } }

// sparseSteps is how Qwen says which layers have experts.
func sparseSteps(k *keys) func(int) bool {
	step := k.optional(maxLayers, 1, "decoder_sparse_step")
	dense := k.list("mlp_only_layers", maxLayers)
	return func(layer int) bool { return (layer+1)%step == 0 && !slices.Contains(dense, layer) }
}

// denseFirst is how DeepSeek says which layers have experts.
func denseFirst(k *keys) func(int) bool {
	first, step := 0, k.optional(maxLayers, 1, "moe_layer_freq")
	if v := k.at["first_k_dense_replace"]; v != nil {
		first = k.whole("first_k_dense_replace", v, 0, maxLayers)
	}
	return func(layer int) bool { return layer >= first && layer%step == 0 }
}
