"""The fears of test_attribution.py and test_canary.py, through a real agent, bus and lake."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="NOT RUN: torch is not installed")
pytest.importorskip("transformers", reason="NOT RUN: transformers is not installed")

from capture_rig import Rig, make_rig  # noqa: E402
from oracle import alone  # noqa: E402
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM  # noqa: E402

import sonde  # noqa: E402
from sonde.canary import Canaries, Misattribution, from_bus, from_lake, make_reference  # noqa: E402
from sonde.huggingface import HuggingFace  # noqa: E402
from sonde.identity import Naming  # noqa: E402

TAPS = {("resid_post", 0): "model.layers.0", ("resid_post", 1): "model.layers.1"}
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16]]
WIDTH = max(map(len, PROMPTS))
IDS = torch.tensor([[0] * (WIDTH - len(p)) + p for p in PROMPTS])
MASK = torch.tensor([[0] * (WIDTH - len(p)) + [1] * len(p) for p in PROMPTS])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    yield from make_rig(tmp_path_factory)


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(8)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, eos_token_id=[2, 3, 20, 21])
    ).eval()  # fmt: skip


def closed(rig: Rig, epoch: str) -> None:
    """Wait until everything of an epoch is stored."""
    end = time.monotonic() + 120
    while True:
        lake = rig.opened(end)
        facts = lake.table("ledger", columns=["fact", "epoch"]).to_pylist() if lake else []
        if any(f["fact"] == "closed" and f["epoch"] == epoch for f in facts):
            return
        assert time.monotonic() < end, f"epoch {epoch} was not closed in the lake:\n{rig.log()}"
        time.sleep(0.1)


def ended(tokens: list[int]) -> list[int]:
    stop = next((i for i, t in enumerate(tokens) if t in (2, 3, 20, 21)), len(tokens) - 1)
    return tokens[: stop + 1]


def stored_right(lake: sonde.Lake, model: Any, request: str, sample: int, tokens: list[int], epoch: str) -> int:
    """Compare what the lake gives of a sequence with an independent forward of it; count the rows."""
    want = alone(model, tokens, [*TAPS.values(), "lm_head"])
    requests = lake.requests().to_pylist()
    for (hook, layer), path in TAPS.items():
        t = lake.tensor(request, hook, layer, sample=sample)
        assert list(t.positions) == list(range(len(tokens) - 1)) and t.missing == () and t.epoch == epoch
        np.testing.assert_allclose(t.values, want[path][: len(tokens) - 1].numpy(), rtol=1e-4, atol=1e-4)
    prompt = next(r["prompt_tokens"] for r in requests if (r["request"], r["sample"]) == (request, sample))
    logits = lake.tensor(request, "logits", sample=sample)
    assert list(logits.positions) == list(range(prompt - 1, len(tokens) - 1)), "logits are those that were sampled from"
    np.testing.assert_allclose(logits.values, want["lm_head"][prompt - 1 : len(tokens) - 1], rtol=1e-3, atol=1e-3)
    ids = lake.tensor(request, "token_ids", sample=sample)
    assert ids.values.reshape(-1).tolist() == tokens[:-1]
    return len(tokens) - 1


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"do_sample": True, "num_return_sequences": 4},
    "chunked": {"prefill_chunk_size": 4},
    "static": {"cache_implementation": "static"},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "uncached": {"use_cache": False},
}


def test_every_mode_of_generate_reads_back_as_what_it_returned(rig: Rig, llama: LlamaForCausalLM) -> None:
    returned: list[tuple[str, int, list[int]]] = []
    with sonde.capture(llama, ["resid_post", "logits"], socket=rig.socket, mode="complete") as cap:
        for mode, options in MODES.items():
            names = [f"{mode}-{r}" for r in range(3)]
            with cap.request(*names):
                out = llama.generate(IDS, attention_mask=MASK, max_new_tokens=10, **{"do_sample": False, **options})
            n = options.get("num_return_sequences", 1)
            for r, new in enumerate(out[:, WIDTH:].tolist()):
                returned.append((names[r // n], r % n, PROMPTS[r // n] + ended(new)))
        for r, prompt in enumerate(PROMPTS):
            with cap.request(f"lookup-{r}"):
                ids = torch.tensor([prompt * 3])
                out = llama.generate(ids, max_new_tokens=10, prompt_lookup_num_tokens=3, do_sample=False)
            returned.append((f"lookup-{r}", 0, prompt * 3 + ended(out[0, ids.shape[1] :].tolist())))
        config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=[2, 3, 20, 21])
        cb = ContinuousBatchingConfig(max_batch_tokens=16, num_blocks=32, page_size=8)
        with cap.request("batch-0", "batch-1", "batch-2"):
            packed = llama.generate_batch(PROMPTS, generation_config=config, continuous_batching_config=cb)
        for key, o in packed.items():
            returned.append((f"batch-{key[4:]}", 0, o.prompt_ids + o.generated_tokens))
        epoch, stats = cap.epoch, cap.stats()
    assert stats.failures == 0 and stats.unidentified == 0, stats
    assert stats.dropped_rows == {}, stats
    closed(rig, epoch)
    lake = sonde.open_lake(rig.lake)
    rows = sum(stored_right(lake, llama, *one, epoch) for one in returned)
    assert len(returned) == 3 + 12 + 3 + 3 + 6 + 3 + 3 + 3
    print(f"{len(returned)} sequences with {rows} tokens read back right")
    print(rig.sonde("lake", "verify", "--lake", str(rig.lake)).stdout)


def test_two_threads_on_one_model_keep_their_requests_apart(rig: Rig, llama: LlamaForCausalLM) -> None:
    returned: dict[str, list[int]] = {}
    failed: list[BaseException] = []

    def work(cap: sonde.Capture, who: int) -> None:
        try:
            for turn in range(6):
                names = [f"thread-{who}-{turn}-{r}" for r in range(3)]
                options = {"num_beams": 2} if (who + turn) % 2 else {}
                with cap.request(*names):
                    out = llama.generate((IDS + who).clamp(max=63) * MASK, attention_mask=MASK, max_new_tokens=6,
                                         do_sample=False, **options)  # fmt: skip
                for r, name in enumerate(names):
                    returned[name] = [t + who for t in PROMPTS[r]] + ended(out[r, WIDTH:].tolist())
        except BaseException as e:  # noqa: BLE001 (the test looks at it)
            failed.append(e)

    with sonde.capture(llama, ["resid_post", "logits"], socket=rig.socket, mode="complete") as cap:
        threads = [threading.Thread(target=work, args=(cap, who)) for who in range(2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        epoch, stats = cap.epoch, cap.stats()
    assert failed == [] and (stats.failures, stats.unidentified) == (0, 0), (failed, stats)
    closed(rig, epoch)
    lake = sonde.open_lake(rig.lake)
    for name, tokens in returned.items():
        stored_right(lake, llama, name, 0, tokens, epoch)
    assert len(returned) == 36


def test_an_abort_of_the_bus_stops_one_row_of_generate(rig: Rig, llama: LlamaForCausalLM) -> None:
    heard: list[str] = []
    with sonde.capture(llama, ["resid_post", "logits"], socket=rig.socket, engine="stops") as cap:
        cap.wait_attached()

        class Slow(torch.nn.Module):
            """Gives the abort time to arrive: it is sent when the tenth token is chosen."""

            sent = False

            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
                if input_ids.shape[1] == WIDTH + 10 and not self.sent:
                    type(self).sent = True
                    thread = threading.Thread(target=abort, args=(rig, cap, "stopped-1", heard))
                    thread.start()
                    thread.join(30)
                return torch.zeros(input_ids.shape[0], dtype=torch.bool)

        with cap.request(*(f"stopped-{r}" for r in range(3))):
            out = llama.generate(IDS, attention_mask=MASK, max_new_tokens=30, min_new_tokens=30, do_sample=False,
                                 stopping_criteria=[Slow()])  # fmt: skip
        epoch = cap.epoch
    assert heard == ["stopped"], heard
    closed(rig, epoch)
    ends = {r["request"]: r for r in sonde.open_lake(rig.lake).requests().to_pylist() if r["epoch"] == epoch}
    assert ends["stopped-1"]["reason"] == "detector" and ends["stopped-0"]["reason"] == "length"
    generated = ends["stopped-1"]["generated_tokens"]
    assert 10 <= generated < 30 and set(out[1, WIDTH + generated :].tolist()) == {0}
    stored_right(sonde.open_lake(rig.lake), llama, "stopped-1", 0,
                 PROMPTS[1] + out[1, WIDTH : WIDTH + generated].tolist(), epoch)  # fmt: skip


def abort(rig: Rig, cap: sonde.Capture, request: str, heard: list[str]) -> None:
    """Ask for the end of a request as a detector does, over the bus."""
    (number,) = [t.number for t in cap.identity._book if t.name["external_id"] == request]
    command = {"epoch": cap.epoch, "number": number, "sample": 0, "engine_id": "", "position": 9,
               "expires_wall_ns": time.time_ns() + 60 * 10**9, "alert_id": "a"}  # fmt: skip

    async def ask() -> None:
        nc = await nats.connect(rig.url)
        answer = await nc.request("sonde.cmd.default.stops.0.abort", json.dumps(command).encode(), timeout=20)
        heard.append(json.loads(answer.data)["outcome"])
        await nc.close()

    asyncio.run(ask())


class Faulty(HuggingFace):
    """Gives each request the rows of the next one."""

    def ranges(self, module: Any, args: Any, kwargs: Any) -> Any:
        found = super().ranges(module, args, kwargs)
        return found and [dataclasses.replace(r, first_row=o.first_row)
                          for r, o in zip(found, [*found[1:], found[0]], strict=True)]  # fmt: skip


@pytest.mark.parametrize("source", ["lake", "bus"])
def test_a_canary_through_the_whole_pipeline(rig: Rig, llama: LlamaForCausalLM, source: str) -> None:
    reference = make_reference(llama, [30, 31, 32, 33], generated=3)
    hooks, calls = list(reference.values), [Naming()]

    def serve(canaries: Canaries, identity: Any) -> str:
        with sonde.capture(llama, ["resid_post"], socket=rig.socket, identity=identity) as cap:
            prompts, names, place = canaries.join([[40, 41, 42, 43], [50, 51, 52, 53]], [f"{source}-a", f"{source}-b"])
            assert place is not None
            calls.append(Naming(requests=names))
            with cap.request(*names):
                llama.generate(torch.tensor(prompts), max_new_tokens=6, min_new_tokens=6, do_sample=False)
            return cap.epoch

    def read(request: str, since: float) -> Any:
        if source == "lake":
            return from_lake(sonde.open_lake(rig.lake), hooks)(request, since)
        return from_bus(rig.url, hooks, reference.tokens)(request, since)

    canaries = Canaries(reference, read, rate=1, seed=1)
    closed(rig, serve(canaries, None))
    assert canaries.check().right == 1
    closed(rig, serve(canaries, lambda r: Faulty(llama, r, lambda: calls[-1], lambda e: None)))
    with pytest.raises(Misattribution, match="resid_post of layer 0 is off at"):
        canaries.check()
    assert (canaries.counts.sent, canaries.counts.right, canaries.counts.wrong) == (2, 1, 1)


def test_shards_of_two_ranks_are_put_together(rig: Rig, tmp_path: Path) -> None:
    torch.manual_seed(9)
    whole = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, initializer_range=0.3, pad_token_id=0, eos_token_id=None)
    ).eval()  # fmt: skip
    whole.save_pretrained(tmp_path / "model")
    job = {"model": str(tmp_path / "model"), "meeting": str(tmp_path / "meeting"), "socket": rig.socket, "engine": "tp",
           "ids": IDS.tolist(), "mask": MASK.tolist(), "requests": ["tp-0", "tp-1", "tp-2"]}  # fmt: skip
    script = str(Path(__file__).with_name("parallel_rank.py"))
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(sonde.__file__).parents[1])}
    ranks = [subprocess.Popen([sys.executable, script, json.dumps({**job, "rank": r})], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, env=env)
             for r in range(2)]  # fmt: skip
    try:
        said = [p.communicate(timeout=240) for p in ranks]
    finally:
        for p in ranks:
            p.kill()
    assert [p.returncode for p in ranks] == [0, 0], said
    told = [json.loads(out.splitlines()[-1]) for out, _ in said]
    assert told[0]["out"] == told[1]["out"] and told[0]["problems"] == told[1]["problems"] == {}
    for t in told:
        closed(rig, t["epoch"])
    lake = sonde.open_lake(rig.lake)
    paths = {"mlp_post": "model.layers.{}.mlp.act_fn", "q": "model.layers.{}.self_attn.q_proj"}
    for r, prompt in enumerate(PROMPTS):
        tokens = prompt + told[0]["out"][r][WIDTH:]
        for layer in range(2):
            taps = [p.format(layer) for p in (*paths.values(), "model.layers.{}.mlp.up_proj", "model.layers.{}")]
            want = {k: v[: len(tokens) - 1].numpy() for k, v in alone(whole, tokens, taps).items()}
            post = want[taps[0]] * want[taps[2]]
            for hook, expected in (("mlp_post", post), ("q", want[taps[1]]), ("resid_post", want[taps[3]])):
                t = lake.tensor(f"tp-{r}", hook, layer)
                assert list(t.positions) == list(range(len(tokens) - 1))
                np.testing.assert_allclose(t.values.reshape(expected.shape), expected, rtol=1e-3, atol=1e-4)
                if hook == "resid_post":
                    continue
                halves = [lake.tensor(f"tp-{r}", hook, layer, shard=s) for s in range(2)]
                assert {h.epoch for h in halves} == {t["epoch"] for t in told}
                assert np.concatenate([h.values for h in halves], axis=-1).tobytes() == t.values.tobytes()
                one = lake.tensor(f"tp-{r}", hook, layer, epoch=told[1]["epoch"])
                assert one.values.tobytes() == t.values.tobytes(), "the epoch of one rank finds the other's shard"
