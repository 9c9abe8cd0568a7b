"""Fears about the short way of a token: it must notice each tensor that is not what the step before had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="NOT RUN: torch is not installed")
pytest.importorskip("transformers", reason="NOT RUN: transformers is not installed")

import torch  # noqa: E402
from capture_rig import Key, PlainHooks, Rig, make_model, make_rig  # noqa: E402

import sonde  # noqa: E402
from sonde.names import Catalogue  # noqa: E402
from sonde.native import Step, functions  # noqa: E402
from sonde.recorder import Recorder  # noqa: E402

REQUESTS, PROMPT, TOKENS, CHANGE = ["a", "b"], 5, 12, 7  # CHANGE: the forward from which on something is different


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from make_rig(tmp_path_factory)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note of each step that could go the short way whether it did."""
    if functions() is None:
        pytest.skip("NOT RUN: this PyTorch has no DLPack exchange API that libsonde knows")
    seen: list[bool] = []
    before = Recorder.repeat_step

    def repeat_step(self: Recorder, *args: Any) -> bool:
        seen.append(before(self, *args))
        return seen[-1]

    monkeypatch.setattr(Recorder, "repeat_step", repeat_step)
    return seen


class Own(torch.Tensor):
    """A class of tensors whose memory cannot be read."""


def spread(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, x + 1], -1)[..., 0]


def wide(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x + 1], -1)[..., : x.shape[-1]]


def later(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:1] + 1, x])[1:]


def generate(model: Any) -> torch.Tensor:
    ids = torch.arange(3, 3 + 2 * PROMPT).reshape(2, PROMPT)
    model.generation_config.eos_token_id = None
    return model.generate(ids, max_new_tokens=TOKENS, do_sample=False)


def wanted(plain: PlainHooks) -> dict[Key, bytes]:
    out: dict[Key, bytes] = {}
    for tap, tensors in plain.seen.items():
        for r, request in enumerate(REQUESTS):
            for position, x in enumerate(torch.cat(tensors, 1)[r]):
                out[request, tap.hook, tap.layer, position] = x.as_subclass(torch.Tensor).numpy().tobytes()
    return out


def changing(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    calls = [0]

    def hook(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor | None:
        calls[0] += 1
        return change(output) if calls[0] > CHANGE else None

    return hook


@pytest.mark.parametrize("change", [spread, wide, later], ids=lambda f: f.__name__)
def test_a_tensor_that_lies_otherwise_from_some_token_on(rig: Rig, short: list[bool], change: Any) -> None:
    model = make_model("Llama")
    model.model.layers[0].register_forward_hook(changing(change))
    plain = PlainHooks(model, Catalogue(model).choose(["resid_post"]))
    with sonde.attach(model, ["resid_post"], socket=rig.socket, requests=REQUESTS, token_ids=False) as capture:
        generate(model)
    assert capture.stats().problems == {} and short.count(True) >= CHANGE - 3
    assert rig.rows(capture) == wanted(plain)


def test_a_tensor_of_another_class_from_some_token_on(rig: Rig, short: list[bool]) -> None:
    model = make_model("Llama")
    plain = PlainHooks(model, Catalogue(model).choose(["resid_post"]))
    model.model.layers[0].register_forward_hook(changing(lambda x: x.as_subclass(Own)))
    with sonde.attach(model, ["resid_post"], socket=rig.socket, requests=REQUESTS, token_ids=False) as capture:
        generate(model)
    assert short.count(False) >= 1 and any("class Own" in p for p in capture.stats().problems)
    stored, all_rows = rig.rows(capture), wanted(plain)
    assert stored and {k: all_rows[k] for k in stored} == stored
    gone = {k for k in all_rows if k[2] == 0 and k[3] >= PROMPT + CHANGE - 1}
    assert gone and not gone & stored.keys() and not {k for k in all_rows if k[3] < PROMPT + CHANGE - 1} - stored.keys()


def test_a_tensor_that_is_overwritten_from_some_token_on(rig: Rig, short: list[bool]) -> None:
    model = make_model("Llama")
    plain = PlainHooks(model, Catalogue(model).choose(["resid_post"]))
    with sonde.attach(model, ["resid_post"], socket=rig.socket, requests=REQUESTS, token_ids=False) as capture:
        handle = model.model.layers[0].register_forward_hook(changing(lambda x: x.mul_(0.5)))
        generate(model)
    handle.remove()
    assert capture.stats().overwritten == 1 and short.count(False) >= 1
    stored, all_rows = rig.rows(capture), wanted(plain)
    assert {k: all_rows[k] for k in stored} == stored
    missing = all_rows.keys() - stored.keys()
    assert missing == {(r, "resid_post", 0, PROMPT + CHANGE - 1) for r in REQUESTS}


def test_rows_are_cut_out_of_wider_ones_on_the_short_way(rig: Rig, short: list[bool]) -> None:
    model = make_model("Phi")
    taps = Catalogue(model).choose(["*"])
    plain = PlainHooks(model, [t for t in taps if t.columns is None and t.split is None and not t.sampled])
    with sonde.attach(model, ["*"], socket=rig.socket, requests=REQUESTS, token_ids=False) as capture:
        generate(model)
    assert short and all(short)
    stored = rig.rows(capture)
    for key, value in wanted(plain).items():
        assert stored[key] == value, key


def test_what_is_no_plain_tensor_is_not_described() -> None:
    native = functions()
    if native is None:
        pytest.skip("NOT RUN: this PyTorch has no DLPack exchange API that libsonde knows")
    x = torch.zeros(2, 3)
    others: list[Any] = [
        None, 3, "x", [x], x.numpy(), x.as_subclass(Own), torch.nn.Parameter(x), x.to_sparse(), x.to("meta"),
        torch.zeros([1] * 11), torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    ]  # fmt: skip
    assert [i for i, o in enumerate(others) if native.describe(o) is not None] == []
    assert native.describe(x) != native.describe(x.T) != native.describe(x.int().T)
    assert native.describe(x) == native.describe(torch.ones(2, 3))
    assert native.describe() is None and native.advance() == 0 and native.are_false() == 0 and native.run() == 1


def test_a_step_of_other_things_than_it_was_made_for_does_not_happen() -> None:
    native = functions()
    if native is None:
        pytest.skip("NOT RUN: this PyTorch has no DLPack exchange API that libsonde knows")
    import ctypes

    x = torch.zeros(2, 3)
    copies, number = (ctypes.c_uint64 * 8)(), ctypes.c_uint64(7)
    step = Step(0, b"\0" * 4, (ctypes.addressof(copies), 1), number)
    assert step.describe([(4, x, 0)], [0], (0, 0))
    for taken in ([], [(4, x, 0)] * 2, [(5, x, 0)], [(4, x, 1)], [(4, x.T, 0)], [(4, None, None)], [(4, [], None)]):
        assert native.run(taken, step.address) == 1, taken
    assert native.run([(4, x, 0)], step.address) < 0  # it fits, and there is no writer


@pytest.mark.parametrize(
    ("flags", "same"),
    [([False, False], 1), ([], 1), ([False, True], 0), ([[False]], 0), ([0, 0], 0), ([0.0], 0)],
)
def test_only_booleans_are_false(flags: Any, same: int) -> None:
    native = functions()
    if native is None:
        pytest.skip("NOT RUN: this PyTorch has no DLPack exchange API that libsonde knows")
    x = torch.tensor(flags) if flags else torch.zeros(0, dtype=torch.bool)
    assert native.are_false(x) == same
    assert native.are_false(torch.tensor([False, True, False, True])[::2]) == 1
    assert native.are_false(torch.tensor([False, True, False, True])[1::2]) == 0
