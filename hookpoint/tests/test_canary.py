"""Fears about the self-check: that it sleeps through a fault, and that it cries wolf."""

from __future__ import annotations

import dataclasses
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="NOT RUN: torch is not installed")
pytest.importorskip("transformers", reason="NOT RUN: transformers is not installed")

from oracle import Driver  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from sonde.canary import PREFIX, Canaries, Misattribution, Reference, canaries_needed, make_reference  # noqa: E402
from sonde.errors import CaptureError  # noqa: E402
from sonde.identity import Naming  # noqa: E402

HOOKS = {("resid_post", 0): "model.layers.0", ("resid_post", 1): "model.layers.1"}
PROMPT = [5, 6, 7, 8, 9, 10, 11]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, eos_token_id=None)
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def reference(llama: LlamaForCausalLM) -> Reference:
    return make_reference(llama, PROMPT)


class Faulty:
    """Gives each request the rows of the next one, in a share of the forwards."""

    def __init__(self, identity: Any, share: float, seed: int) -> None:
        self.identity, self.share, self.random = identity, share, random.Random(seed)

    def ranges(self, module: Any, args: Any, kwargs: Any) -> Any:
        found = list(self.identity.ranges(module, args, kwargs) or [])
        if self.random.random() >= self.share:
            return found
        others = found[1:] + found[:1]
        columns = kwargs["input_ids"].shape[1]
        return [dataclasses.replace(r, first_row=o.first_row // columns * columns + r.first_row % columns)
                for r, o in zip(found, others, strict=True)]  # fmt: skip

    def finished(self, module: Any, output: Any) -> None:
        self.identity.finished(module, output)


class Server:
    """Serves batches as a user would, and gives back what was captured, as the lake would."""

    def __init__(self, model: Any, share: float, seed: int) -> None:
        self.model, self.driver, self.random = model, None, random.Random(seed)
        self.share, self.seed = share, seed

    def serve(self, prompts: list[list[int]], requests: list[str]) -> None:
        width = max(map(len, prompts))
        ids = torch.tensor([p + [0] * (width - len(p)) for p in prompts])
        mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in prompts])
        assert self.driver is not None
        self.driver.naming = Naming(requests=requests)
        with torch.no_grad():
            self.model(input_ids=ids, attention_mask=mask, use_cache=False)

    def read(self, request: str, since: float) -> Any:
        memory = self.driver.memory
        if not memory.numbers(request):
            return None
        rows = memory.tensor(request)
        return {hook: (np.array(list(rows)), np.stack([r.vectors[path].numpy() for r in rows.values()]))
                for hook, path in HOOKS.items()}  # fmt: skip

    def run(self, canaries: Canaries, batches: int) -> None:
        """Serve batches; each has three requests of others."""
        wrap = lambda identity: Faulty(identity, self.share, self.seed)  # noqa: E731
        with Driver(self.model, list(HOOKS.values()), wrap=wrap) as self.driver:
            for i in range(batches):
                prompts = [[self.random.randint(12, 63) for _ in range(self.random.randint(2, 12))] for _ in range(3)]
                self.serve(*canaries.join(prompts, [f"r{i}-{k}" for k in range(3)])[:2])
                canaries.check()


@pytest.mark.parametrize("share", [0.6, 0.05])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_fault_is_noticed_within_the_stated_number_of_canaries(
    llama: LlamaForCausalLM, reference: Reference, share: float, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    needed = canaries_needed(share)
    assert needed == {0.6: 16, 0.05: 270}[share]
    server = Server(llama, share, seed)
    canaries = Canaries(reference, server.read, rate=1, seed=seed)
    with pytest.raises(Misattribution, match=f"canary {PREFIX}.* rows that are not its own: resid_post of layer 0"):
        server.run(canaries, needed)
    assert canaries.counts.wrong == 1 and canaries.counts.sent <= needed
    print(f"a share of {share} was noticed after {canaries.counts.sent} canaries; {needed} are stated")
    assert [r.levelno for r in caplog.records if "came back with rows" in r.message] == [logging.ERROR]


def test_nothing_is_noticed_where_there_is_nothing(llama: LlamaForCausalLM, reference: Reference) -> None:
    server = Server(llama, 0.0, 4)
    canaries = Canaries(reference, server.read, rate=1, seed=4)
    server.run(canaries, 200)
    assert (canaries.counts.sent, canaries.counts.right, canaries.counts.wrong) == (200, 200, 0)


def test_a_callback_hears_every_alert_and_the_service_goes_on(llama: LlamaForCausalLM, reference: Reference) -> None:
    heard: list[Misattribution] = []
    server = Server(llama, 1.0, 5)
    server.run(canaries := Canaries(reference, server.read, rate=1, on_alert=heard.append, seed=5), 10)
    assert len(heard) == canaries.counts.wrong == 10


def test_the_rate_is_that_of_batches_and_the_place_is_random(reference: Reference) -> None:
    canaries = Canaries(reference, lambda name, since: None, rate=0.1, seed=6)
    places = [canaries.join([[1], [2], [3]], ["a", "b", "c"])[2] for _ in range(2000)]
    chosen = [p for p in places if p is not None]
    assert 140 < len(chosen) < 260 and set(chosen) == {0, 1, 2, 3} and canaries.counts.sent == len(chosen)
    while (joined := canaries.join([[1], [2]], ["a", "b"]))[2] is None:
        assert joined == ([[1], [2]], ["a", "b"], None)
    prompts, requests, place = joined
    assert prompts.pop(place) == PROMPT and requests.pop(place).startswith(PREFIX)
    assert (prompts, requests) == ([[1], [2]], ["a", "b"])


def test_canaries_that_never_come_back_are_lost_and_prove_nothing(reference: Reference) -> None:
    canaries = Canaries(reference, lambda name, since: None, rate=1, patience=-1)
    for _ in range(5):
        canaries.send()
    assert canaries.check() == canaries.counts and (canaries.counts.sent, canaries.counts.lost) == (5, 5)


@pytest.mark.parametrize("fault", ["one position", "shape", "nan", "missing", "order"])
def test_each_kind_of_wrong_row_is_told(reference: Reference, fault: str) -> None:
    canaries = Canaries(reference, lambda name, since: None)
    rows = {hook: (np.arange(len(v)), v.copy()) for hook, v in reference.values.items()}
    assert canaries.judge(rows) == []
    positions, values = rows["resid_post", 1]
    if fault == "one position":
        values = np.roll(values, 1, axis=0)
    elif fault == "shape":
        values = values[:, :-1]
    elif fault == "nan":
        values[3, 3] = np.nan
    elif fault == "missing":
        positions, values = positions[1:], values[1:]
    else:
        positions = positions[::-1]
    rows["resid_post", 1] = (positions, values)
    assert len(canaries.judge(rows)) == 1


def test_a_reference_that_cannot_tell_its_rows_apart_is_refused(llama: LlamaForCausalLM) -> None:
    same = Reference([1], 3, {("h", 0): np.ones((3, 4), np.float32)})
    with pytest.raises(CaptureError, match="could not be told apart"):
        Canaries(same, lambda name, since: None)
    with pytest.raises(CaptureError, match="its rows differ by"):
        Canaries(make_reference(llama, PROMPT), lambda name, since: None, tolerance=5.0)
    with pytest.raises(CaptureError, match="no output with a row for each token"):
        make_reference(llama, PROMPT, hooks=["logits"])


def test_a_reference_survives_its_file(reference: Reference, tmp_path: Path) -> None:
    reference.save(tmp_path / "r.npz")
    again = Reference.load(tmp_path / "r.npz")
    assert (again.prompt, again.tokens) == (PROMPT, 7)
    assert {k: v.tobytes() for k, v in again.values.items()} == {k: v.tobytes() for k, v in reference.values.items()}
    (tmp_path / "x").write_bytes(b"PK nonsense")
    with pytest.raises(CaptureError, match="is not what save wrote"):
        Reference.load(tmp_path / "x")


def test_a_reference_of_what_is_generated_has_its_tokens(llama: LlamaForCausalLM) -> None:
    longer = make_reference(llama, PROMPT, generated=4)
    assert longer.tokens == 11 and all(len(v) == 11 for v in longer.values.values())


def test_how_many_canaries_are_needed() -> None:
    assert canaries_needed(1) == 1 and canaries_needed(0.5, 0.5) == 1 and canaries_needed(0.5, 0.76) == 3
    for rate in (0, -1, 1.1):
        with pytest.raises(ValueError, match="count canaries"):
            canaries_needed(rate)
