package llama

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sonde/engine/model"
	"sonde/safetensors"
)

// tinyModel writes a model of random weights; change edits its files first.
func tinyModel(t *testing.T, change func(config map[string]any, tensors map[string]*safetensors.Tensor)) string {
	t.Helper()
	r := newRand(t)
	config := map[string]any{"model_type": "llama", "hidden_act": "silu", "hidden_size": 12, "intermediate_size": 10,
		"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 50,
		"max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "eos_token_id": 3}
	tensors := map[string]*safetensors.Tensor{}
	add := func(name string, shape ...int) {
		n := 1
		for _, d := range shape {
			n *= d
		}
		data := make([]byte, 2*n)
		for i := range n {
			bits := math.Float32bits(float32(r.NormFloat64() * 0.3))
			data[2*i], data[2*i+1] = byte(bits>>16), byte(bits>>24)
		}
		tensors[name] = &safetensors.Tensor{DType: "BF16", Shape: shape, Data: data}
	}
	add("model.embed_tokens.weight", 50, 12)
	add("lm_head.weight", 50, 12)
	add("model.norm.weight", 12)
	for l := range 2 {
		p := fmt.Sprintf("model.layers.%d.", l)
		add(p+"input_layernorm.weight", 12)
		add(p+"post_attention_layernorm.weight", 12)
		add(p+"self_attn.q_proj.weight", 12, 12)
		add(p+"self_attn.k_proj.weight", 4, 12)
		add(p+"self_attn.v_proj.weight", 4, 12)
		add(p+"self_attn.o_proj.weight", 12, 12)
		add(p+"mlp.gate_proj.weight", 10, 12)
		add(p+"mlp.up_proj.weight", 10, 12)
		add(p+"mlp.down_proj.weight", 12, 10)
	}
	change(config, tensors)
	var list []safetensors.Named
	for name, tensor := range tensors {
		list = append(list, safetensors.Named{Name: name, Tensor: *tensor})
	}
	var weights bytes.Buffer
	if err := safetensors.Write(&weights, list, nil); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b := range map[string][]byte{"config.json": text, "model.safetensors": weights.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestModelsThatCannotBeRunAreErrorsThatSayWhy(t *testing.T) {
	type tensors = map[string]*safetensors.Tensor
	set := func(key string, value any) func(map[string]any, tensors) {
		return func(c map[string]any, _ tensors) { c[key] = value }
	}
	for want, change := range map[string]func(map[string]any, tensors){
		`"mistral"`:               set("model_type", "mistral"),
		`"gelu"`:                  set("hidden_act", "gelu"),
		"attention_bias":          set("attention_bias", true),
		"rope_scaling":            set("rope_scaling", map[string]any{"factor": 2}),
		`"llama3"`:                set("rope_parameters", map[string]any{"rope_type": "llama3", "rope_theta": 1e4}),
		"quantised":               set("quantization_config", map[string]any{}),
		"hidden_size: it is 0":    set("hidden_size", 0),
		"intermediate_size":       set("intermediate_size", -4),
		"num_hidden_layers":       set("num_hidden_layers", 1000000),
		"want a divisor":          set("num_key_value_heads", 4),
		"even":                    set("head_dim", 3),
		"rms_norm_eps":            set("rms_norm_eps", 0),
		"rope_theta":              set("rope_theta", 0),
		"vocab_size":              set("vocab_size", 1<<30),
		"max_position_embeddings": set("max_position_embeddings", 1<<40),
		"eos_token_id: it is 50":  set("eos_token_id", 50),
		"eos_token_id of type":    set("eos_token_id", []int{1, 2}),
		"parse":                   set("hidden_size", "twelve"),
		"BF16 [50 24]":            set("hidden_size", 24),
		`"lm_head.weight"`:        func(_ map[string]any, w tensors) { delete(w, "lm_head.weight") },
		`"model.layers.1.mlp.up_proj.weight"`: func(_ map[string]any, w tensors) {
			delete(w, "model.layers.1.mlp.up_proj.weight")
		},
		"F16 [12]":   func(_ map[string]any, w tensors) { w["model.norm.weight"].DType = "F16" },
		"BF16 [6 2]": func(_ map[string]any, w tensors) { w["model.norm.weight"].Shape = []int{6, 2} },
	} {
		dir := tinyModel(t, change)
		if _, err := Load(dir, 1); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("error %v does not say %s and %s", err, want, dir)
		}
	}
	dir := tinyModel(t, set("vocab_size", 50))
	if _, err := Load(dir, 0); err == nil {
		t.Error("no thread is no error")
	}
	if err := os.Truncate(filepath.Join(dir, "model.safetensors"), 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, 1); err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("error %v of a file that is cut short", err)
	}
	if _, err := Load(t.TempDir(), 1); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("error %v of an empty folder", err)
	}
}

func TestShapesThatNoVectorRegisterFitsAreComputedToo(t *testing.T) {
	untied := tinyModel(t, func(_ map[string]any, w map[string]*safetensors.Tensor) {
		w["lm_head.weight"].Data = slices.Clone(w["model.embed_tokens.weight"].Data)
	})
	var rows []string
	weights, err := os.ReadFile(filepath.Join(untied, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	tied := tinyModel(t, func(c map[string]any, _ map[string]*safetensors.Tensor) {
		c["tie_word_embeddings"] = true
		delete(c, "eos_token_id")
	})
	if err := os.WriteFile(filepath.Join(tied, "model.safetensors"), weights, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{untied, tied} {
		loaded, err := Load(dir, 2)
		if err != nil {
			t.Fatal(err)
		}
		m := loaded.(*llama)
		if err := m.Allocate(10, 3); err != nil {
			t.Fatal(err)
		}
		logits := make([]float32, 50)
		tp := forward(t, m, []model.Range{{Tokens: []int32{1, 2, 3, 4, 49}, Blocks: []int32{9, 0}, Logits: logits}})
		if slices.ContainsFunc(tp.floats(t, "final_logits", -1), func(x float32) bool { return x != x }) {
			t.Error("logits are NaN")
		}
		rows = append(rows, tp.row(hookLogits, 0), fmt.Sprint(m.Info().EOS))
	}
	if rows[0] != rows[2] {
		t.Error("a tied head and an equal one give other logits")
	}
	if rows[1] != "3" || rows[3] != "-1" {
		t.Errorf("EOS is %s, and %s when there is none", rows[1], rows[3])
	}
}

func TestTheModelSaysWhichWeightsItRuns(t *testing.T) {
	info := load(t, 1, 1, 1).Info()
	if info.Name != "trilingual" || info.WeightsDigest != "sha256:"+
		"dce372883883ed8124b822e4e5231b8c86253c8fedf804388ab0a9740864f4ec" || info.Revision != "dce372883883" {
		t.Errorf("model %s, revision %s, weights %s", info.Name, info.Revision, info.WeightsDigest)
	}
	if info.Layers != 4 || info.DModel != 256 || info.Vocab != 4096 || info.Context != 1024 || info.EOS != 0 {
		t.Errorf("%+v", info)
	}
	names := map[string]int{}
	for _, h := range info.Hooks {
		names[fmt.Sprint(h.Name, " ", h.Layer)]++
	}
	if len(names) != 5+12*4 || names["q 3"] != 1 || names["token_ids -1"] != 1 {
		t.Errorf("hooks %v", names)
	}
}

func TestStepsThatMakeNoSenseAreErrors(t *testing.T) {
	m := load(t, 2, 66, 16)
	blocks := make([]int32, 64)
	good := model.Range{Request: "r", Tokens: []int32{1, 2}, Blocks: blocks}
	for want, change := range map[string]func(*model.Range){
		"context has 1024": func(r *model.Range) { r.Position = 1023 },
		"no tokens":        func(r *model.Range) { r.Tokens = nil },
		"negative":         func(r *model.Range) { r.Position = -1 },
		"too few":          func(r *model.Range) { r.Blocks = blocks[:1]; r.Position = 15 },
		"token 4096":       func(r *model.Range) { r.Tokens = []int32{0, 4096} },
		"token -1":         func(r *model.Range) { r.Tokens = []int32{-1} },
		"KV block 66":      func(r *model.Range) { r.Blocks = []int32{66} },
		"KV block -1":      func(r *model.Range) { r.Blocks = []int32{-1} },
		"logits of 7":      func(r *model.Range) { r.Logits = make([]float32, 7) },
	} {
		bad := good
		change(&bad)
		err := m.Forward([]model.Range{good, bad}, untapped{})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"r"`) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
	var many []model.Range
	for range 17 {
		many = append(many, model.Range{Tokens: make([]int32, 1000), Blocks: blocks})
	}
	if err := m.Forward(many, untapped{}); err == nil || !strings.Contains(err.Error(), "17000 tokens") {
		t.Errorf("error %v of too large a step", err)
	}
	if err := m.Forward(nil, untapped{}); err != nil {
		t.Errorf("an empty step: %v", err)
	}
	last := good
	last.Position = 1022 // positions 1022 and 1023: the last that there are
	if err := m.Forward([]model.Range{last}, untapped{}); err != nil {
		t.Error(err)
	}
	if err := m.Allocate(0, 16); err == nil {
		t.Error("no block is no error")
	}
	if err := m.Allocate(1<<40, 1<<40); err == nil {
		t.Error("more memory than there is is no error")
	}
	fresh, err := Load(modelDir, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := fresh.Forward([]model.Range{good}, untapped{}); err == nil || !strings.Contains(err.Error(), "allocate") {
		t.Errorf("error %v without KV blocks", err)
	}
}

func TestExpIsAccurate(t *testing.T) {
	worst := 0.0
	for x := float32(-87); x < 88; x += 0.00137 {
		want := math.Exp(float64(x))
		worst = max(worst, math.Abs(float64(exp(x))-want)/want)
	}
	if worst > math.Exp2(-22) {
		t.Errorf("relative error %v", worst)
	}
	inf := float32(math.Inf(1))
	for x, want := range map[float32]float32{0: 1, 200: inf, inf: inf, -200: 0, -inf: 0} {
		if got := exp(x); got != want {
			t.Errorf("exp(%v) is %v", x, got)
		}
	}
	if nan := exp(float32(math.NaN())); nan == nan {
		t.Errorf("exp of NaN is %v", nan)
	}
}
