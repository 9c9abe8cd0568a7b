"""Tensor parallelism: which part of a hook's rows a rank has."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from sonde.errors import CaptureError
from sonde.names import Tap


def tensor_parallel(model: nn.Module) -> Callable[[Tap], tuple[int, int]]:
    """Give what `attach(shard=…)` takes, for a model whose linear layers were split over ranks as DTensors.

    The output of a layer that was split by columns and the input of one that was split by rows are shards: every rank
    captures its own. All else is the same on each rank: capture it, and token_ids, on rank 0 alone. Give all ranks the
    same engine=, and requests= so that they mean the same requests. A tap is refused (CaptureError) where it is
    not known, as between two such layers; tap the input of the second one.
    """
    modules = dict(model.named_modules())
    plan = getattr(model, "tp_plan", None) or {}

    def shard(tap: Tap) -> tuple[int, int]:
        module = modules[tap.path]
        if isinstance(module, nn.Linear):
            return _split(module, tap.site, str(plan.get(_pattern(tap.path), "")))
        parent = modules.get(tap.path.rpartition(".")[0], model)
        beside = [m for m in parent.children() if isinstance(m, nn.Linear)]
        if not any(True for _ in module.parameters()) and any(_split(m, "input", "")[1] > 1 for m in beside):
            raise CaptureError(f"capture {tap.path}: it is not known whether it gives shards; tap a linear layer")
        return 0, 1

    return shard


def _split(module: nn.Linear, site: str, style: str) -> tuple[int, int]:
    weight = module.weight
    placements = getattr(weight, "placements", ())
    if site == "output" and "gather" in style:
        return 0, 1
    for dimension, placement in enumerate(placements):
        if placement.is_shard(0 if site == "output" else 1):
            return weight.device_mesh.get_local_rank(dimension), weight.device_mesh.size(dimension)
    return 0, 1


def _pattern(path: str) -> str:
    return ".".join("*" if part.isdecimal() else part for part in path.split("."))
