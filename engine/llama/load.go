package llama

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"sonde/dot"
	"sonde/engine/model"
	"sonde/safetensors"
)

// layer holds the weights of a layer.
type layer struct {
	ln1, ln2       []float32
	q, k, v, o     *dot.Matrix
	gate, up, down *dot.Matrix
}

// Load reads the model in a folder of Hugging Face files. Steps are computed by
// up to threads goroutines. Weights stay in bfloat16, 2 bytes each.
func Load(dir string, threads int) (model.Model, error) {
	if threads < 1 || threads > maxThreads {
		return nil, fmt.Errorf("load model: want 1 to %d threads, not %d", maxThreads, threads)
	}
	c, err := readConfig(dir)
	if err != nil {
		return nil, fmt.Errorf("load model: %w", err)
	}
	path := filepath.Join(dir, "model.safetensors")
	digest, err := digestOf(path)
	if err != nil {
		return nil, fmt.Errorf("load model: %w (weights in several files are not supported)", err)
	}
	f, err := safetensors.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load model: %w", err)
	}
	defer f.Close()
	m := &llama{config: *c, threads: threads, rotary: newRotary(c),
		scale: float32(1 / math.Sqrt(float64(c.HeadDim)))}
	if err := m.readWeights(f); err != nil {
		return nil, fmt.Errorf("load model %s: %w", path, err)
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("load model: %w", err)
	}
	m.info = model.Info{Name: filepath.Base(absolute), Revision: digest[:12], WeightsDigest: "sha256:" + digest,
		Quantisation: "bf16", Layers: c.Layers, DModel: c.Hidden, Vocab: c.Vocab, Context: c.Context, EOS: -1,
		Hooks: c.hooks()}
	if c.EOS != nil {
		m.info.EOS = *c.EOS
	}
	m.spans = make([][]byte, len(m.info.Hooks))
	return m, nil
}

// digestOf is the SHA-256 of a file, in hexadecimal.
func digestOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (m *llama) readWeights(f *safetensors.File) error {
	r := reader{file: f}
	c := &m.config
	m.embed = r.words("model.embed_tokens.weight", c.Vocab, c.Hidden)
	m.norm = r.vector("model.norm.weight", c.Hidden)
	head := m.embed
	if !c.Tied {
		head = r.words("lm_head.weight", c.Vocab, c.Hidden)
	}
	for i := range c.Layers {
		if r.err != nil {
			break
		}
		p := fmt.Sprintf("model.layers.%d.", i)
		m.layers = append(m.layers, layer{
			ln1:  r.vector(p+"input_layernorm.weight", c.Hidden),
			ln2:  r.vector(p+"post_attention_layernorm.weight", c.Hidden),
			q:    r.matrix(p+"self_attn.q_proj.weight", c.qWidth(), c.Hidden),
			k:    r.matrix(p+"self_attn.k_proj.weight", c.kvWidth(), c.Hidden),
			v:    r.matrix(p+"self_attn.v_proj.weight", c.kvWidth(), c.Hidden),
			o:    r.matrix(p+"self_attn.o_proj.weight", c.Hidden, c.qWidth()),
			gate: r.matrix(p+"mlp.gate_proj.weight", c.Intermediate, c.Hidden),
			up:   r.matrix(p+"mlp.up_proj.weight", c.Intermediate, c.Hidden),
			down: r.matrix(p+"mlp.down_proj.weight", c.Hidden, c.Intermediate),
		})
	}
	if r.err != nil {
		return r.err
	}
	m.head = dot.NewMatrix(head, c.Vocab, c.Hidden)
	return nil
}

// reader reads weights until the first error.
type reader struct {
	file *safetensors.File
	err  error
}

func (r *reader) words(name string, shape ...int) []uint16 {
	if r.err != nil {
		return nil
	}
	t, err := r.file.Tensor(name)
	if err == nil && (t.DType != "BF16" || !slices.Equal(t.Shape, shape)) {
		err = fmt.Errorf("read tensor %q: it is %s %v; config.json asks for BF16 %v", name, t.DType, t.Shape, shape)
	}
	if err != nil {
		r.err = err
		return nil
	}
	out := make([]uint16, len(t.Data)/2)
	for i := range out {
		out[i] = binary.LittleEndian.Uint16(t.Data[2*i:])
	}
	return out
}

func (r *reader) vector(name string, n int) []float32 {
	words := r.words(name, n)
	out := make([]float32, len(words))
	widen(out, words)
	return out
}

func (r *reader) matrix(name string, rows, cols int) *dot.Matrix {
	words := r.words(name, rows, cols)
	if r.err != nil {
		return nil
	}
	return dot.NewMatrix(words, rows, cols)
}

func widen(dst []float32, words []uint16) {
	for i, w := range words {
		dst[i] = math.Float32frombits(uint32(w) << 16)
	}
}
