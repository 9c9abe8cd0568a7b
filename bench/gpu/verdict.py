"""Part 6: from a tensor to the verdict of a detector on the bus, and to the end of the request in the engine.

As many requests as there are slots decode all the time. A linear probe reads one layer's residual of each token that
is generated, under the policy `wait: event`. Its level `warn` lies where about one token in 40 crosses it, and is
published; its level `stop`, where about one in 100 does, has the engine end the request. Three moments are taken of a
token that decided: the host saw the end of the step that computed it, its capture was complete in the ring (`commit`),
the verdict reached a subscriber of the bus. All clocks are of one machine.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import decoder
import numpy as np
import pyarrow as pa
import rig
import torch
from engine import Engine, Request, serve

SLOTS = 64 if rig.ON_GPU else 2
PROMPT, NEW, CHUNK = (32, 96, 32) if rig.ON_GPU else (4, 12, 4)
TAIL = {"warn": 1 / 40, "stop": 1 / 100} if rig.ON_GPU else {"warn": 1 / 4, "stop": 1 / 6}
RING = 1 << 30 if rig.ON_GPU else 1 << 26
MANIFEST = """\
format: 1
name: bench
version: "1"
description: A random direction, for measuring how fast a verdict comes.
binding: {{model_weights: any, quantisation: any, adapter: any, hook: resid_post, layer: {layer}, dtype: bf16,
  width: {width}, phase: decode}}
feature: {{kind: linear}}
aggregation: {{kind: max_rolling_mean, window: 1}}
levels:
  - {{name: warn, threshold: {warn:.7g}, false_alarm_rate: 0.5, measured: {measured}}}
  - {{name: stop, threshold: {stop:.7g}, false_alarm_rate: 0.5, measured: {measured}}}
limits: {{max_stop_rate: 1.0}}
training: {{lake_version: 1, stream: "0000000000000000", positive: "a=b", negative: every other request,
  fit_requests: 1, fit_rows: 1, held_out_requests: 1, held_out_rows: 1, token_accuracy: 0.5, baseline_accuracy: 0.5,
  request_auroc: 0.5, median_tokens_to_detection: 1, l2: 0.001}}
files: {{weights_sha256: {weights}, test_vectors_sha256: {vectors}}}
"""
MEASURED = "{clean_requests: 10, false_alarms: 1, upper_bound_95: 0.5, positive_requests: 10, detected: 9}"


def bundle(folder: Path, layer: int, rows: torch.Tensor, seed: int) -> None:
    """Write a bundle whose thresholds are quantiles of the scores of these rows [rows, width], of bf16."""
    folder.mkdir(parents=True)
    width = rows.shape[1]
    values = rows.float().cpu().double()
    weight = torch.randn(width, generator=torch.Generator().manual_seed(seed)) / values.std() / width**0.5
    scores = values @ weight.double()
    head = json.dumps({"weight": {"dtype": "F32", "shape": [width], "data_offsets": [0, 4 * width]},
                       "bias": {"dtype": "F32", "shape": [1], "data_offsets": [4 * width, 4 * width + 4]}})  # fmt: skip
    head += " " * (-len(head) % 8)
    weights = struct.pack("<Q", len(head)) + head.encode() + weight.numpy().tobytes() + struct.pack("<f", 0)
    few = slice(0, 32)
    raw = rows[few].contiguous().view(torch.int16).cpu().numpy()
    vectors = pa.BufferOutputStream()
    table = pa.table({
        "vec": pa.array([r.tobytes() for r in raw], pa.binary(2 * width)),
        "score": pa.array(scores[few].numpy().astype(np.float32)),
        "aggregate": pa.array(np.maximum(np.maximum.accumulate(scores[few].numpy()), 0).astype(np.float32)),
    })  # fmt: skip
    with pa.ipc.new_file(vectors, table.schema) as file:
        file.write_table(table)
    blobs = {"weights.safetensors": weights, "testvectors.arrow": vectors.getvalue().to_pybytes()}
    for name, blob in blobs.items():
        (folder / name).write_bytes(blob)
    digests = [hashlib.sha256(b).hexdigest() for b in blobs.values()]
    levels = {name: float(scores.quantile(1 - share)) for name, share in TAIL.items()}
    named = dict(zip(("weights", "vectors"), digests, strict=True))
    (folder / "detector.yaml").write_text(
        MANIFEST.format(layer=layer, width=width, measured=MEASURED, **named, **levels)
    )


def watch(url: str, ready: Any, stop: Any, out: Any) -> None:
    """Note when detections arrive, in a process of its own: (level, number, position, capture, verdict, arrival)."""
    import asyncio

    import nats

    async def listen() -> list[tuple[Any, ...]]:
        seen, heard = [], []  # type: list[tuple[Any, ...]], list[tuple[int, bytes]]
        connection = await nats.connect(url)

        async def note(message: Any) -> None:
            heard.append((time.time_ns(), message.data))

        await connection.subscribe("sonde.v1.*.*.*.detections.>", cb=note)
        await connection.flush()
        ready.set()
        while not stop.is_set():
            await asyncio.sleep(0.05)
        await connection.close()
        for arrival, data in heard:
            with pa.ipc.open_stream(data) as reader:
                for row in reader.read_all().to_pylist():
                    seen.append((row["level"], row["number"], row["position"], row["capture_ns"], row["verdict_ns"],
                                 arrival, row["outcome"]))  # fmt: skip
        return seen

    out.put(asyncio.run(listen()))


class Timed(Engine):
    """An engine that knows when the host saw the end of the step of each token."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing was computed yet."""
        self.ended: dict[tuple[int, int], int] = {}  #: of a request's number and a position, ns since 1970
        self.requests: dict[int, Request] = {}
        self._places: list[list[tuple[int, int]]] = []
        super().__init__(*args, **kwargs)

    def open(self, r: Request, slot: int) -> None:
        """Know it by its number."""
        super().open(r, slot)
        self.requests[r.number] = r

    def fetch(self, running: Any, prompt: bool, turn: int) -> Any:
        """Know which positions the round computed."""
        self._places.append([(r.number, r.length - 1) for r in running])
        return super().fetch(running, prompt, turn)

    def saw(self) -> None:
        """Take the time."""
        now = time.time_ns()
        self.ended.update((p, now) for p in self._places.pop(0))


def rows_of(model: decoder.Decoder, layer: int) -> torch.Tensor:
    """Compute residuals of random tokens, to set thresholds by."""
    out: list[torch.Tensor] = []
    m = rig.twin(model)
    rig.plain_hooks(m, rig.taps(m, [f"resid_post.{layer}"]), lambda _i, x: out.append(x.detach()[:, 0].clone()))
    m.cache.rows.copy_(torch.arange(SLOTS, dtype=torch.int32))
    m.cache.lengths.zero_()
    for _ in range(32):
        m.cache.last.random_(3, model.config.vocab_size)
        decoder.decode(m, SLOTS)
    return torch.cat(out[8:])


def quantiles(ns: list[int]) -> dict[str, Any]:
    """Give milliseconds."""
    ms = np.array(ns) / 1e6
    return {"count": len(ns), **{f"p{q}": round(float(np.percentile(ms, q)), 3) if len(ns) else None
                                 for q in (50, 90, 99)}}  # fmt: skip


@torch.no_grad()
def run(results: rig.Results, shape: str, seed: int, seconds: float) -> None:
    """Measure with the level published alone, and with requests that are stopped."""
    seconds = seconds or (12.0 if rig.ON_GPU else 1.0)
    model = decoder.make(shape, SLOTS, PROMPT + NEW, rig.DEVICE)
    layer = model.config.num_hidden_layers // 2
    rows = rows_of(model, layer)
    for mode in ("alert", "enforce"):
        name = f"verdict: {shape}, {SLOTS} requests at a time, {mode}"
        if not results.has(name):
            results.add(name, layer=layer, seed=seed, **measure(model, layer, rows, seed, seconds, mode))


def measure(
    model: decoder.Decoder, layer: int, rows: torch.Tensor, seed: int, seconds: float, mode: str
) -> dict[str, Any]:
    """Serve for a while under a detector."""
    folder = Path(tempfile.mkdtemp(prefix="sonde-bundle-")) / "bench"
    bundle(folder, layer, rows, seed)
    with rig.agent("*", stored=True, wait="event", detector=f"{{bundle: {folder}, mode: {mode}}}") as agent:
        engine = Timed(model, CHUNK, [SLOTS], stoppable=mode == "enforce", hooks=[f"resid_post.{layer}"],
                       socket=agent.socket, data_bytes=RING)  # fmt: skip
        context = multiprocessing.get_context("spawn")
        ready, stop, out = context.Event(), context.Event(), context.Queue()
        watcher = context.Process(target=watch, args=(f"nats://{agent.bus}", ready, stop, out))
        watcher.start()
        ready.wait(60)
        count = SLOTS * 2
        prompts = torch.randint(3, model.config.vocab_size, (count, PROMPT), device=rig.DEVICE)
        served, steps, end, wave = [], [], time.monotonic() + seconds, 0
        while time.monotonic() < end:
            wave += 1
            some = [Request(f"{wave}-{i}", 0.0, PROMPT, NEW) for i in range(count)]
            s = serve(engine, some, prompts, SLOTS)
            served += some
            steps += [seen - launched for launched, seen, rows in s.rounds if rows == SLOTS]
        time.sleep(1)
        stop.set()
        seen = out.get(timeout=60)
        watcher.join(30)
        aborts = agent.metric("sonde_detector_aborts_total")
        engine.close()
        stats = engine.capture.stats()
    return {"seconds": seconds, "requests": len(served), "tokens": sum(len(r.seen) for r in served),
            "full_steps": len(steps), **moments(engine, seen, mode), "aborts_asked": aborts,
            "captured_rows": stats.captured_rows, "dropped": stats.dropped_rows,
            "problems": stats.problems}  # fmt: skip


def moments(engine: Timed, seen: list[tuple[Any, ...]], mode: str) -> dict[str, Any]:
    """Say how long it took, and what was generated before a request ended."""
    first = [x for x in seen if not x[6]]
    known = [(x, engine.ended[x[1], x[2]]) for x in first if (x[1], x[2]) in engine.ended]
    out: dict[str, Any] = {
        "commit_to_verdict": quantiles([x[4] - x[3] for x in first]),
        "commit_to_published": quantiles([x[5] - x[3] for x in first]),
        "step_end_to_commit": quantiles([x[3] - at for x, at in known]),
        "step_end_to_published": quantiles([x[5] - at for x, at in known]),
    }
    if mode != "enforce":
        return out
    leaked, open_ended = [], 0
    for x in first:
        r = engine.requests.get(x[1])
        if x[0] == "stop" and r is not None and r.stopped >= 0:
            leaked.append(r.prompt + r.launched - 1 - (x[2] + 1))
        elif x[0] == "stop":
            open_ended += 1
    return {**out, "stopped": len(leaked), "ended_before": open_ended,
            "leaked_tokens": {"mean": round(float(np.mean(leaked)), 2) if leaked else None,
                              "max": max(leaked, default=None)}}  # fmt: skip
