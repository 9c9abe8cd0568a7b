"""The two operations that stand for a capture in the graphs of torch.compile.

`sonde::begin` takes what the root was given and asks who is in the forward; `sonde::gather` takes all tapped tensors
at the end and copies them. Both say that they change a token tensor, or the compiler would remove them; that keeps
them in order, too. A handle stands for the capture: when it was detached, the operations do nothing.
"""

from __future__ import annotations

import sys
import threading
import weakref
from typing import Any, Protocol

import torch

_library = torch.library.Library("sonde", "DEF")
# They run Python at every step, so that they must stay outside of CUDA graphs.
_outside = (torch.Tag.cudagraph_unsafe,)
_library.define("begin(Tensor[] given, str names, SymInt past, Tensor(a!) token, int handle) -> ()", tags=_outside)
_library.define("gather(Tensor[] taken, int[] taps, Tensor(a!) token, int handle) -> ()", tags=_outside)


class Target(Protocol):
    """What a handle stands for."""

    def begin_compiled(self, kwargs: dict[str, Any]) -> None:
        """Begin a forward of the root, which was given these arguments."""

    def end_compiled(self, taken: list[tuple[int, torch.Tensor]]) -> None:
        """End it with these taps."""


_targets: weakref.WeakValueDictionary[int, Target] = weakref.WeakValueDictionary()
_lock, _last = threading.Lock(), [0]
_before: list[bool] = []  # what the compiler did about hooks before the first capture

UNKNOWN = -2  # length of a recurrent cache; -1: there is no cache


class PastLength:
    """Stands for a cache of which compiled code hands on the length alone."""

    def __init__(self, length: int | torch.Tensor | None) -> None:
        """length: of what the cache holds, in tokens; None: it is not known."""
        self._length = length

    def get_seq_length(self, layer_idx: int = 0) -> int | torch.Tensor | None:
        """Give the length, as caches of transformers do."""
        return self._length


def register(target: Target) -> int:
    """Give a handle that compiled code may keep."""
    with _lock:
        _last[0] += 1
        _targets[_last[0]] = target
        _see_hooks(True)
        return _last[0]


def forget(handle: int) -> None:
    """Let the operations of a handle do nothing from now on."""
    with _lock:
        _targets.pop(handle, None)
        if not _targets:
            _see_hooks(False)


def _see_hooks(on: bool) -> None:
    """Have the compiler look whether modules have hooks before it runs code that it made of modules without.

    By default it does not: a model that is attached would run what was compiled for another one of its class, and
    nothing of it would be captured.
    """
    import torch._dynamo.config as config  # takes a second, where it was not loaded yet

    if on and not _before:
        _before.append(config.skip_nnmodule_hook_guards)
        config.skip_nnmodule_hook_guards = False
    elif not on and _before:
        config.skip_nnmodule_hook_guards = _before.pop()


def _begin(given: list[torch.Tensor], names: str, past: int, token: torch.Tensor, handle: int) -> None:
    target = _targets.get(handle)
    if target is None:
        return
    kwargs: dict[str, Any] = dict(zip(names.split(","), given, strict=False))
    held = kwargs.pop("past_length", past if past >= 0 else None)
    if held is not None or past == UNKNOWN:
        kwargs["past_key_values"] = PastLength(held)
    target.begin_compiled(kwargs)


def _gather(taken: list[torch.Tensor], taps: list[int], token: torch.Tensor, handle: int) -> None:
    target = _targets.get(handle)
    if target is not None:
        target.end_compiled(list(zip(taps, taken, strict=True)))


def _nothing(*_: Any) -> None:
    """Compute nothing of tensors without memory."""


for name, call in (("begin", _begin), ("gather", _gather)):
    _library.impl(name, call, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sonde::{name}", _nothing, lib=_library)


class Traced:
    """What the root's hooks do while a compiler traces them. Only calls that it understands stand here."""

    def __init__(
        self, handle: int, parameters: list[str], token: torch.Tensor, sink: list[Any], sunk: list[int]
    ) -> None:
        """parameters: names of the root's positional ones. sink, sunk: tapped tensors, and whose they are."""
        self.handle, self.parameters, self.token, self.sink, self.sunk = handle, parameters, token, sink, sunk

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Put `sonde::begin` into the graph."""
        given, names, past = [], [], -1
        named = dict(zip(self.parameters, args))  # noqa: B905 (there are more parameters)
        named.update(kwargs)
        for name, value in named.items():
            if isinstance(value, torch.Tensor):
                given.append(value)
                names.append(name)
        cache = named.get("past_key_values")
        if cache is not None:
            length = cache.get_seq_length()
            if isinstance(length, torch.Tensor):
                given.append(length)
                names.append("past_length")
            else:
                past = length
        elif named.get("cache_params") is not None:
            past = UNKNOWN
        torch.ops.sonde.begin.default(given, ",".join(names), past, self.token, self.handle)

    def end(self) -> None:
        """Put `sonde::gather` into the graph."""
        torch.ops.sonde.gather.default(list(self.sink), list(self.sunk), self.token, self.handle)
        self.sink.clear()
        self.sunk.clear()


def forget_compiled_code() -> bool:
    """Have everything compiled again that this process has compiled: code from before knows nothing of hooks.

    True: there was any.
    """
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is None or not dynamo.compilation_time_metrics:
        return False
    torch.compiler.reset()
    return True


