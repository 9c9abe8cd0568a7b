"""Where the field's hooks lie in the modules of vLLM, and how they are tapped.

A decoder layer of vLLM returns (hidden, residual): the stream is their sum, and the fused norm of the next layer
overwrites both in place. So the sum is formed, and every other tensor copied, when the tap is passed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from sonde.errors import CaptureError, UnknownHook
from sonde.names import Tap

PROBE = "self_attn.attn"  #: a module of each layer that vLLM has, and Hugging Face has not

NORMS = {"input_layernorm", "post_attention_layernorm"}

Take = Callable[[int, torch.Tensor, torch.Tensor | None], None]


@dataclass(frozen=True)
class Spot:
    """One place below a layer or below the module that holds the layers."""

    path: str
    site: str = "output"
    part: int = 0  #: of an output that is a tuple
    stream: bool = False  #: (hidden, residual), the last two of a tuple; their sum is meant
    columns: str = ""  #: "q", "k" or "v" of the fused projection
    heads: str = ""  #: "q" or "kv": rows are (heads, size of a head)
    sharded: bool = False  #: ranks of tensor parallelism hold parts of a row


LAYER: dict[str, tuple[Spot, ...]] = {
    "resid_pre": (Spot("", "input", stream=True),),
    "resid_mid": (Spot("post_attention_layernorm", part=1),),
    "resid_post": (Spot("", stream=True),),
    "attn_out": (Spot("self_attn"),),
    "mlp_out": (Spot("mlp"), Spot("block_sparse_moe")),
    "mlp_post": (Spot("mlp.down_proj", "input", sharded=True),),
    "ln1": (Spot("input_layernorm"),),
    "ln2": (Spot("post_attention_layernorm"),),
    "q": (Spot("self_attn.qkv_proj", columns="q", heads="q", sharded=True),),
    "k": (Spot("self_attn.qkv_proj", columns="k", heads="kv", sharded=True),),
    "v": (Spot("self_attn.qkv_proj", columns="v", heads="kv", sharded=True),),
    "z": (Spot("self_attn.o_proj", "input", heads="q", sharded=True),),
    "router_logits": (Spot("mlp.gate"), Spot("block_sparse_moe.gate")),
}
MODEL = {"embed": "embed_tokens", "ln_final": "norm"}
LOGITS = "logits_processor"


@dataclass(frozen=True)
class EngineTap(Tap):
    """A tap in a model of vLLM."""

    spot: Spot = Spot("")


def catalogue(model: nn.Module) -> dict[str, EngineTap]:
    """List the taps of a model by the names of their hooks. Raises CaptureError for models that are built otherwise."""
    modules = dict(model.named_modules())
    found = (p for p, m in modules.items() if isinstance(m, nn.ModuleList) and f"{p}.0.{PROBE}" in modules)
    layers = next(found, None)
    names = {name for name, _ in modules[f"{layers}.0"].named_children()} if layers else set()
    if not names.issuperset(NORMS) or "pre_feedforward_layernorm" in names:  # as Gemma has, which norms what it adds
        raise CaptureError(
            f"capture {type(model).__name__}: its layers are not built like Llama's; vLLM's models of Llama, Qwen, "
            "Mistral and their kin are supported"
        )
    base, out = layers.rpartition(".")[0], {}  # type: str, dict[str, EngineTap]
    for tap in (*_outer(base, modules), *_inner(layers, modules)):
        out[tap.name] = tap
    return out


def _outer(base: str, modules: Mapping[str, nn.Module]) -> Iterator[EngineTap]:
    for hook, path in MODEL.items():
        if f"{base}.{path}" in modules:
            yield EngineTap(hook, -1, f"{base}.{path}", spot=Spot(path))
    head = base.rpartition(".")[0]
    path = f"{head}.{LOGITS}" if head else LOGITS
    if path in modules:
        yield EngineTap("logits", -1, path, sampled=True, spot=Spot(path))


def _inner(layers: str, modules: Mapping[str, nn.Module]) -> Iterator[EngineTap]:
    for i in range(len(modules[layers])):  # type: ignore[arg-type]
        at = f"{layers}.{i}"
        for hook, spots in LAYER.items():
            spot = next((s for s in spots if not s.path or f"{at}.{s.path}" in modules), None)
            if spot is not None:
                tap = EngineTap(hook, i, f"{at}.{spot.path}" if spot.path else at, spot.site, spot=spot)
                yield _shaped(tap, modules.get(f"{at}.self_attn"))


def _shaped(tap: EngineTap, attention: Any) -> EngineTap:
    """Say which columns of a fused projection a tap has, and how they are split into heads."""
    heads = {"q": getattr(attention, "num_heads", 0), "kv": getattr(attention, "num_kv_heads", 0)}
    size, spot = getattr(attention, "head_dim", 0), tap.spot
    if not spot.heads or not size or not all(heads.values()):
        return tap
    split = (heads[spot.heads], size)
    if not spot.columns:
        return replace(tap, split=split)
    q, kv = heads["q"] * size, heads["kv"] * size
    start, stop = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}[spot.columns]
    return replace(tap, split=split, columns=(start, stop))


def choose(model: nn.Module, patterns: Sequence[str], ranks: int) -> list[EngineTap]:
    """Find the taps of names like resid_post, resid_post.3, resid_*. Raises CaptureError, and of it UnknownHook."""
    known = catalogue(model)
    out: dict[str, EngineTap] = {}
    for pattern in patterns:
        fits = {n: t for n, t in known.items() if fnmatchcase(n, pattern) or fnmatchcase(t.hook, pattern)}
        if not fits:
            names = sorted({*known, *(t.hook for t in known.values())})
            near = ", ".join(difflib.get_close_matches(pattern, names, 5, 0.4)) or ", ".join(names[:8])
            raise UnknownHook(f"choose hooks by {pattern!r}: the model has nothing of that name. Nearest: {near}")
        out.update(fits)
    for tap in out.values():
        if tap.spot.sharded and ranks > 1:
            raise CaptureError(f"capture {tap.name}: {ranks} ranks hold parts of it; --tensor-parallel-size 1 has it")
    return list(out.values())


class Hook:
    """The hook on one module: hands on the tensor of its tap."""

    def __init__(self, index: int, tap: EngineTap, take: Take) -> None:
        """index: of the tap, for `take`, which is given tensors that live no longer than the call."""
        self.index, self.spot, self.take = index, tap.spot, take

    def attach(self, module: nn.Module) -> Any:
        """Hook the module; give what removes it again."""
        if self.spot.site == "input":
            return module.register_forward_pre_hook(self.before, with_kwargs=True)
        return module.register_forward_hook(self.after)

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tap what a module is given."""
        given = [x for x in (*args, *kwargs.values()) if x is None or isinstance(x, torch.Tensor)]
        if self.spot.stream:  # positions, hidden, residual
            self._pass(given[1], given[2] if len(given) > 2 else None)
        else:
            self._pass(given[0], None)

    def after(self, module: Any, args: Any, output: Any) -> None:
        """Tap what a module returns."""
        if not isinstance(output, (tuple, list)):
            self._pass(output, None)
        elif self.spot.stream:
            self._pass(output[0], output[1])
        elif self.spot.part < len(output):
            self._pass(output[self.spot.part], None)

    def _pass(self, x: torch.Tensor | None, residual: torch.Tensor | None) -> None:
        if x is None:
            return
        if torch.compiler.is_compiling():
            torch.ops.sonde.engine_tap(x, residual, self.index)
        else:
            self.take(self.index, x, residual)


_compiled: list[Take] = []  # of the one compiled model of this process; a graph of the cache knows no other


def listen(take: Take | None) -> None:
    """Say who takes the tensors of compiled code in this process; None: nobody."""
    _compiled[:] = [] if take is None else [take]


def taken(x: torch.Tensor, residual: torch.Tensor | None, index: int) -> None:
    """Hand on what compiled code passed."""
    for take in _compiled:
        take(index, x, residual)


# In a compiled graph the tap is an operator. It claims to change x, so that no compiler removes it or moves it behind
# the norm that overwrites x; it does not.
_define = torch.library.custom_op("sonde::engine_tap", taken, mutates_args=("x",),
                                  schema="(Tensor(a!) x, Tensor? residual, int index) -> ()")  # fmt: skip
_define.register_fake(lambda x, residual, index: None)
