"""Fears about calls that go past what PyTorch does around hooks: that something of it is missed, or stays behind."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="NOT RUN: torch is not installed")

import torch  # noqa: E402
from capture_layers import X  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.modules.module import (  # noqa: E402
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

import sonde  # noqa: E402

WAY = "_compiled_call_impl"


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(self.first(x)))


@pytest.fixture
def model() -> Layers:
    return Layers()


@pytest.fixture
def capture(model: Layers) -> Iterator[sonde.Capture]:
    with sonde.attach(model, ["a"], socket=None) as capture:
        yield capture
        capture.detach(0)


def ways(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if WAY in m.__dict__]


def test_a_way_is_open_while_the_root_runs_and_at_no_other_time(model: Layers, capture: sonde.Capture) -> None:
    seen: list[Any] = []
    model.b.register_forward_pre_hook(lambda *_: seen.append((ways(model), ways(copy.deepcopy(model.a)))))
    model(X)
    assert seen == [(["a"], [])], "or this test sees no shortcut at all"
    assert ways(model) == [] and WAY not in model.a._replicate_for_data_parallel().__dict__
    assert capture.stats().captured_rows > 0 and capture.stats().problems == {}


def test_a_forward_that_raises_leaves_no_way_open(model: Layers, capture: sonde.Capture) -> None:
    def fail(*_: Any) -> None:
        assert ways(model) == ["a"]
        raise RuntimeError("broken")

    handle = model.b.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        model(X)
    handle.remove()
    assert ways(model) == []
    model(X)
    assert capture.stats().forwards == 1 and capture.stats().raised == 1


HOOKS: dict[str, Callable[[nn.Module, Callable[..., None]], Any]] = {
    "forward hook": lambda m, note: m.register_forward_hook(note),
    "forward pre-hook": lambda m, note: m.register_forward_pre_hook(note),
    "backward hook": lambda m, note: m.register_full_backward_hook(note),
    "backward pre-hook": lambda m, note: m.register_full_backward_pre_hook(note),
    "forward hook of all modules": lambda m, note: register_module_forward_hook(note),
    "forward pre-hook of all modules": lambda m, note: register_module_forward_pre_hook(note),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_every_other_hook_is_called(model: Layers, capture: sonde.Capture, kind: str) -> None:
    called: list[nn.Module] = []

    def note(module: nn.Module, *_: Any) -> None:
        called.append(module)

    handle = HOOKS[kind](model.a, note)
    try:
        model(X.clone().requires_grad_()).sum().backward()
    finally:
        handle.remove()
    assert called.count(model.a) == 1
    assert capture.stats().captured_rows > 0 and capture.stats().problems == {}


def test_a_hook_that_changes_the_output_changes_it(model: Layers, capture: sonde.Capture) -> None:
    before = model(X)
    handle = model.a.register_forward_hook(lambda _m, _a, out: out + 1)
    changed = model(X)
    handle.remove()
    assert not torch.equal(before, changed) and torch.equal(before, model(X))


def test_a_hook_that_replaces_ours_is_called_instead(model: Layers) -> None:
    called: list[int] = []

    def detach(*_: Any) -> None:
        capture.detach(0)
        model.a.register_forward_hook(lambda *_: called.append(1))

    capture = sonde.attach(model, ["a"], socket=None)
    model.first.register_forward_hook(detach)
    model(X)
    assert called == [1] and ways(model) == []


def test_a_module_that_its_user_compiled_keeps_his_way(model: Layers, capture: sonde.Capture) -> None:
    calls = []

    def own(*args: Any) -> Any:
        calls.append(1)
        return model.a._call_impl(*args)

    model.a.__dict__[WAY] = own
    model(X)
    assert calls == [1] and model.a.__dict__[WAY] is own and capture.stats().captured_rows > 0


def test_tracing_goes_the_usual_way(model: Layers, capture: sonde.Capture) -> None:
    traced = torch.jit.trace(model, X)
    assert torch.equal(traced(X), Layers()(X)) and ways(model) == []


def test_a_capture_keeps_no_module_alive(model: Layers) -> None:
    own = Layers()
    capture = sonde.attach(own, ["a"], socket=None)
    own(X)
    gone = weakref.ref(own.a)
    del own
    gc.collect()
    assert gone() is None and capture.model is None
    capture.detach(0)
