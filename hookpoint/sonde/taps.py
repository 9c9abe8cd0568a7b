"""Taps on modules: each notes one tensor of a forward. What is noted is copied once, at the end (see gather.py).

Hooks are objects of this module, so that a copy or a pickle of an attached model carries hooks that do nothing: no
tap, no reference to the capture.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as _torch
from torch.nn.utils.rnn import PackedSequence

from sonde.names import Tap
from sonde.rows import Grid
from sonde.step import Range

_TENSOR = torch.Tensor


class Forward:
    """One forward of the root that is captured: whose tokens it computes, and what was tapped."""

    __slots__ = ("before", "grid", "problems", "ranges", "recording", "taken")

    def __init__(self, ranges: Sequence[Range], grid: Grid) -> None:
        """Nothing was tapped yet."""
        self.ranges, self.grid = ranges, grid
        #: index of the tap, tensor, and its version then; None: it is a copy, or has no version
        self.taken: list[tuple[int, torch.Tensor, int | None]] = []
        self.problems: list[tuple[int, Exception]] = []
        self.before: BaseException | None = None  #: exception that was handled when the forward began
        self.recording: Any = None  #: of a graph, that takes the forward instead of a step


class Current(threading.local):
    """The forward of each thread."""

    forward: Forward | None = None


class Trunk:
    """What the hooks of one capture share."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self.current = Current()
        #: What compiled code has tapped: it lets go of it before its graph ends, unless the graph ends before the root.
        self.sink: list[torch.Tensor] = []
        self.sunk: list[int] = []


def first_tensor(value: Any, part: str | int | None) -> torch.Tensor | None:
    """Find the tensor in what a module returned: part of it, or the first one. None: there is none."""
    if part is not None:
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, (tuple, list)):
            value = value[part] if isinstance(part, int) and part < len(value) else None
        else:
            value = None
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, PackedSequence):  # a tuple whose first tensor mixes the tokens of all sequences
        return None
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return None
    for v in value:
        if isinstance(v, torch.Tensor):
            return v
    return None


class _Copied:
    """A hook whose copies, as deepcopy and pickle make them, do nothing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return nothing

    def __reduce__(self) -> Any:
        return getattr, (contextlib.nullcontext(), "__exit__")


class _Hook(_Copied):
    """One tap's hook."""

    def __init__(self, trunk: Trunk, index: int, tap: Tap) -> None:
        self.trunk, self.index, self.part, self.whole = trunk, index, tap.part, tap.part is None
        self.current = trunk.current
        self.early = False  # the model overwrites the tensor later in the forward, so it is copied at once

    def trace(self, x: torch.Tensor | None) -> None:
        """Note a tensor in compiled code, where versions do not exist."""
        if x is not None:
            self.trunk.sink.append(x.detach().clone())  # the compiler drops the copy where nothing overwrites x
            self.trunk.sunk.append(self.index)

    def take(self, forward: Forward, x: torch.Tensor | None) -> None:
        """Note a tensor."""
        if x is None:
            return
        try:
            if self.early or x.is_inference():  # tensors of inference mode have no version
                forward.taken.append((self.index, x.detach().clone(), None))
            else:
                forward.taken.append((self.index, x, x._version))
        except Exception as e:  # nothing that goes wrong here may reach the model
            forward.problems.append((self.index, e))


class OutputHook(_Hook):
    """Taps what a module returns."""

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        """Note the tensor."""
        if torch.compiler.is_dynamo_compiling():
            self.trace(first_tensor(output, self.part))
            return
        forward = self.current.forward
        if forward is None:
            return
        if not (self.whole and type(output) is _TENSOR):
            output = first_tensor(output, self.part)
        elif not self.early and not output.is_inference():  # the way of nearly all, as `take` goes it
            forward.taken.append((self.index, output, output._version))
            return
        self.take(forward, output)


class InputHook(_Hook):
    """Taps what a module is given."""

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the tensor."""
        if torch.compiler.is_dynamo_compiling():
            self.trace(self.find(args, kwargs))
            return
        forward = self.current.forward
        if forward is not None:
            self.take(forward, args[0] if self.whole and args and type(args[0]) is _TENSOR else self.find(args, kwargs))

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Find the tensor among the arguments."""
        if self.part is not None:
            return first_tensor(args if isinstance(self.part, int) else kwargs, self.part)
        x = first_tensor(args, None)
        return first_tensor(kwargs, None) if x is None else x


class Shortcuts:
    """Calls tapped modules past what PyTorch does around hooks, which costs more than ours, enabled or not.

    It is the way that `nn.Module.compile` goes, and open while the root runs: at any other time, as when it is copied
    for several devices, a module is what it was. Where ours is not all that is to be done, PyTorch does it.
    """

    def __init__(self) -> None:
        """Shorten nothing yet."""
        self._ways: list[tuple[dict[str, Any], Callable[..., Any]]] = []

    def add(self, module: nn.Module, hook: OutputHook, key: int) -> None:
        """Shorten the calls of a module while this is its only hook. key: what it has the hook by."""
        if hasattr(nn.Module, _WAY) and not isinstance(module, torch.jit.ScriptModule):
            self._ways.append((module.__dict__, _direct(weakref.ref(module), hook, key)))

    def open(self) -> None:
        """Begin a forward of the root."""
        for attributes, way in self._ways:
            if _WAY not in attributes:
                attributes[_WAY] = way

    def close(self) -> None:
        """End it."""
        for attributes, way in self._ways:
            if attributes.get(_WAY) is way:
                attributes.pop(_WAY, None)


_WAY = "_compiled_call_impl"


def _direct(ref: weakref.ref[nn.Module], hook: OutputHook, key: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        module: Any = ref()
        hooks = module._forward_hooks
        if (
            len(hooks) != 1 or key not in hooks or module._forward_pre_hooks
            or module._backward_hooks or module._backward_pre_hooks
            or _torch._global_forward_hooks or _torch._global_forward_pre_hooks
            or _torch._global_backward_hooks or _torch._global_backward_pre_hooks
            or torch.compiler.is_dynamo_compiling() or torch._C._is_tracing()
        ):  # fmt: skip
            return module._call_impl(*args, **kwargs)
        output = module.forward(*args, **kwargs)
        hook(module, args, output)
        return output

    return call


class RootPreHook(_Copied):
    """Begins a forward of the root."""

    def __init__(
        self, begin: Callable[[Any, Any, Any], None], traced: Callable[[Any, Any], None], shortcuts: Shortcuts
    ) -> None:
        """begin: of the capture. traced: what a compiler puts into its graph instead."""
        self.begin, self.traced, self.shortcuts = begin, traced, shortcuts

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Ask who is in the forward."""
        if torch.compiler.is_dynamo_compiling():
            self.traced(args, kwargs)
        else:
            self.shortcuts.open()
            self.begin(module, args, kwargs)


class RootHook(_Copied):
    """Ends a forward of the root."""

    def __init__(self, end: Callable[[Any, Any], None], traced: Callable[[], None], shortcuts: Shortcuts) -> None:
        """end: of the capture. traced: what a compiler puts into its graph instead."""
        self.end, self.traced, self.shortcuts = end, traced, shortcuts

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        """Copy what was tapped."""
        if torch.compiler.is_dynamo_compiling():
            self.traced()
        else:
            self.shortcuts.close()
            self.end(module, output)


#: A hook that does nothing. It is made of the standard library alone, so that a pickled model loads anywhere.
nothing = contextlib.nullcontext().__exit__
