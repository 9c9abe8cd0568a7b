"""`sonde hooks CONFIG_JSON` must say of a configuration what the package finds in the modules of the model itself."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch  # noqa: E402

import sonde  # noqa: E402

BINARY = Path(__file__).resolve().parents[2] / "build" / "sonde"

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
GROUPED = {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 8,
          "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1, "pad_token_id": 0}
MODELS = {
    "LlamaForCausalLM": GROUPED,
    "LlamaModel": GROUPED,
    "MistralForCausalLM": {**GROUPED, "head_dim": 10},
    "Qwen2ForCausalLM": GROUPED,
    "Qwen3ForCausalLM": {**GROUPED, "head_dim": 12},
    "Qwen3MoeForCausalLM": {**GROUPED, "head_dim": 8, "num_experts": 6, "mlp_only_layers": [1],
                            "moe_intermediate_size": 16},
    "MixtralForCausalLM": {**GROUPED, "num_local_experts": 5},
    "GemmaForCausalLM": {**GROUPED, "head_dim": 8},
    "Gemma2ForCausalLM": {**GROUPED, "head_dim": 8},
    "Gemma3ForCausalLM": {**GROUPED, "head_dim": 8},
    "GPT2LMHeadModel": GPT2,
    "GPT2Model": {**GPT2, "n_inner": 50},
    "GPTNeoXForCausalLM": SMALL,
    "PhiForCausalLM": {**SMALL, "pad_token_id": 0},
    "Phi3ForCausalLM": GROUPED,
    "Olmo2ForCausalLM": GROUPED,
    "CohereForCausalLM": GROUPED,
    "BertModel": SMALL,
    "BertForMaskedLM": SMALL,
    "RobertaForMaskedLM": SMALL,
    "ElectraModel": {**SMALL, "embedding_size": 24},
    "DeepseekV2ForCausalLM": {**SMALL, **LATENT, "first_k_dense_replace": 1, "q_lora_rank": None},
    "DeepseekV3ForCausalLM": {**SMALL, **LATENT, "first_k_dense_replace": 2, "q_lora_rank": 12},
    "GptOssForCausalLM": {**GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("name", MODELS)
def test_the_command_says_what_the_modules_say(name: str, tmp_path: Path) -> None:
    """Every hook, its shape, its type and whether only sampled tokens have it."""
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**MODELS[name])).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    out = subprocess.run([BINARY, "hooks", file, "--json"], check=True, capture_output=True)
    said = {
        h["name"]: (tuple(h["shape"]), h["dtype"], h["bytes_per_token"], h["sampled"])
        for h in json.loads(out.stdout)["hooks"]
    }
    found = {h.name: (h.shape, h.dtype, h.bytes_per_token, h.sampled) for h in sonde.hooks(model)}
    assert said == found
