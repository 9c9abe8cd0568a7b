"""Where the field's hook names lie in the modules of Hugging Face models.

A family is told by the children of its layers, so that wrapped, adapted and renamed models are recognised too. A hook
has candidates in order, and the first one that fits counts. What a model has no module for, as resid_mid where
attention and MLP run side by side, it does not have.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spot:
    """One place in a layer or a model: a module path below it, and what is tapped there."""

    path: str
    site: str = "output"
    columns: str = ""  #: "q", "k" or "v": its columns of a fused projection
    split: str = ""  #: "heads", "kv_heads", "latent_heads", "value_heads": (heads, size of one) of the last dimension
    need: str = ""  #: only where this module exists
    without: str = ""  #: only where this module does not exist
    sampled: bool = False  #: only rows that are sampled from


@dataclass(frozen=True)
class Family:
    """How one way of building a model names its parts."""

    name: str
    probe: str  #: a module that each layer has
    layer: dict[str, tuple[Spot, ...]]
    model: dict[str, tuple[Spot, ...]]  #: below the module that holds the list of layers
    post_norm: bool = False  #: layers end with their norm, and no other follows


def _input(path: str, **more: str) -> tuple[Spot, ...]:
    return (Spot(path, "input", **more),)


def _separate(q: str, k: str, v: str, *out: str) -> dict[str, tuple[Spot, ...]]:
    """Name the heads of attention with three projections."""
    return {
        "q": (Spot(q, split="heads"),),
        "k": (Spot(k, split="kv_heads"),),
        "v": (Spot(v, split="kv_heads"),),
        "z": tuple(Spot(o, "input", split="heads") for o in out),
    }


def _fused(path: str, out: str) -> dict[str, tuple[Spot, ...]]:
    """Name the heads of attention with one projection that gives q, k and v side by side."""
    return {
        "q": (Spot(path, columns="q", split="heads"),),
        "k": (Spot(path, columns="k", split="kv_heads"),),
        "v": (Spot(path, columns="v", split="kv_heads"),),
        "z": (Spot(out, "input", split="heads"),),
    }


_STREAM = {"resid_pre": _input(""), "resid_post": (Spot(""),)}

# Gemma 2 and 3 have norms before and after both branches, OLMo 2 after them only, the others before them only.
_LLAMA_LAYER = {
    **_STREAM,
    "resid_mid": (
        Spot("pre_feedforward_layernorm", "input"),
        Spot("mlp", "input", need="post_feedforward_layernorm"),
        Spot("post_attention_layernorm", "input"),
    ),
    "attn_out": (Spot("post_attention_layernorm", need="post_feedforward_layernorm"), Spot("self_attn")),
    "mlp_out": (Spot("post_feedforward_layernorm"), Spot("mlp"), Spot("block_sparse_moe")),
    "mlp_post": (Spot("mlp.down_proj", "input"), Spot("mlp.fc2", "input")),
    "ln1": (Spot("input_layernorm"),),
    "ln2": (
        Spot("pre_feedforward_layernorm"),
        Spot("post_attention_layernorm", without="post_feedforward_layernorm"),
    ),
    "router_logits": (
        Spot("mlp.gate", need="mlp.experts"),
        Spot("mlp.router", need="mlp.experts"),
        Spot("block_sparse_moe.gate"),
    ),
}
_LLAMA_MODEL = {
    "embed": (Spot("embed_tokens"),),
    "ln_final": (Spot("norm"), Spot("final_layernorm"), Spot("final_layer_norm")),
}
_OUT = ("self_attn.o_proj", "self_attn.dense", "self_attn.out_proj")

FAMILIES = (
    Family(
        "DeepSeek-V2, DeepSeek-V3",  # in front of Llama: small ones have a q_proj, too
        "self_attn.kv_a_proj_with_mqa",
        {
            **_LLAMA_LAYER,
            "q": tuple(Spot(f"self_attn.{q}", split="latent_heads") for q in ("q_b_proj", "q_proj")),
            "kv_latent": (Spot("self_attn.kv_a_proj_with_mqa"),),
            "z": _input("self_attn.o_proj", split="value_heads"),
        },
        _LLAMA_MODEL,
    ),
    Family(
        "Llama, Qwen2, Qwen3, Gemma, Mistral, Mixtral, Qwen3-MoE, gpt-oss, OLMo, Phi, Cohere",
        "self_attn.q_proj",
        {**_LLAMA_LAYER, **_separate("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", *_OUT)},
        _LLAMA_MODEL,
    ),
    Family(
        "Phi-3",
        "self_attn.qkv_proj",
        {**_LLAMA_LAYER, **_fused("self_attn.qkv_proj", "self_attn.o_proj")},
        _LLAMA_MODEL,
    ),
    Family(
        "GPT-2",
        "attn.c_attn",
        {
            **_STREAM,
            "resid_mid": _input("ln_2"),
            "attn_out": (Spot("attn"),),
            "mlp_out": (Spot("mlp"),),
            "mlp_post": _input("mlp.c_proj"),
            "ln1": (Spot("ln_1"),),
            "ln2": (Spot("ln_2"),),
            **_fused("attn.c_attn", "attn.c_proj"),
        },
        {"embed": (Spot("wte"),), "pos_embed": (Spot("wpe"),), "ln_final": (Spot("ln_f"),)},
    ),
    Family(
        "GPT-NeoX, Pythia",
        "attention.query_key_value",
        {
            **_STREAM,
            "attn_out": (Spot("attention"),),
            "mlp_out": (Spot("mlp"),),
            "mlp_post": _input("mlp.dense_4h_to_h"),
            "ln1": (Spot("input_layernorm"),),
            "ln2": (Spot("post_attention_layernorm"),),
            "z": _input("attention.dense", split="heads"),
        },
        {"embed": (Spot("embed_in"),), "ln_final": (Spot("final_layer_norm"),)},
    ),
    Family(
        "BERT, MiniLM, RoBERTa, ELECTRA",
        "attention.self.query",
        {
            **_STREAM,
            "resid_mid": (Spot("attention.output"),),
            "attn_out": (Spot("attention.output.dense"),),
            "mlp_out": (Spot("output.dense"),),
            "mlp_post": _input("output.dense"),
            **_separate(
                "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"
            ),
        },
        {"embed": (Spot("embeddings.word_embeddings"),), "pos_embed": (Spot("embeddings.position_embeddings"),)},
        post_norm=True,
    ),
)

#: What gives logits, below the root.
HEADS = (
    Spot("lm_head", sampled=True),
    Spot("embed_out", sampled=True),
    Spot("cls.predictions"),
)

#: TransformerLens spellings behind `hook_`, `blocks.{i}.` and the like, to ours.
TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "mlp.hook_post": "mlp_post",
    "ln1.hook_normalized": "ln1",
    "ln2.hook_normalized": "ln2",
    "mlp.hook_router_logits": "router_logits",
    "hook_embed": "embed",
    "hook_pos_embed": "pos_embed",
    "ln_final.hook_normalized": "ln_final",
    "hook_tokens": "token_ids",
    "unembed.hook_out": "logits",
}

#: Other spellings of hooks that belong to no layer.
ALIASES = {"final_ln": "ln_final", "final_logits": "logits", "input_ids": "token_ids", "embeddings": "embed"}
