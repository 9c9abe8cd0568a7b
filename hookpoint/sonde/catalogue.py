"""What there is to capture of a model, without running it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from sonde.dtypes import SIZES
from sonde.errors import CaptureError
from sonde.names import TOKEN_IDS, Catalogue, Tap
from sonde.rows import ELEMENTS


@dataclass(frozen=True)
class Hook:
    """One hook of a model."""

    name: str  #: as `attach` takes it
    layer: int  #: -1: none
    module: str  #: path of the module that is tapped
    site: str  #: "output" or "input"
    shape: tuple[int, ...] | None  #: of the row of a token; None: known only when the model runs
    dtype: str | None
    bytes_per_token: int | None
    sampled: bool  #: only tokens that are sampled from have a row

    def __str__(self) -> str:
        """Give one line of a list."""
        shape = "?" if self.shape is None else "x".join(map(str, self.shape)) or "1"
        size = "?" if self.bytes_per_token is None else str(self.bytes_per_token)
        return f"{self.name:<18} {shape:>10} {self.dtype or '?':>6} {size:>8} B/token  {self.module}:{self.site}"


def hooks(model: nn.Module) -> list[Hook]:
    """List the hooks of a model in its order: standard names where its family is known, and module paths otherwise.

    Any other module can be tapped by its path, too. Raises CaptureError for what is no module.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"list the hooks of {type(model).__name__}: only a torch.nn.Module has any")
    found = Catalogue(model)
    taps: Iterable[Tap] = found.taps.values()
    if found.family is None:
        taps = [Tap(f"{path}:output", -1, path) for path, m in found.modules.items() if path and not list(m.children())]
    out = [Hook(TOKEN_IDS, -1, "", "input", (), "i32", 4, False)] if found.family else []
    for tap in taps:
        module = found.modules[tap.path]
        shape, dtype = _shape(tap, module, found), _dtype(module, model)
        size = None if shape is None or dtype is None else math.prod(shape) * SIZES[dtype]
        out.append(Hook(tap.name, tap.layer, tap.path, tap.site, shape, dtype, size, tap.sampled))
    return out


def _shape(tap: Tap, module: nn.Module, found: Catalogue) -> tuple[int, ...] | None:
    if tap.split is not None:
        return tap.split
    if tap.columns is not None:
        return (tap.columns[1] - tap.columns[0],)
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Embedding):
        return (module.embedding_dim,)
    if isinstance(weight, torch.Tensor) and weight.dim() == 1:  # a norm
        return tuple(weight.shape)
    if isinstance(weight, torch.Tensor) and weight.dim() == 2:
        turned = type(module).__name__ == "Conv1D"  # of GPT-2: its weight is (in, out)
        return (weight.shape[0 if (tap.site == "output") != turned else 1],)
    width = getattr(found.config, "vocab_size" if tap.hook == "logits" else "hidden_size", None)
    return (width,) if isinstance(width, int) and found.family is not None else None


def _dtype(module: nn.Module, model: nn.Module) -> str | None:
    for m in (module, model):
        for p in m.parameters():
            if p.is_floating_point():
                return ELEMENTS.get(p.dtype)
    return None
