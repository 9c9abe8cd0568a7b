"""Hook names: what a model offers, and which modules a pattern chooses.

A pattern is one of
- a standard name, `resid_post`, of all layers; `resid_post.3` and `resid_post.*` of one and all; `resid_*`, `*`;
- a TransformerLens name, `blocks.3.hook_resid_post`, `blocks.*.attn.hook_z`, `ln_final.hook_normalized`;
- a Hugging Face name, `hidden_states.4`, `hidden_states.*`, `last_hidden_state`, `router_logits.2`, `logits`;
- a module path, `model.layers.*.mlp`, with `:output` (when nothing is said), `:input`, or one part of an output that
  has
  several, `:output.1`, `:output.logits`. `*` stands for one part of a path or within one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from sonde.errors import CaptureError, UnknownHook
from sonde.presets import ALIASES, FAMILIES, HEADS, TRANSFORMER_LENS, Family, Spot

#: Hook of the ids of tokens, which come from the arguments of the model and no module.
TOKEN_IDS = "token_ids"  # noqa: S105 (no password)

MAX_TAPS = 4096  # entries of a layout


@dataclass(frozen=True)
class Tap:
    """Where one hook is tapped."""

    hook: str
    layer: int  #: -1: none
    path: str  #: of the module, "" is the root
    site: str = "output"
    part: str | int | None = None  #: of an output or of the arguments; None: the first tensor
    columns: tuple[int, int] | None = None  #: of the last dimension
    split: tuple[int, int] | None = None  #: of the last dimension, as (heads, size of a head)
    sampled: bool = False
    turned: bool = False  #: tokens come in front of the batch

    @property
    def name(self) -> str:
        """How the hook is asked for."""
        return self.hook if self.layer < 0 or ":" in self.hook else f"{self.hook}.{self.layer}"


class Catalogue:
    """The standard hooks of one model."""

    def __init__(self, model: nn.Module) -> None:
        """Look at the modules of the model; nothing is run."""
        self.modules = dict(model.named_modules())
        self.config = _text_config(model)
        self.family, self.layers = _recognise(self.modules, _decoder(model))
        self.taps: dict[str, Tap] = {t.name: t for t in self._find()}

    def choose(self, patterns: Sequence[str]) -> list[Tap]:
        """Find the taps of patterns, each once, in the order of the model. `token_ids` is left out.

        Raises UnknownHook for a pattern that fits nothing, with the nearest names.
        """
        if isinstance(patterns, str):
            raise CaptureError(f"choose hooks by {patterns!r}: give a list, like [{patterns!r}]")
        if not patterns:
            raise CaptureError("choose hooks: the list is empty; sonde.hooks(model) lists what there is")
        chosen: dict[Tap, None] = {}
        for pattern in self._spelled_out(patterns):
            if self._canonical(pattern) == TOKEN_IDS:
                continue
            found = list(self._match(pattern))
            if not found:
                raise UnknownHook(self._unknown(pattern))
            chosen.update(dict.fromkeys(found))
        if len(chosen) > MAX_TAPS:
            raise CaptureError(f"choose hooks: {len(chosen)} taps; at most {MAX_TAPS}")
        order = {path: i for i, path in enumerate(self.modules)}
        return sorted(chosen, key=lambda t: (t.layer, order[t.path], t.site, t.hook))

    def _spelled_out(self, patterns: Sequence[str]) -> Iterator[str]:
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise CaptureError(f"choose hooks by {pattern!r}: a name is a text, as sonde.hooks(model) lists them")
            if pattern in ("hidden_states", "hidden_states.*") and self.layers:
                yield from (f"hidden_states.{i}" for i in range(len(self.layers) + 1))
            else:
                yield pattern

    def _match(self, pattern: str) -> Iterator[Tap]:
        name = self._canonical(pattern)
        standard = [t for t in self.taps.values() if fnmatchcase(t.hook, name) or fnmatchcase(t.name, name)]
        yield from standard
        if standard and ":" not in pattern:
            return
        path, _, where = pattern.partition(":")
        site, _, part = where.partition(".")
        if site not in ("", "input", "output"):
            raise UnknownHook(f"choose hooks by {pattern!r}: after the colon stands input, output, or output.PART")
        for found, module in self._named(path):
            if found or where:
                if type(module).forward is nn.Module.forward:  # a list of modules or parameters
                    if found == path:
                        raise CaptureError(f"tap {path}: a {type(module).__name__} is never called; tap what it holds")
                    continue
                hook = f"{found}:{where or 'output'}"
                numbers = re.findall(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)", found)
                layer = int(numbers[0]) if len(numbers) == 1 else -1
                if isinstance(module, nn.RNNBase) and site != "input" and part not in ("", "0"):
                    raise CaptureError(f"tap {pattern}: states of {type(module).__name__} have no row for each token")
                chosen = int(part) if part.isdigit() else part or None
                yield Tap(hook, layer, found, site or "output", chosen, turned=self._turned(found))

    def _named(self, pattern: str) -> Iterator[tuple[str, nn.Module]]:
        """Find modules by path. One that has several goes by its first."""
        first = {id(m): path for path, m in self.modules.items()}
        for path, module in self.modules[""].named_modules(remove_duplicate=False):
            if _same_path(pattern, path):
                yield first[id(module)], module

    def _turned(self, path: str) -> bool:
        """Say whether a module or what holds it takes tokens in front of the batch."""
        parts = path.split(".") if path else []
        return any(batch_last(self.modules[".".join(parts[:i])]) for i in range(len(parts) + 1))

    def _canonical(self, pattern: str) -> str:
        """Translate other spellings into ours."""
        if pattern in ALIASES:
            return ALIASES[pattern]
        if pattern in TRANSFORMER_LENS:
            return TRANSFORMER_LENS[pattern]
        block = re.fullmatch(r"blocks\.([\d*?\[\]]+)\.(.+)", pattern)
        if block and block[2] in TRANSFORMER_LENS:
            return f"{TRANSFORMER_LENS[block[2]]}.{block[1]}"
        if pattern == "last_hidden_state":
            return self._hidden_state(len(self.layers))
        state = re.fullmatch(r"hidden_states\.(\d+)", pattern)
        return self._hidden_state(int(state[1])) if state else pattern

    def _hidden_state(self, i: int) -> str:
        """Name the i-th hidden state of Hugging Face, whose last one is taken after the final norm."""
        if i == 0:
            return "resid_pre.0"
        if i < len(self.layers) or i == len(self.layers) and self.family is not None and self.family.post_norm:
            return f"resid_post.{i - 1}"
        return "ln_final" if i == len(self.layers) else f"hidden_states.{i}"

    def _unknown(self, pattern: str) -> str:
        names = [*self.taps, *{t.hook for t in self.taps.values()}, TOKEN_IDS, *(m for m in self.modules if m)]
        near = difflib.get_close_matches(pattern.partition(":")[0], names, 5, 0.4)
        if self.family is None and not near:
            near = [m for m in self.modules if m][:5]
        known = "" if self.family else "; the model is of no family with standard names, so use module paths"
        return (
            f"choose hooks by {pattern!r}: the model has nothing of that name{known}. "
            f"Nearest: {', '.join(near) or 'none'}. sonde.hooks(model) lists all"
        )

    def _find(self) -> Iterator[Tap]:
        if self.family is None:
            return
        base = self.layers[0].rpartition(".")[0].rpartition(".")[0]
        if self.family.post_norm:  # BERT holds its layers in an encoder beside the embeddings
            base = base.rpartition(".")[0]
        for hook, spots in self.family.model.items():
            yield from self._first(hook, -1, base, spots)
        for i, path in enumerate(self.layers):
            for hook, spots in self.family.layer.items():
                yield from self._first(hook, i, path, spots)
        if getattr(self.config, "final_logit_softcapping", None):
            yield Tap("logits", -1, "", part="logits", sampled=True)
        else:
            yield from self._first("logits", -1, "", HEADS)

    def _first(self, hook: str, layer: int, below: str, spots: Iterable[Spot]) -> Iterator[Tap]:
        for s in spots:
            path = _join(below, s.path)
            if path not in self.modules or s.need and _join(below, s.need) not in self.modules:
                continue
            if s.without and _join(below, s.without) in self.modules:
                continue
            tap = Tap(hook, layer, path, s.site, sampled=s.sampled)
            if s.columns:
                tap = replace(tap, columns=self._columns(s.columns))
            if s.split:
                tap = replace(tap, split=self._heads(s.split))
            yield tap
            return

    def _heads(self, which: str) -> tuple[int, int] | None:
        c = self.config
        heads = getattr(c, "num_attention_heads", 0)
        size = getattr(c, "head_dim", None) or (getattr(c, "hidden_size", 0) // heads if heads else 0)
        if which == "kv_heads":
            heads = getattr(c, "num_key_value_heads", None) or heads
        if which == "latent_heads":
            size = getattr(c, "qk_nope_head_dim", 0) + getattr(c, "qk_rope_head_dim", 0)
        if which == "value_heads":
            size = getattr(c, "v_head_dim", 0)
        return (heads, size) if heads and size else None

    def _columns(self, which: str) -> tuple[int, int]:
        (q, size), (kv, _) = self._heads("heads") or (1, 0), self._heads("kv_heads") or (1, 0)
        widths = {"q": (0, q), "k": (q, q + kv), "v": (q + kv, q + 2 * kv)}
        return widths[which][0] * size, widths[which][1] * size


def batch_last(module: nn.Module) -> bool:
    """Say whether a module, as an LSTM, was made to take [tokens, batch, …]."""
    if isinstance(module, (nn.TransformerEncoder, nn.TransformerDecoder)):
        return any(batch_last(layer) for layer in module.layers)
    if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
        module = module.self_attn
    return getattr(module, "batch_first", None) is False


def _join(below: str, path: str) -> str:
    return f"{below}.{path}" if below and path else below or path


def _same_path(pattern: str, path: str) -> bool:
    want, have = pattern.split("."), path.split(".")
    return len(want) == len(have) and all(fnmatchcase(h, w) for w, h in zip(want, have, strict=True))


def _text_config(model: nn.Module) -> object:
    """The configuration that describes the layers, of whatever wraps the model."""
    for m in model.modules():
        config = getattr(m, "config", None)
        if config is not None and not isinstance(config, dict):
            return config.get_text_config() if hasattr(config, "get_text_config") else config
    return None


def _decoder(model: nn.Module) -> nn.Module | None:
    """Find the part of a model of transformers that works on text."""
    find = getattr(model, "get_decoder", None)
    try:
        return find() if callable(find) else None
    except (AttributeError, NotImplementedError):
        return None


def _recognise(modules: dict[str, nn.Module], decoder: nn.Module | None) -> tuple[Family | None, list[str]]:
    """Find the family, and the paths of the layers in order: those of text before those of images."""
    inside = set() if decoder is None else {id(m) for m in decoder.modules()}
    for path, module in sorted(modules.items(), key=lambda item: id(item[1]) not in inside):
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        if f"{path}.0.self_attn.attn" in modules:  # vLLM, whose layers return the stream in two parts: see its plug-in
            return None, []
        for family in FAMILIES:
            if f"{path}.0.{family.probe}" in modules:
                return family, [f"{path}.{i}" for i in range(len(module))]
    return None, []
