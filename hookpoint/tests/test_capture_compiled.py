"""Fears about torch.compile: hooks that vanish, bytes of another moment, code that was compiled before or after."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from capture_layers import Layers, X
from capture_rig import PlainHooks, Rig, all_taps, batch, expected, make_model, make_rig
from torch import nn

import sonde

HOOKS = ["resid_post", "resid_mid", "q", "mlp_post", "logits"]
REQUESTS = ["a", "b", "c"]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from make_rig(tmp_path_factory)


@pytest.fixture(autouse=True)
def afresh() -> None:
    torch.compiler.reset()


@pytest.fixture
def attach() -> Iterator[Callable[..., sonde.Capture]]:
    made: list[sonde.Capture] = []

    def call(model: nn.Module, hooks: Any = ("a", "b"), **options: Any) -> sonde.Capture:
        made.append(sonde.attach(model, hooks, **{"socket": None, **options}))
        return made[-1]

    yield call
    for capture in made:
        capture.detach(0)


@torch.no_grad()
def test_a_compiled_model_stores_what_its_own_graph_computed(rig: Rig) -> None:
    """The whole of it in one graph by inductor, whose tensors are returned, too, and are what must be stored."""
    model, control = make_model("Llama"), make_model("Llama")
    taps = [t for t in all_taps(model) if t.hook in HOOKS]
    plain, plain_control = PlainHooks(model, taps), PlainHooks(control, taps)

    def forward(m: nn.Module, hooks: PlainHooks, inputs: dict[str, torch.Tensor]) -> tuple[Any, list[torch.Tensor]]:
        logits = m(**inputs, use_cache=False).logits
        seen = [x for t in taps for x in hooks.seen[t]]
        for xs in hooks.seen.values():
            xs.clear()
        return logits, seen

    inputs = batch(columns=8)
    with sonde.attach(model, HOOKS, socket=rig.socket, requests=REQUESTS, token_ids=False) as capture:
        logits, seen = torch.compile(forward, fullgraph=True)(model, plain, inputs)
    stored = rig.rows(capture)
    assert capture.stats().forwards == 1 and capture.stats().problems == {}
    pairs = {t: [x] for t, x in zip(taps, seen, strict=True)}
    wanted = expected(pairs, inputs["attention_mask"], REQUESTS)
    assert stored.keys() == wanted.keys()
    assert [k for k in wanted if stored[k] != wanted[k]] == []
    # The control is compiled with the same observers and without capture: what differs is the compiler's.
    torch.compiler.reset()
    other, _ = torch.compile(forward, fullgraph=True)(control, plain_control, inputs)
    assert torch.equal(logits, other)


# The rest is about graphs, not about kernels: without inductor it takes a tenth of the time.


def compiled(model: Any, **how: Any) -> Any:
    return torch.compile(model, backend="aot_eager", fullgraph=True, **how)


WAYS: dict[str, Callable[[nn.Module], Callable[[torch.Tensor], torch.Tensor]]] = {
    "the module": compiled,
    "its call": lambda m: compiled(m.__call__),
    "a function around it": lambda m: compiled(lambda x: m(x)),
    "its forward alone": lambda m: setattr(m, "forward", compiled(m.forward)) or m,
    "the module in place": lambda m: m.compile(backend="aot_eager", fullgraph=True) or m,
}


@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_every_way_to_compile_captures_every_call_once(attach: Callable[..., sonde.Capture], way: str) -> None:
    model = Layers(torch.tanh)
    untouched = copy.deepcopy(model)
    untouched.forward = lambda x: untouched.b(torch.relu(untouched.a(x)) + torch.tanh(untouched.a(x)))
    model.forward = lambda x: model.b(torch.relu(model.a(x)) + torch.tanh(model.a(x)))
    capture = attach(model)
    run = WAYS[way](model)
    for _ in range(3):
        assert torch.equal(run(X), untouched(X))
    stats = capture.stats()
    assert (stats.forwards, stats.failures, stats.unidentified, stats.problems) == (3, 0, 0, {})
    assert stats.captured_rows == 3 * 3 * 10, "a is used twice, b once"
    capture.disable()
    run(X)
    capture.enable()
    run(X)
    assert capture.stats().forwards == 4
    capture.detach(0)
    assert torch.equal(run(X), untouched(X)) and capture.stats().forwards == 4


@torch.no_grad()
def test_hooks_that_come_after_the_compiler_are_not_ignored(
    attach: Callable[..., sonde.Capture], caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    run = compiled(model)
    want = run(X)
    capture = attach(model, ["0"])
    assert torch.equal(run(X), want)
    assert capture.stats().forwards == 1
    assert "compiled again" in caplog.text


@torch.no_grad()
def test_the_compiled_module_itself_can_be_attached_to(attach: Callable[..., sonde.Capture]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    want = model(X)
    run = compiled(model)
    capture = attach(run, ["_orig_mod.0"])
    assert torch.equal(run(X), want)
    assert (capture.stats().forwards, capture.stats().captured_rows) == (1, 10)


@torch.no_grad()
def test_a_tensor_that_is_overwritten_in_a_graph_is_stored_as_it_was(rig: Rig) -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.a(x)
            return h.add_(self.b(h))

    model = Overwrites()
    want = model.a(X)
    with sonde.attach(model, ["a"], socket=rig.socket, requests=["x", "y"], token_ids=False) as capture:
        compiled(model)(X)
    assert capture.stats().overwritten == 0
    rows = {k: v for k, v in rig.rows(capture).items() if k[0] == "x"}
    assert [rows["x", "a:output", -1, p] for p in range(5)] == [want[0, p].numpy().tobytes() for p in range(5)]


def test_training_through_a_compiled_model_has_the_same_gradients(attach: Callable[..., sonde.Capture]) -> None:
    def make() -> nn.Module:
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    model, untouched = make(), make()
    capture = attach(model, ["0", "2"])
    compiled(model)(X).square().sum().backward()
    compiled(untouched)(X).square().sum().backward()
    for p, q in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert (capture.stats().forwards, capture.stats().problems) == (1, {})


@torch.no_grad()
@pytest.mark.parametrize("first", ["plain", "attached"])
def test_another_model_of_the_class_that_is_compiled_too_changes_nothing(attach: Any, first: str) -> None:
    """They share code, and the compiler would run what it made for the one without hooks for the other, too."""
    before = torch._dynamo.config.skip_nnmodule_hook_guards
    models = {"plain": Layers(), "attached": Layers()}
    capture = attach(models["attached"])
    runs = {name: compiled(m) for name, m in models.items()}
    order = [first, *(name for name in models if name != first)]
    for _ in range(2):
        for name in order:
            runs[name](X)
    stats = capture.stats()
    assert stats.forwards == 2 and stats.problems == {}
    capture.detach(0)
    assert torch._dynamo.config.skip_nnmodule_hook_guards == before
