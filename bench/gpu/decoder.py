"""A tight decoder of the shapes of Qwen3-8B and Llama-3.1-8B, for steps of decoding that take what weights take.

It is what serving engines make of these models: sums fused into norms, one projection for queries, keys and values,
split attention over a static cache, whose rows are named by slots. Weights are random. The residual stream is a
tensor of its own in each layer, and nothing is overwritten in place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import kernels
import torch
from torch import nn
from torch.nn import functional

#: Hooks of one layer: one residual, and six tensors.
HOOKS = {
    1: ["resid_post"],
    6: ["resid_post", "attn_out", "mlp_out", "z",
        "model.layers.*.mid_norm:output.0", "model.layers.*.self_attn.rotary"],  # fmt: skip
}


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    vocab: int
    base: float  #: of the rotary positions
    head_norms: bool  #: norms of queries and keys, as Qwen3 has


SHAPES = {
    "qwen3-8b": Shape(36, 4096, 32, 8, 128, 12288, 151936, 1e6, True),
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256, 5e5, False),
    "small": Shape(8, 256, 4, 2, 64, 512, 1024, 1e4, True),
    "tiny": Shape(2, 64, 4, 2, 16, 128, 97, 1e4, True),
}


class Cache(nn.Module):
    """Keys and values of slots, and which slots a call computes. The last slot is nobody's: padding writes there."""

    def __init__(self, shape: Shape, slots: int, room: int) -> None:
        """slots: of requests at a time. room: tokens of each."""
        super().__init__()
        self.nobody, self.room = slots, room
        half = shape.head_size // 2
        steps = torch.arange(half, dtype=torch.float32)
        angles = torch.arange(room, dtype=torch.float32)[:, None] * shape.base ** (-steps / half)
        buffers = {
            "keys": torch.zeros(shape.layers, slots + 1, room, shape.kv_heads, shape.head_size),
            "values": torch.zeros(shape.layers, slots + 1, room, shape.kv_heads, shape.head_size),
            "lengths": torch.zeros(slots + 1, dtype=torch.int32),
            "last": torch.zeros(slots + 1, dtype=torch.int64),
            "rows": torch.full((slots,), slots, dtype=torch.int32),
            "chunk": torch.zeros(1, dtype=torch.int32),
            "chunk_tokens": torch.zeros(1, dtype=torch.int64),
            "cos": angles.cos(), "sin": angles.sin(),
        }  # fmt: skip
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)


class Norm(nn.Module):
    """Adds a branch to the residual stream, and gives the stream and its norm."""

    def __init__(self, size: int) -> None:
        """size: of a row."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor, resid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add."""
        return kernels.add_norm(x, resid, self.weight)


class Rotary(nn.Module):
    """Turns queries and keys, and fills the cache."""

    def __init__(self, shape: Shape) -> None:
        """Queries and keys have norms of their own, or not."""
        super().__init__()
        size = shape.head_size if shape.head_norms else 0
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(size)), nn.Parameter(torch.ones(size))

    def forward(self, qkv: torch.Tensor, cache: Cache, rows: torch.Tensor, layer: int) -> torch.Tensor:
        """Give the queries."""
        norms = (self.q_norm, self.k_norm) if self.q_norm.numel() else None
        return kernels.rotate(qkv, norms, (cache.cos, cache.sin), rows, cache.lengths, cache.keys[layer],
                              cache.values[layer])  # fmt: skip


class Attention(nn.Module):
    """Attention over the cache."""

    def __init__(self, shape: Shape, layer: int) -> None:
        """layer: its number."""
        super().__init__()
        self._layer = layer
        width = shape.heads * shape.head_size
        self.qkv_proj = nn.Linear(shape.hidden, width + 2 * shape.kv_heads * shape.head_size, bias=False)
        self.rotary = Rotary(shape)
        self.o_proj = nn.Linear(width, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor, cache: Cache, rows: torch.Tensor) -> torch.Tensor:
        """Attend."""
        q = self.rotary(self.qkv_proj(x), cache, rows, self._layer)
        keys, values = cache.keys[self._layer], cache.values[self._layer]
        return self.o_proj(kernels.attend(q, keys, values, rows, cache.lengths))


class Mlp(nn.Module):
    """The gated branch."""

    def __init__(self, shape: Shape) -> None:
        """Both projections in are one."""
        super().__init__()
        self.gate_up_proj = nn.Linear(shape.hidden, 2 * shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute it."""
        return self.down_proj(kernels.silu_times(self.gate_up_proj(x)))


class Layer(nn.Module):
    """One layer; it ends with the norm that the next one begins with."""

    def __init__(self, shape: Shape, layer: int) -> None:
        """layer: its number."""
        super().__init__()
        self.self_attn, self.mid_norm = Attention(shape, layer), Norm(shape.hidden)
        self.mlp, self.next_norm = Mlp(shape), Norm(shape.hidden)

    def forward(self, resid: torch.Tensor, x: torch.Tensor, cache: Cache,
                rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """Give the residual stream behind the layer, and its norm."""
        resid, x = self.mid_norm(self.self_attn(x, cache, rows), resid)
        return self.next_norm(self.mlp(x), resid)


class Decoder(nn.Module):
    """The model. One token of each row decodes; several tokens are a chunk of the prompt of one slot."""

    def __init__(self, shape: Shape, slots: int, room: int) -> None:
        """slots, room: of the cache."""
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=shape.layers, hidden_size=shape.hidden, vocab_size=shape.vocab,
                                      num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
                                      head_dim=shape.head_size)  # fmt: skip
        self.model = nn.Module()
        self.model.embed = nn.Embedding(shape.vocab, shape.hidden)
        self.model.first_norm = nn.Parameter(torch.ones(shape.hidden))
        self.model.layers = nn.ModuleList(Layer(shape, i) for i in range(shape.layers))
        self.lm_head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        self.cache = Cache(shape, slots, room)

    def forward(self, input_ids: torch.Tensor, output_hidden_states: bool = False) -> Any:
        """Give the logits of each row that decodes, or those behind the chunk; with all residuals, if asked for."""
        cache = self.cache
        seq = input_ids.shape[1]
        rows = cache.rows if seq == 1 else cache.chunk
        resid = self.model.embed(input_ids)
        x = functional.rms_norm(resid, self.model.first_norm.shape, self.model.first_norm, kernels.EPS)
        states = [resid]
        for layer in self.model.layers:
            resid, x = layer(resid, x, cache, rows)
            if output_hidden_states:
                states.append(resid)
        if seq > 1:
            x = x.index_select(1, cache.chunk_tokens - 1)
        logits = self.lm_head(x[:, 0])
        return (logits, states) if output_hidden_states else logits


def make(name: str, slots: int, room: int, device: str, layers: int = 0) -> Decoder:
    """Make a decoder of random bf16 weights. layers: fewer than the shape has; 0: all."""
    shape = SHAPES[name]
    shape = replace(shape, layers=layers or shape.layers)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device), torch.no_grad():
            made = Decoder(shape, slots, room).eval().requires_grad_(False)
            for p in made.parameters():
                if p.dim() > 1:
                    p.normal_(0, 0.02)
            return made
    finally:
        torch.set_default_dtype(before)


def decode(m: Decoder, batch: int) -> torch.Tensor:
    """Compute the next token of the first rows, sample it, and go on by one position; give the ids."""
    cache = m.cache
    rows = cache.rows[:batch].long()
    sampled = sample(m(input_ids=cache.last[rows][:, None]))
    cache.lengths.index_add_(0, rows, torch.ones_like(cache.rows[:batch]))
    cache.lengths[cache.nobody :].zero_()
    cache.last.index_copy_(0, rows, sampled)
    return sampled


def prefill(m: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """Compute a chunk of a prompt, and sample what follows; give its id."""
    cache = m.cache
    sampled = sample(m(input_ids=ids))
    slot = cache.chunk.long()
    cache.lengths.index_add_(0, slot, cache.chunk_tokens.int())
    cache.last.index_copy_(0, slot, sampled)
    return sampled


def sample(logits: torch.Tensor) -> torch.Tensor:
    """Sample at temperature 1, by the highest of the logits with Gumbel noise."""
    noise = torch.empty_like(logits, dtype=torch.float32).exponential_()
    return (logits.float() - noise.log()).argmax(-1)
