"""A small random Llama as a GGUF file, and what NumPy computes of one sequence with its weights, in 64 bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

LAYERS, WIDTH, INNER, HEADS, KV_HEADS, SIZE = 3, 64, 96, 4, 2, 16
EPSILON, BASE = 1e-5, 10000.0


def weights(vocabulary: int, layers: int = LAYERS, seed: int = 5) -> dict[str, np.ndarray]:
    """Draw them: names are GGUF's, a matrix is [out, in]."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.15).astype(np.float32)

    out = {"token_embd.weight": draw(vocabulary, WIDTH), "output.weight": draw(vocabulary, WIDTH),
           "output_norm.weight": 1 + draw(WIDTH)}  # fmt: skip
    for i in range(layers):
        out |= {
            f"blk.{i}.attn_norm.weight": 1 + draw(WIDTH), f"blk.{i}.ffn_norm.weight": 1 + draw(WIDTH),
            f"blk.{i}.attn_q.weight": draw(HEADS * SIZE, WIDTH), f"blk.{i}.attn_k.weight": draw(KV_HEADS * SIZE, WIDTH),
            f"blk.{i}.attn_v.weight": draw(KV_HEADS * SIZE, WIDTH),
            f"blk.{i}.attn_output.weight": draw(WIDTH, HEADS * SIZE),
            f"blk.{i}.ffn_gate.weight": draw(INNER, WIDTH), f"blk.{i}.ffn_up.weight": draw(INNER, WIDTH),
            f"blk.{i}.ffn_down.weight": draw(WIDTH, INNER),
        }  # fmt: skip
    return out


def write(path: Path, vocabulary: int, layers: int = LAYERS) -> Path:
    """Write the model without a tokenizer; give its path."""
    import gguf

    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(512)
    w.add_embedding_length(WIDTH)
    w.add_block_count(layers)
    w.add_feed_forward_length(INNER)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_rope_dimension_count(SIZE)
    w.add_rope_freq_base(BASE)
    w.add_layer_norm_rms_eps(EPSILON)
    w.add_vocab_size(vocabulary)
    w.add_tokenizer_model("no_vocab")
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    for name, x in weights(vocabulary, layers).items():
        w.add_tensor(name, x)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


class Alone:
    """Computes sequences one by one."""

    def __init__(self, vocabulary: int) -> None:
        """Draw the weights of `write` again."""
        self.w = {name: x.astype(np.float64) for name, x in weights(vocabulary).items()}

    def __call__(self, tokens: list[int]) -> Mapping[tuple[str, int], np.ndarray]:
        """Give [tokens, elements] of each hook."""
        out: dict[tuple[str, int], np.ndarray] = {}
        x = self.w["token_embd.weight"][tokens]
        for i in range(LAYERS):
            z = self._attention(i, _norm(x, self.w[f"blk.{i}.attn_norm.weight"]))
            out["z", i] = z
            out["attn_out", i] = z @ self.w[f"blk.{i}.attn_output.weight"].T
            x = x + out["attn_out", i]
            out["resid_mid", i] = x
            y = _norm(x, self.w[f"blk.{i}.ffn_norm.weight"])
            gate, up = y @ self.w[f"blk.{i}.ffn_gate.weight"].T, y @ self.w[f"blk.{i}.ffn_up.weight"].T
            out["mlp_out", i] = (gate / (1 + np.exp(-gate)) * up) @ self.w[f"blk.{i}.ffn_down.weight"].T
            x = x + out["mlp_out", i]
            out["resid_post", i] = x
        return out

    def _attention(self, i: int, x: np.ndarray) -> np.ndarray:
        n = len(x)
        q, k, v = ((x @ self.w[f"blk.{i}.attn_{name}.weight"].T).reshape(n, -1, SIZE) for name in "qkv")
        q, k = _turn(q), _turn(k)
        k, v = (np.repeat(y, HEADS // KV_HEADS, axis=1) for y in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(SIZE)
        scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
        share = np.exp(scores - scores.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        return np.einsum("hij,jhd->ihd", share, v).reshape(n, HEADS * SIZE)


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * weight


def _turn(x: np.ndarray) -> np.ndarray:
    """Rotate neighbouring pairs by their position, as llama.cpp does for Llama."""
    angle = np.arange(len(x))[:, None] * BASE ** (-np.arange(0, SIZE, 2) / SIZE)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)
