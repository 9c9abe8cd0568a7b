// Package modelconfig reads a Hugging Face config.json and says which hooks
// Sonde offers of such a model, what a row of each looks like and how many bytes
// a token costs. The names are those of the Python package (hookpoint), which
// finds them in the modules of the model itself; a test holds both together.
package modelconfig

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Bounds of what a configuration may say.
const (
	MaxFileBytes = 16 << 20
	maxLayers    = 4096
	maxHeads     = 1 << 16
	maxWidth     = 1 << 24 // of a vector: hidden, intermediate, vocabulary, experts
)

// Model is what a configuration says of a model, as far as hooks need it.
type Model struct {
	Type         string // model_type
	Architecture string // first of architectures, "" when there is none
	Known        bool   // the family is known; else everything is a guess from sizes
	DType        string // of activations, as the lake names it: "bf16", "f16", "f32"
	Layers       int
	Hidden       int
	Heads        int // 0 when not known
	KVHeads      int
	HeadDim      int
	Vocab        int // 0 when the configuration has none

	family       family
	embedding    int // width of the embedding
	intermediate int
	experts      int
	sparse       func(layer int) bool // has a router; nil: none has
	queryDim     int                  // of a head: with latent attention other than valueDim
	valueDim     int
	latentDim    int // what latent attention keeps of a token; 0: it has none
	softcap      bool
}

// Read parses a config.json. Its errors say which key is wrong and what it wants.
func Read(b []byte) (*Model, error) {
	if len(b) > MaxFileBytes {
		return nil, fmt.Errorf("read configuration: it has %d bytes; at most %d", len(b), MaxFileBytes)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var top map[string]any
	if err := d.Decode(&top); err != nil {
		return nil, fmt.Errorf("read configuration: it is no JSON object: %w", err)
	}
	if d.More() {
		return nil, errors.New("read configuration: something follows the JSON object")
	}
	m := &Model{Architecture: firstText(top["architectures"])}
	k := &keys{at: textPart(top), top: top}
	m.Type = k.text("model_type")
	m.family, m.Known = families[m.Type]
	if !m.Known {
		m.family = unknownFamily
	}
	m.read(k)
	if k.err != nil {
		return nil, fmt.Errorf("read configuration of %s: %w", m.called(), k.err)
	}
	return m, nil
}

func (m *Model) called() string {
	if m.Type == "" {
		return "a model without model_type"
	}
	return fmt.Sprintf("model_type %q", m.Type)
}

// textPart is the part of a configuration that describes the layers of text, of
// a model that also sees or hears.
func textPart(top map[string]any) map[string]any {
	for _, name := range [...]string{"text_config", "llm_config", "language_config"} {
		if part, ok := top[name].(map[string]any); ok {
			return part
		}
	}
	return top
}

func firstText(v any) string {
	if list, ok := v.([]any); ok && len(list) > 0 {
		s, _ := list[0].(string)
		return s
	}
	return ""
}

// read takes the sizes that the family has.
func (m *Model) read(k *keys) {
	f := &m.family
	m.DType = k.dtype()
	m.Layers = k.number(maxLayers, 0, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
	m.Hidden = k.number(maxWidth, 0, "hidden_size", "n_embd", "d_model", "dim")
	m.Vocab = k.optional(maxWidth, f.defaults["vocab_size"], "vocab_size")
	m.embedding = k.optional(maxWidth, m.Hidden, "embedding_size")
	if !m.Known {
		return
	}
	m.Heads = k.number(maxHeads, f.defaults["num_attention_heads"], "num_attention_heads", "n_head")
	m.KVHeads = k.optional(maxHeads, cmp.Or(f.defaults["num_key_value_heads"], m.Heads), "num_key_value_heads")
	if m.HeadDim = k.optional(maxWidth, f.defaults["head_dim"], "head_dim"); m.HeadDim == 0 || f.latent {
		m.HeadDim = k.divide(m.Hidden, m.Heads)
	}
	m.queryDim, m.valueDim = m.HeadDim, m.HeadDim
	if f.latent {
		m.readLatent(k)
	}
	standard := 0
	if f.fourfold {
		standard = 4 * m.Hidden
	}
	m.intermediate = k.optional(maxWidth, standard, "intermediate_size", "n_inner")
	if m.intermediate == 0 && f.has("mlp_post") {
		m.intermediate = k.number(maxWidth, 0, "intermediate_size")
	}
	if f.sparse != nil {
		m.experts = k.number(maxWidth, f.defaults["num_experts"], "num_experts", "num_local_experts", "n_routed_experts")
		m.sparse = f.sparse(k)
	}
	m.softcap = k.has("final_logit_softcapping")
}

// readLatent takes the sizes of attention whose keys and values are kept as one
// vector for all heads.
func (m *Model) readLatent(k *keys) {
	nope, rope := k.number(maxWidth, 0, "qk_nope_head_dim"), k.number(maxWidth, 0, "qk_rope_head_dim")
	m.queryDim, m.valueDim = nope+rope, k.number(maxWidth, 0, "v_head_dim")
	m.latentDim = k.number(maxWidth, 0, "kv_lora_rank") + rope
	m.HeadDim = m.queryDim
}

// Heading says in one line what the model is.
func (m *Model) Heading() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d layers, hidden size %d", cmp.Or(m.Architecture, m.Type, "a model without a name"), m.Layers,
		m.Hidden)
	if m.Heads > 0 {
		fmt.Fprintf(&b, ", %d heads of %d", m.Heads, m.HeadDim)
		if m.KVHeads != m.Heads && m.latentDim == 0 {
			fmt.Fprintf(&b, " (%d of k and v)", m.KVHeads)
		}
	}
	if m.experts > 0 {
		fmt.Fprintf(&b, ", %d experts", m.experts)
	}
	return b.String() + ", " + m.DType
}

// Note says why the hooks are a guess, "" when they are not.
func (m *Model) Note() string {
	if m.Known {
		return ""
	}
	return fmt.Sprintf("%s is not known, so these hooks are a guess from its sizes; known are %s", m.called(),
		strings.Join(Known(), ", "))
}

// Known lists the model types whose hooks are known.
func Known() []string {
	var out []string
	for name := range families {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
