"""A small random Llama on disk, and what Hugging Face computes of one sequence with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import transformers

LAYERS = 3
WIDTH = 64


def write(folder: Path, vocabulary: int, seed: int = 5) -> Path:
    """Write the model; give its folder."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=LAYERS, head_dim=32,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.15, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder


class Alone:
    """Computes sequences one by one with Hugging Face."""

    def __init__(self, folder: Path) -> None:
        """Load the model and hook what the suite compares."""
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._seen: dict[tuple[str, int], torch.Tensor] = {}
        for i, layer in enumerate(self.model.model.layers):
            self._on(layer, ("resid_post", i))
            self._on(layer.self_attn, ("attn_out", i))
            self._on(layer.mlp, ("mlp_out", i))
            layer.post_attention_layernorm.register_forward_pre_hook(self._given(("resid_mid", i)))
        self._on(self.model.model.norm, ("ln_final", -1))
        self._on(self.model.lm_head, ("logits", -1))

    def __call__(self, tokens: list[int]) -> Mapping[tuple[str, int], np.ndarray]:
        """Give [tokens, elements] of each hook."""
        with torch.no_grad():
            self.model(torch.tensor([tokens]), use_cache=False)
        return {hook: x[0].float().numpy() for hook, x in self._seen.items()}

    def _on(self, module: torch.nn.Module, hook: tuple[str, int]) -> None:
        def hear(_module: object, _args: object, out: object) -> None:
            self._seen[hook] = (out[0] if isinstance(out, tuple) else out).detach().clone()

        module.register_forward_hook(hear)

    def _given(self, hook: tuple[str, int]) -> object:
        def hear(_module: object, args: tuple[torch.Tensor, ...]) -> None:
            self._seen[hook] = args[0].detach().clone()

        return hear
