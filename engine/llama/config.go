package llama

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// maxConfigBytes bounds what is read of a config.json.
const maxConfigBytes = 1 << 20

// config is what is read of a config.json. What the file could ask for and we do
// not compute is read too, to refuse it.
type config struct {
	Type         string  `json:"model_type"`
	Activation   string  `json:"hidden_act"`
	Hidden       int     `json:"hidden_size"`
	Intermediate int     `json:"intermediate_size"`
	Layers       int     `json:"num_hidden_layers"`
	Heads        int     `json:"num_attention_heads"`
	KVHeads      int     `json:"num_key_value_heads"`
	HeadDim      int     `json:"head_dim"`
	Vocab        int     `json:"vocab_size"`
	Context      int     `json:"max_position_embeddings"`
	Epsilon      float64 `json:"rms_norm_eps"`
	Tied         bool    `json:"tie_word_embeddings"`
	EOS          *int32  `json:"eos_token_id"`

	AttentionBias bool `json:"attention_bias"`
	MLPBias       bool `json:"mlp_bias"`
	Rope          *struct {
		Theta float64 `json:"rope_theta"`
		Type  string  `json:"rope_type"`
	} `json:"rope_parameters"`
	RopeTheta    float64         `json:"rope_theta"` // in files of transformers before 5
	RopeScaling  json.RawMessage `json:"rope_scaling"`
	Quantisation json.RawMessage `json:"quantization_config"`
}

func readConfig(dir string) (*config, error) {
	path := filepath.Join(dir, "config.json")
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the model's configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > maxConfigBytes {
		return nil, fmt.Errorf("read %s: it has more than %d bytes", path, maxConfigBytes)
	}
	c := &config{}
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("parse %s: %w", path, err)
	}
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return c, nil
}

// complete fills in what a file may leave out, and checks the rest.
func (c *config) complete() error {
	if c.KVHeads == 0 {
		c.KVHeads = c.Heads
	}
	if c.HeadDim == 0 && c.Heads > 0 {
		c.HeadDim = c.Hidden / c.Heads
	}
	if c.Rope != nil {
		if c.Rope.Type != "" && c.Rope.Type != "default" {
			return fmt.Errorf("compute rotary positions of type %q: only default is supported", c.Rope.Type)
		}
		c.RopeTheta = c.Rope.Theta
	}
	if err := c.checkKind(); err != nil {
		return err
	}
	for _, n := range []struct {
		name       string
		value, max int
	}{
		{"hidden_size", c.Hidden, 1 << 15}, {"intermediate_size", c.Intermediate, 1 << 17},
		{"num_hidden_layers", c.Layers, 256}, {"num_attention_heads", c.Heads, 256},
		{"num_key_value_heads", c.KVHeads, 256}, {"head_dim", c.HeadDim, 1 << 10},
		{"vocab_size", c.Vocab, 1 << 20}, {"max_position_embeddings", c.Context, 1 << 20},
	} {
		if n.value < 1 || n.value > n.max {
			return fmt.Errorf("check %s: it is %d; want 1 to %d", n.name, n.value, n.max)
		}
	}
	switch {
	case c.Heads%c.KVHeads != 0:
		return fmt.Errorf("share %d key-value heads between %d heads: want a divisor", c.KVHeads, c.Heads)
	case c.HeadDim%2 != 0:
		return fmt.Errorf("check head_dim: it is %d; rotary positions want an even one", c.HeadDim)
	case !(c.Epsilon > 0 && c.Epsilon < 1):
		return fmt.Errorf("check rms_norm_eps: it is %v; want more than 0 and less than 1", c.Epsilon)
	case !(c.RopeTheta > 1 && c.RopeTheta < 1e12):
		return fmt.Errorf("check rope_theta: it is %v; want more than 1", c.RopeTheta)
	case c.EOS != nil && (*c.EOS < 0 || int(*c.EOS) >= c.Vocab):
		return fmt.Errorf("check eos_token_id: it is %d, outside of the vocabulary of %d", *c.EOS, c.Vocab)
	}
	return nil
}

func (c *config) checkKind() error {
	given := func(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }
	switch {
	case c.Type != "llama":
		return fmt.Errorf("run a model of type %q: only llama is supported", c.Type)
	case c.Activation != "silu":
		return fmt.Errorf("compute the activation %q: only silu is supported", c.Activation)
	case c.AttentionBias || c.MLPBias:
		return fmt.Errorf("add biases: a model with attention_bias or mlp_bias is not supported")
	case given(c.RopeScaling):
		return fmt.Errorf("scale rotary positions: rope_scaling is not supported")
	case given(c.Quantisation):
		return fmt.Errorf("read quantised weights: only bfloat16 ones are supported")
	}
	return nil
}

func (c *config) kvWidth() int { return c.KVHeads * c.HeadDim }

func (c *config) qWidth() int { return c.Heads * c.HeadDim }
