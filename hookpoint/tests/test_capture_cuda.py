"""Fears about a GPU: what is gathered in its memory, eager and compiled, is stored bit for bit under the right name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from capture_rig import PlainHooks, Rig, all_taps, batch, expected, make_model, make_rig

import sonde
from sonde import libsonde

REQUESTS = ["a", "b", "c"]
HOOKS = ["resid_post", "resid_mid", "q", "z", "mlp_post", "logits"]

if not torch.cuda.is_available():
    pytest.skip("NOT RUN: needs a GPU", allow_module_level=True)
if not libsonde.load().sonde_has_cuda():
    pytest.skip("NOT RUN: libsonde was built without CUDA; `make -C cuda cuda` builds it", allow_module_level=True)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from make_rig(tmp_path_factory)


def on_device(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v.cuda() for k, v in inputs.items()}


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Qwen3-MoE"])
@torch.no_grad()
def test_hooks_of_a_gpu_are_stored_bit_for_bit(rig: Rig, name: str) -> None:
    model, inputs = make_model(name).to("cuda", torch.bfloat16), batch()
    taps = all_taps(model)
    with sonde.attach(model, ["*"], socket=rig.socket, requests=REQUESTS, token_ids=False) as capture:
        plain = PlainHooks(model, taps)
        out = model(**on_device(inputs))
        plain.remove()
    assert torch.equal(out.logits, model(**on_device(inputs)).logits)
    assert capture.stats().problems == {} and capture.stats().dropped_rows == {}
    seen = {t: [x.cpu() for x in xs] for t, xs in plain.seen.items()}
    stored, wanted = rig.rows(capture), expected(seen, inputs["attention_mask"], REQUESTS)
    assert stored.keys() == wanted.keys()
    assert [k for k in wanted if stored[k] != wanted[k]] == []


@torch.no_grad()
def test_token_ids_of_a_gpu(rig: Rig) -> None:
    model, inputs = make_model("Llama").cuda(), batch(rows=1)
    with sonde.attach(model, ["resid_post"], socket=rig.socket, requests=["a"]) as capture:
        model(**on_device(inputs))
    stored = rig.rows(capture)
    for position, token in enumerate(inputs["input_ids"][0].to(torch.int32)):
        assert stored["a", "token_ids", -1, position] == token.numpy().tobytes()


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
@torch.no_grad()
def test_compiled_code_of_a_gpu_stores_what_it_computed(rig: Rig, mode: str | None) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    model = make_model("Llama").to("cuda", torch.bfloat16)
    taps = [t for t in all_taps(model) if t.hook in HOOKS]
    plain = PlainHooks(model, taps)  # traced, too: the same graph returns what it computed

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        seen = [x for t in taps for x in plain.seen[t]]
        for xs in plain.seen.values():
            xs.clear()
        return logits, seen

    capture = sonde.attach(model, HOOKS, socket=rig.socket, token_ids=False)
    run = torch.compile(forward, fullgraph=True, mode=mode)
    wanted, calls = {}, 6
    for call in range(calls):
        inputs = batch(seed=call, rows=3, columns=8)
        inputs["attention_mask"][:] = 1
        ids = [f"{call}-{r}" for r in range(3)]
        with capture.request(*ids):
            torch.compiler.cudagraph_mark_step_begin()
            _, seen = run(**on_device(inputs))
        pairs = {t: [x.cpu()] for t, x in zip(taps, seen, strict=True)}
        wanted.update(expected(pairs, inputs["attention_mask"], ids))
    stats = capture.stats()
    capture.detach()
    plain.remove()
    assert stats.forwards == calls and stats.problems == {}
    assert torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] == 0
    stored = rig.rows(capture)
    assert stored.keys() == wanted.keys()
    assert [k for k in wanted if stored[k] != wanted[k]] == []
