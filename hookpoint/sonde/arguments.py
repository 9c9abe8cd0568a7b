"""What `attach` refuses before anything is made, so that the model stays as it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sonde.errors import CaptureError
from sonde.identity import Naming
from sonde.recorder import MODES
from sonde.rows import CASTS


def check_options(model: object, mode: str, dtype: str | None, data_bytes: object, identity: object) -> None:
    """Raise CaptureError for options of `attach` that cannot work."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"attach to {type(model).__name__}: only a torch.nn.Module has modules to tap")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("attach to a TorchScript model: its modules run without Python; attach to the original")
    if mode not in MODES:
        raise CaptureError(f"attach with mode={mode!r}: it is one of {', '.join(MODES)}")
    if dtype is not None and dtype not in CASTS:
        raise CaptureError(f"attach with dtype={dtype!r}: it is None or one of {', '.join(CASTS)}")
    if not isinstance(data_bytes, int) or isinstance(data_bytes, bool) or data_bytes <= 0:
        raise CaptureError(f"attach with data_bytes={data_bytes!r}: it is a whole number, a power of two from 262144")
    if identity is not None and not callable(identity) and not hasattr(identity, "ranges"):
        raise CaptureError(f"attach with identity={identity!r}: it needs the methods of sonde.step.Identity")


def check_naming(naming: Naming) -> Naming:
    """Raise CaptureError for names that no call could have; give them back otherwise."""
    for what, given, alone in (
        ("requests", naming.requests, ()),
        ("labels", naming.labels, Mapping),
        ("opt_in", naming.opt_in, bool),
    ):
        many = not isinstance(given, (str, bytes)) and hasattr(given, "__len__") and hasattr(given, "__getitem__")
        if given is not None and not isinstance(given, alone) and not many:
            raise CaptureError(f"name requests with {what}={given!r}: give a list with one entry for each prompt")
    for name in naming.requests if naming.requests is not None else ():
        if name is not None and not isinstance(name, (str, int)):
            raise CaptureError(f"name a request {name!r}: an id is a text")
    return naming
