"""Part 1: every row in the table has the bits that the model computed in that very step, under the right name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import decoder
import logits
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import rig
import torch
import transformers
from engine import Engine, Request, poisson, serve

import sonde

Expected = list[list[np.ndarray]]  # of each tap and request: [positions, elements], the bits of bf16
RING = 1 << 30 if rig.ON_GPU else 1 << 26


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
            model.generate(ids.to(rig.DEVICE), attention_mask=mask.to(rig.DEVICE), max_new_tokens=new, do_sample=False)
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
            ids = torch.randint(3, 900, (rows, columns), device=rig.DEVICE)
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

    def __init__(self, capture: Any, taps: list[Any], socket: str) -> None:
        """Nothing is expected yet. capture: None where who computes makes it."""
        self.capture, self.taps, self.socket = capture, taps, socket
        self.requests: list[str] = []
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


def continuous(model: Any, run: Run, calls: int, rows: int, columns: int) -> None:
    """Serve requests that arrive one by one: chunks of prompts, batches of changing size, slots that are used again."""
    engine = Witness(model, run)
    run.capture = engine.capture
    for call in range(calls):
        arrivals = poisson(rows * 4.0, 6.0 if rig.ON_GPU else 0.1, (columns // 4, columns), (4, columns), call)
        prompts = torch.randint(3, model.config.vocab_size, (len(arrivals), columns), device=rig.DEVICE)
        run.requests += [r.name for r in arrivals]
        for into in run.expected:
            into += [np.zeros((r.prompt + r.new - 1, engine.width), np.uint16) for r in arrivals]
        serve(engine, arrivals, prompts, engine.sizes[-1])
        rig.settle(run.capture)


class Witness(Engine):
    """An engine that keeps clones of what the taps saw in each step, made by the very graph that was replayed."""

    def __init__(self, model: Any, run: Run) -> None:
        """run: expects what is cloned."""
        self._seen: dict[int, torch.Tensor] = {}
        self._clones: dict[int, torch.Tensor] = {}
        self._run, self._plain = run, False
        self.width = model.config.hidden_size
        super().__init__(model, 48 if rig.ON_GPU else 8, [3, 8, 24] if rig.ON_GPU else [2],
                         hooks=decoder.HOOKS[6], socket=run.socket, mode="complete", data_bytes=RING)  # fmt: skip

    def call(self, size: int) -> torch.Tensor:
        """Keep the clones of this size, which a graph fills anew at each replay."""
        if not self._plain:
            rig.plain_hooks(self.model, self._run.taps, lambda i, x: self._seen.__setitem__(i, x.clone()))
            self._plain = True
        out = super().call(size)
        self._clones[size] = torch.stack([self._seen[i].reshape(-1, self.width) for i in range(len(self._run.taps))])
        return out

    def _note(self, size: int, rows: list[tuple[Request, int, int, int]]) -> None:
        seen = self._clones[size].view(torch.int16).cpu().numpy().view(np.uint16)
        for r, first, position, count in rows:
            at = self._run.requests.index(r.name)
            for tap, into in enumerate(self._run.expected):
                into[at][position : position + count] = seen[tap, first : first + count]

    def compute_prompt(self, r: Request, ids: torch.Tensor) -> bool:
        """Note the chunk."""
        before = r.done
        last = super().compute_prompt(r, ids)
        self._note(0, [(r, 0, before, r.done - before)])
        return last

    def compute_tokens(self, running: Sequence[Request]) -> None:
        """Note the tokens."""
        places = [(r, i, r.length, 1) for i, r in enumerate(running)]
        super().compute_tokens(running)
        self._note(next(n for n in self.sizes if n >= len(running)), places)


CASES: list[tuple[str, str, Callable[..., None], tuple[int, int, int]]] = [
    ("small, eager generate, left padding", "small", eager_generate, (14, 32, 96)),
    ("small, torch.compile default", "small", compiled(None), (16, 64, 64)),
    ("small, torch.compile reduce-overhead", "small", compiled("reduce-overhead"), (16, 64, 64)),
    ("small, CUDA graph decode", "small", graph_decode, (6, 64, 128)),
    ("small tight decoder, continuous batching", "tight small", continuous, (2, 8, 80)),
    ("qwen3-8b tight decoder, continuous batching", "tight qwen3-8b", continuous, (1, 1, 40)),
    ("1.7b, eager generate, left padding", "1.7b", eager_generate, (1, 8, 48)),
    ("1.7b, CUDA graph decode", "1.7b", graph_decode, (1, 8, 64)),
]
TRIAL: list[tuple[str, str, Callable[..., None], tuple[int, int, int]]] = [
    ("trial, eager", "small", eager_generate, (1, 2, 3)),
    ("trial, torch.compile", "small", compiled(None), (2, 2, 4)),
    ("trial, continuous", "tight tiny", continuous, (1, 10, 12)),
]


def fidelity(results: rig.Results, agent: rig.Agent, name: str, shape: str, work: Any, how: tuple[int, ...]) -> None:
    """Run one case."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    kind, _, size = shape.rpartition(" ")
    if kind:
        model: Any = decoder.make(size, 24, 192, rig.DEVICE)
        r = Run(None, rig.taps(model, decoder.HOOKS[6]), agent.socket)
    else:
        model = rig.model(shape)
        capture = sonde.attach(model, rig.HOOKS[6], socket=agent.socket, token_ids=False, mode="complete",
                               data_bytes=RING)  # fmt: skip
        capture.wait_attached()
        r = Run(capture, rig.taps(model, rig.HOOKS[6]), agent.socket)
    work(model, r, *how)
    rig.synchronize()
    r.capture.detach(120)
    stats = r.capture.stats()
    counts = r.compare(agent.wait_stored(r.capture, 240))
    skips = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    results.add(f"fidelity: {name}", **counts, requests=len(r.requests), forwards=stats.forwards,
                captured=stats.captured_rows, dropped=stats.dropped_rows, aborted=stats.aborted_rows,
                problems=stats.problems, cudagraph_skips=skips)  # fmt: skip


@torch.no_grad()
def run(results: rig.Results, only: str) -> None:
    """Run the cases that are not measured yet."""
    logits.run(results, only)
    if only.startswith("logits"):
        return
    with rig.agent("*", stored=True) as agent:
        for name, shape, work, how in CASES if rig.ON_GPU else TRIAL:
            if only not in name or results.has(f"fidelity: {name}"):
                continue
            fidelity(results, agent, name, shape, work, how)
            if rig.ON_GPU:
                torch.cuda.empty_cache()
        results.add("fidelity: lake verify", cases=only or "all", says=agent.verify())
