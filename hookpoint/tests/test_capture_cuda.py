"""Fears about a GPU: what is gathered in its memory, eager and compiled, is stored bit for bit under the right name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from capture_rig import PlainHooks, Rig, all_taps, batch, expected, make_model, make_rig

import sonde
from sonde import libsonde
from sonde.recorder import Recorder
from sonde.step import Range

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


class Slots:
    """Names the rows of a batch as a serving engine would, which knows them on the host."""

    def __init__(self, recorder: Recorder, rows: int) -> None:
        self.numbers = [recorder.open_request(f"slot-{r}") for r in range(rows)]
        self.position = 0

    def ranges(self, *_: object) -> list[Range]:
        return [Range(n, self.position, 1, r, sampled=True) for r, n in enumerate(self.numbers)]

    def finished(self, *_: object) -> None:
        self.position += 1


@torch.no_grad()
def test_each_replay_of_a_graph_is_stored_and_padding_is_not(rig: Rig) -> None:
    model = make_model("Llama").to("cuda", torch.bfloat16)
    taps = [t for t in all_taps(model) if t.hook in HOOKS]
    ids = torch.zeros(4, 1, dtype=torch.int64, device="cuda")
    wanted = {}
    with sonde.attach(model, HOOKS, socket=rig.socket, identity=lambda r: Slots(r, 4), token_ids=True) as capture:
        plain = PlainHooks(model, taps)

        def call() -> list[torch.Tensor]:
            for xs in plain.seen.values():
                xs.clear()
            model(input_ids=ids, use_cache=False)
            return [plain.seen[t][0] for t in taps]

        graphs = [capture.graph(call) for _ in range(2)]  # they share the ring
        capture.recorder.wait_attached(10)
        for step in range(6):
            ids.random_(3, 97)
            busy = 4 - step % 2
            graphs[step % 2].replay(capture.identity.ranges()[:busy])
            torch.cuda.synchronize()
            for t, x in zip(taps, graphs[step % 2].output, strict=True):
                for r in range(busy):
                    wanted[f"slot-{r}", t.hook, t.layer, step] = x[r].cpu().float().numpy().tobytes()
            for r in range(busy):
                wanted[f"slot-{r}", "token_ids", -1, step] = ids[r].cpu().to(torch.int32).numpy().tobytes()
            capture.identity.finished()
        plain.remove()
        stats = capture.stats()
    assert stats.problems == {} and stats.forwards == 6 and sum(stats.dropped_rows.values()) == 0
    stored = rig.rows(capture)
    assert stored.keys() == wanted.keys()
    assert [k for k in wanted if stored[k] != wanted[k]] == []
    with pytest.raises(sonde.CaptureError, match="detached"):
        graphs[0].replay([])
