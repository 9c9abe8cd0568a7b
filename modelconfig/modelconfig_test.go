package modelconfig

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func load(t *testing.T, name string) *Model {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func find(t *testing.T, m *Model, name string) Hook {
	t.Helper()
	for _, h := range m.Hooks() {
		if h.Name == name {
			return h
		}
	}
	t.Fatalf("%s has no hook %s", m.Architecture, name)
	return Hook{}
}

// The sizes are computed by hand from the model cards.
func TestShapesAndBytesOfKnownModels(t *testing.T) {
	for _, c := range []struct {
		model, hook string
		shape       []int
		bytes       int64
	}{
		{"llama3_8b", "k.31", []int{8, 128}, 2048},
		{"llama3_8b", "logits", []int{128256}, 256512},
		{"llama3_8b", "token_ids", []int{}, 4},
		{"mistral_nemo", "z.0", []int{32, 128}, 8192}, // narrower than its hidden size of 5120
		{"qwen2_05b", "v.23", []int{2, 64}, 256},
		{"qwen3_8b", "resid_post.35", []int{4096}, 8192},
		{"qwen3_30b_a3b", "router_logits.47", []int{128}, 256},
		{"qwen3_30b_a3b", "q.0", []int{32, 128}, 8192},
		{"mixtral_8x7b", "router_logits.0", []int{8}, 16},
		{"gemma_2b", "k.17", []int{1, 256}, 512},
		{"gemma2_9b", "z.41", []int{16, 256}, 16384},
		{"gemma3_4b", "v.33", []int{4, 256}, 2048}, // by the class: the configuration leaves it out
		{"gemma3_4b", "logits", []int{262208}, 524416},
		{"gpt2", "mlp_post.11", []int{3072}, 12288},
		{"gpt2", "pos_embed", []int{768}, 3072},
		{"pythia_70m", "z.5", []int{8, 64}, 1024},
		{"phi_2", "k.0", []int{32, 80}, 5120},
		{"phi3_mini", "q.31", []int{32, 96}, 6144},
		{"minilm_l6", "resid_post.5", []int{384}, 1536},
		{"roberta_base", "logits", []int{50265}, 201060},
		{"deepseek_v2_lite", "kv_latent.26", []int{576}, 1152},
		{"deepseek_v3", "q.60", []int{128, 192}, 49152},
		{"deepseek_v3", "z.0", []int{128, 128}, 32768},
		{"deepseek_v3", "mlp_post.2", []int{18432}, 36864},
		{"deepseek_v3", "router_logits.3", []int{256}, 512},
		{"gpt_oss_20b", "z.23", []int{64, 64}, 8192},
		{"gpt_oss_20b", "router_logits.0", []int{32}, 64},
		{"unknown", "resid_post.23", []int{768}, 3072},
	} {
		h := find(t, load(t, c.model), c.hook)
		if !slices.Equal(h.Shape, c.shape) || h.Bytes != c.bytes {
			t.Errorf("%s %s is %v with %d bytes; want %v with %d", c.model, c.hook, h.Shape, h.Bytes, c.shape, c.bytes)
		}
	}
}

func TestWhatAModelDoesNotHaveIsNotOffered(t *testing.T) {
	for model, absent := range map[string][]string{
		"phi_2":         {"resid_mid.0", "ln2.0"},        // attention and MLP run side by side
		"pythia_70m":    {"q.0", "resid_mid.0"},          // one fused projection that interleaves heads
		"minilm_l6":     {"logits", "ln_final", "ln1.0"}, // an encoder without a head
		"qwen3_30b_a3b": {"mlp_post.0"},
		"deepseek_v3":   {"k.0", "v.0", "mlp_post.3", "router_logits.2"},
		"llama3_8b":     {"router_logits.0", "resid_post.32"},
	} {
		for _, h := range load(t, model).Hooks() {
			if slices.Contains(absent, h.Name) {
				t.Errorf("%s offers %s", model, h.Name)
			}
		}
	}
}

func TestSumsOfLlama3(t *testing.T) {
	// Of a layer: nine vectors of 4096 (resid_pre, ln1, q, z, attn_out, resid_mid, ln2, mlp_out, resid_post), k and v
	// of 1024 and the intermediate 14336, two bytes each. Of the model: embed, ln_final and an id.
	const layer = 2 * (9*4096 + 2*1024 + 14336)
	got := Sum(load(t, "llama3_8b").Hooks())
	if want := (Total{PerToken: 32*layer + 2*8192 + 4, PerSampled: 2 * 128256, PerLayer: layer}); got != want {
		t.Errorf("sum is %+v, want %+v", got, want)
	}
	chosen, err := Choose(load(t, "llama3_8b").Hooks(), []string{"resid_post", "blocks.3.hook_resid_post", "logits"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := Sum(chosen), (Total{32 * 8192, 2 * 128256, 8192}); got != want {
		t.Errorf("sum of the residuals and the logits is %+v, want %+v", got, want)
	}
	if _, err := Rate(1<<40, 1<<40); err == nil {
		t.Error("a rate above what can be counted is no error")
	}
}

func TestPatternsChooseWhatTheyName(t *testing.T) {
	hooks := load(t, "gpt2").Hooks()
	for pattern, want := range map[string]int{"resid_post": 12, "resid_post.3": 1, "resid_*": 36, "*": len(hooks),
		"blocks.*.attn.hook_z": 12, "blocks.11.hook_resid_mid": 1, "ln_final.hook_normalized": 1, "input_ids": 1,
		"resid_post.1?": 2} {
		got, err := Choose(hooks, []string{pattern})
		if err != nil || len(got) != want {
			t.Errorf("%s chooses %d hooks, want %d (%v)", pattern, len(got), want, err)
		}
	}
	for pattern, want := range map[string]string{"resid_pots": "nearest: resid_post", "resid_post.12": "resid_post",
		"": "nearest", "[": "no pattern", strings.Repeat("x", 1<<20): "nearest"} {
		if _, err := Choose(hooks, []string{pattern}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q gives %v, want %q", pattern, err, want)
		}
	}
}

func TestWrongConfigurationsAreRefusedWithASentence(t *testing.T) {
	const good = `"model_type":"llama","hidden_size":64,"num_hidden_layers":2,"num_attention_heads":4,"intermediate_size":9`
	if _, err := Read([]byte("{" + good + "}")); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		``:                                  "no JSON object",
		`[]`:                                "no JSON object",
		`null`:                              "num_hidden_layers",
		`{`:                                 "no JSON object",
		`{}{}`:                              "something follows",
		`{"model_type":"llama"}`:            "num_hidden_layers or n_layer or n_layers or num_layers is missing",
		`{"model_type":7}`:                  "model_type is 7; want a text",
		`{` + good + `,"hidden_size":1e99}`: "hidden_size is 1e99; want a whole number from 1 to 16777216",
		`{` + good + `,"hidden_size":-4}`:   "from 1 to",
		`{` + good + `,"hidden_size":64.5}`: "from 1 to",
		`{` + good + `,"hidden_size":"64"}`: `hidden_size is "64"`,
		`{` + good + `,"num_hidden_layers":4097}`:                                                        "from 1 to 4096",
		`{` + good + `,"num_hidden_layers":99999999999999999999999}`:                                     "from 1 to 4096",
		`{` + good + `,"num_attention_heads":0}`:                                                         "num_attention_heads is 0",
		`{` + good + `,"num_attention_heads":3}`:                                                         "no multiple of its 3 heads",
		`{` + good + `,"torch_dtype":"int4"}`:                                                            "want float32, float16 or bfloat16",
		`{` + good + `,"dtype":16}`:                                                                      "dtype is 16",
		`{` + good + `,"vocab_size":[1]}`:                                                                "vocab_size is [1]",
		`{` + good + `,"intermediate_size":null}`:                                                        "intermediate_size is missing",
		`{` + strings.Replace(good, "llama", "qwen3_moe", 1) + `,"num_experts":4,"mlp_only_layers":"x"}`: "want a list",
		`{` + strings.Replace(good, "llama", "deepseek_v3", 1) + `}`:                                     "qk_nope_head_dim is missing",
		`{"model_type":"new","hidden_size":8}`:                                                           `model_type "new": num_hidden_layers`,
	} {
		m, err := Read([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives %v, %v; want %q", text, m, err, want)
		}
	}
	if _, err := Read(make([]byte, MaxFileBytes+1)); err == nil {
		t.Error("a file without end is read")
	}
}

func TestAnUnknownModelIsAGuessThatSaysSo(t *testing.T) {
	m := load(t, "unknown")
	if m.Known || !strings.Contains(m.Note(), `model_type "mamba" is not known`) || !strings.Contains(m.Note(), "llama") {
		t.Errorf("%+v: %s", m, m.Note())
	}
	if got := m.Note(); load(t, "gpt2").Note() != "" {
		t.Errorf("a known model has a note: %s", got)
	}
}

func FuzzRead(f *testing.F) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Read(b)
		if err != nil {
			return
		}
		for _, h := range m.Hooks() {
			if h.Bytes <= 0 {
				t.Fatalf("%s has %d bytes", h.Name, h.Bytes)
			}
		}
	})
}
