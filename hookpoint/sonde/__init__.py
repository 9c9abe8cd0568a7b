"""Sonde from Python: capture activations of PyTorch models, and read them live from the bus or exact from the dataset.

`attach` and `capture` tap the modules of a model, and `hooks` lists what there is to tap; they need torch. `subscribe`
iterates over what an engine computes now; `open_lake` reads what was stored. Both give vectors bit for bit: floats are
widened by moving bits, and a row that is missing is a `Gap` or an error, never zeros.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sonde.canary import Canaries, Misattribution, Reference, canaries_needed, make_reference
from sonde.chain import Gap
from sonde.errors import (
    AlreadyAttached,
    AmbiguousRequest,
    CaptureError,
    DamagedMessage,
    IncompleteTensor,
    LakeError,
    LibraryMissing,
    NotInLake,
    SondeError,
    UnknownHook,
)
from sonde.lake import Lake, Tensor, open_lake
from sonde.live import Subscription, subscribe
from sonde.message import Batch

if TYPE_CHECKING:
    from sonde.attachment import Capture, attach, capture
    from sonde.catalogue import hooks
    from sonde.parallel import tensor_parallel

__all__ = [
    "AlreadyAttached",
    "AmbiguousRequest",
    "Batch",
    "Canaries",
    "Capture",
    "CaptureError",
    "DamagedMessage",
    "Gap",
    "IncompleteTensor",
    "Lake",
    "LakeError",
    "LibraryMissing",
    "Misattribution",
    "NotInLake",
    "Reference",
    "SondeError",
    "Subscription",
    "Tensor",
    "UnknownHook",
    "attach",
    "canaries_needed",
    "capture",
    "hooks",
    "make_reference",
    "open_lake",
    "subscribe",
    "tensor_parallel",
]

_OF_TORCH = {"Capture": "attachment", "attach": "attachment", "capture": "attachment", "hooks": "catalogue",
             "tensor_parallel": "parallel"}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for."""
    if name not in _OF_TORCH:
        raise AttributeError(f"module 'sonde' has no attribute {name!r}")
    from importlib import import_module

    try:
        value = getattr(import_module(f"sonde.{_OF_TORCH[name]}"), name)
    except ModuleNotFoundError as e:
        if e.name != "torch":
            raise
        raise ModuleNotFoundError(f"sonde.{name} needs PyTorch: pip install torch", name="torch") from None
    globals()[name] = value
    return value
