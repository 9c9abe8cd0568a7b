"""Part 1: every row in the table has the bits that the model computed in that very step, under the right name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import rig
import torch
import transformers

import sonde

Expected = list[list[np.ndarray]]  # of each tap and request: [positions, elements], the bits of bf16
RING = 1 << 30


class Clones:
    """Clones of what taps see, of one forward after the other."""

    def __init__(self, model: torch.nn.Module, taps: list[Any]) -> None:
        """Hook the model."""
        self.seen: list[list[torch.Tensor]] = [[] for _ in taps]
        rig.plain_hooks(model, taps, lambda i, x: self.seen[i].append(x.detach().clone()))

    def take(self) -> list[list[torch.Tensor]]:
        """Give the clones so far, and begin anew."""
        out, self.seen[:] = [list(s) for s in self.seen], [[] for _ in self.seen]
        return out


def bits(x: torch.Tensor) -> np.ndarray:
    """Give the bits of bf16: [rows, columns, elements]."""
    return x.reshape(*x.shape[:2], -1).contiguous().view(torch.int16).cpu().numpy().view(np.uint16)


def eager_generate(model: Any, run: Run, calls: int, rows: int, new: int) -> None:
    """Batched generate of prompts of several lengths, padded on the left."""
    clones, generator = Clones(model, run.taps), torch.Generator().manual_seed(1)
    for call in range(calls):
        width = 32
        lengths = torch.randint(4, width + 1, (rows,), generator=generator).tolist()
        ids = torch.randint(3, 900, (rows, width), generator=generator)
        mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])
        with run.capture.request(*(f"{call}-{r}" for r in range(rows))):
            model.generate(ids.cuda(), attention_mask=mask.cuda(), max_new_tokens=new, do_sample=False)
        for seen, into in zip(clones.take(), run.expected, strict=True):
            whole = bits(torch.cat(seen, 1))
            into += [whole[r, width - n :] for r, n in enumerate(lengths)]
        run.requests += [f"{call}-{r}" for r in range(rows)]
        rig.settle(run.capture)


def compiled(mode: str | None) -> Callable[..., None]:
    """Forwards of whole prompts by torch.compile; what the taps see is returned by the same graph."""

    def work(model: Any, run: Run, calls: int, rows: int, columns: int) -> None:
        seen: dict[int, torch.Tensor] = {}

        def note(i: int, x: torch.Tensor) -> None:
            seen[i] = x

        rig.plain_hooks(model, run.taps, note)

        def forward(ids: torch.Tensor) -> list[torch.Tensor]:
            model(input_ids=ids, use_cache=False)
            out = [seen[i] for i in range(len(run.taps))]
            seen.clear()
            return out

        step = torch.compile(forward, mode=mode, fullgraph=True)
        for call in range(calls):
            ids = torch.randint(3, 900, (rows, columns), device="cuda")
            torch.compiler.cudagraph_mark_step_begin()
            with run.capture.request(*(f"{call}-{r}" for r in range(rows))):
                out = step(ids)
            for x, into in zip(out, run.expected, strict=True):
                into += list(bits(x))
            run.requests += [f"{call}-{r}" for r in range(rows)]
            rig.settle(run.capture)

    return work


def graph_decode(model: Any, run: Run, calls: int, rows: int, columns: int) -> None:
    """Decode with a static cache by replays of a CUDA graph."""
    cache = transformers.StaticCache(config=model.config, max_cache_len=columns + 8)
    ids = torch.zeros(rows, 1, dtype=torch.int64, device="cuda")
    seen: dict[int, torch.Tensor] = {}
    rig.plain_hooks(model, run.taps, lambda i, x: seen.__setitem__(i, x.clone()))

    def call() -> list[torch.Tensor]:
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        return [seen[i] for i in range(len(run.taps))]

    run.capture.disable()
    call()  # makes the cache
    graph = run.capture.graph(call)
    run.capture.enable()
    for n in range(calls):
        for layer in cache.layers:
            layer.cumulative_length.zero_()
        slots = rig.Slots(run.capture.recorder, rows, name=str(n))
        host = []
        for _ in range(columns):
            ids.random_(3, 900)
            graph.replay(slots.ranges())
            host.append([x.clone() for x in graph.output])
            slots.finished()
        for tap, into in enumerate(run.expected):
            into += list(bits(torch.cat([h[tap] for h in host], 1)))
        run.requests += [f"{n}-{r}" for r in range(rows)]
        rig.settle(run.capture)


class Run:
    """A capture, and what the table must have of it."""

    def __init__(self, capture: sonde.Capture, taps: list[Any]) -> None:
        """Nothing is expected yet."""
        self.capture, self.taps, self.requests = capture, taps, []  # type: sonde.Capture, list[Any], list[str]
        self.expected: Expected = [[] for _ in taps]

    def compare(self, lake: sonde.Lake) -> dict[str, int]:
        """Count rows that are stored, that differ, that nobody computed, that are there twice, and that are not."""
        number = {name: i for i, name in enumerate(self.requests)}
        taps = {(t.hook, t.layer): i for i, t in enumerate(self.taps)}
        found = [[np.zeros(len(x), np.uint8) for x in into] for into in self.expected]
        out = dict.fromkeys(("stored", "different", "misnamed", "twice", "not stored"), 0)
        for path in lake.files("vectors", self.capture.epoch):
            columns = ["request", "hook", "layer", "position", "vec", "epoch"]
            table = pq.read_table(path, columns=columns, partitioning=None)
            table = table.filter(pc.equal(table["epoch"], self.capture.epoch))
            for batch in table.to_batches():
                self._compare(batch, number, taps, found, out)
        out["not stored"] = sum(int((f == 0).sum()) for into in found for f in into)
        out["twice"] = sum(int((f > 1).sum()) for into in found for f in into)
        return out

    def _compare(self, batch: pa.RecordBatch, number: dict[str, int], taps: dict[tuple[str, int], int],
                 found: list[list[np.ndarray]], out: dict[str, int]) -> None:  # fmt: skip
        vec = batch.column("vec")
        values, offsets = vec.values.to_numpy(zero_copy_only=True).view(np.uint32), vec.offsets.to_numpy()
        request, hook = _codes(batch.column("request"), number), _strings(batch.column("hook"))
        layer, position = batch.column("layer").to_numpy(), batch.column("position").to_numpy()
        tap = np.array([taps.get((h, int(at)), -1) for h, at in zip(hook, layer, strict=True)])
        out["stored"] += len(tap)
        out["misnamed"] += int(((tap < 0) | (request < 0)).sum())
        order = np.lexsort((request, tap))
        key = tap[order].astype(np.int64) * (1 << 32) + request[order]
        for part in np.split(order, np.flatnonzero(np.diff(key)) + 1):
            t, r = int(tap[part[0]]), int(request[part[0]])
            if t < 0 or r < 0:
                continue
            want, at = self.expected[t][r], position[part]
            inside = at < len(want)
            out["misnamed"] += int((~inside).sum())
            part, at = part[inside], at[inside]
            np.add.at(found[t][r], at, 1)
            width = want.shape[1]
            whole = offsets[part + 1] - offsets[part] == width
            out["different"] += int((~whole).sum())
            part, at = part[whole], at[whole]
            got = values[offsets[part][:, None] + np.arange(width)]
            right = (got == want[at].astype(np.uint32) << 16).all(1)
            out["different"] += int((~right).sum())


def _strings(column: pa.Array) -> list[str]:
    return column.to_pylist()


def _codes(column: pa.Array, number: dict[str, int]) -> np.ndarray:
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes = np.array([number.get(name, -1) for name in encoded.dictionary.to_pylist()] or [-1])
    return codes[encoded.indices.to_numpy()]


def unchanged_logits(model: Any, socket: str) -> dict[str, Any]:
    """Compare logits of eager forwards with and without a capture, bit for bit."""
    same, batches = 0, 8
    inputs = [torch.randint(3, 900, (4, 16), device="cuda") for _ in range(batches)]
    before = [model(input_ids=x).logits for x in inputs]
    with sonde.attach(model, rig.HOOKS[6], socket=socket):
        during = [model(input_ids=x).logits for x in inputs]
    for a, b in zip(before, during, strict=True):
        same += torch.equal(a, b)
    return {"batches": batches, "equal": same, "repeated without capture, equal": sum(
        torch.equal(a, model(input_ids=x).logits) for a, x in zip(before, inputs, strict=True))}  # fmt: skip


CASES: list[tuple[str, str, Callable[..., None], tuple[int, int, int]]] = [
    ("small, eager generate, left padding", "small", eager_generate, (10, 32, 96)),
    ("small, torch.compile default", "small", compiled(None), (8, 64, 64)),
    ("small, torch.compile reduce-overhead", "small", compiled("reduce-overhead"), (8, 64, 64)),
    ("small, CUDA graph decode", "small", graph_decode, (4, 64, 128)),
    ("1.7b, eager generate, left padding", "1.7b", eager_generate, (1, 8, 48)),
    ("1.7b, CUDA graph decode", "1.7b", graph_decode, (1, 8, 64)),
]


@torch.no_grad()
def run(results: rig.Results) -> None:
    """Run the cases that are not measured yet."""
    with rig.agent("*", stored=True) as agent:
        for name, shape, work, how in CASES:
            if results.has(f"fidelity: {name}"):
                continue
            torch.compiler.reset()
            torch._dynamo.utils.counters.clear()
            model = rig.model(shape)
            chosen = rig.taps(model, rig.HOOKS[6])
            capture = sonde.attach(model, rig.HOOKS[6], socket=agent.socket, token_ids=False, mode="complete",
                                   data_bytes=RING)  # fmt: skip
            capture.wait_attached()
            r = Run(capture, chosen)
            work(model, r, *how)
            torch.cuda.synchronize()
            capture.detach(120)
            stats = capture.stats()
            counts = r.compare(agent.wait_stored(capture, 240))
            skips = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
            results.add(f"fidelity: {name}", **counts, forwards=stats.forwards, captured=stats.captured_rows,
                        dropped=stats.dropped_rows, aborted=stats.aborted_rows, problems=stats.problems,
                        cudagraph_skips=skips)  # fmt: skip
            del model, capture, r
            torch.cuda.empty_cache()
        for shape in ("small", "1.7b"):
            results.add(f"fidelity: {shape}, eager logits", **unchanged_logits(rig.model(shape), agent.socket))
        results.add("fidelity: lake verify", says=agent.verify())
