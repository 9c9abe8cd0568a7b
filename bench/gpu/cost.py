"""Parts 2 and 4: what capture adds to one decode step, beside other ways of getting at the same tensors.

Every arm is a copy of the model with hooks of its own that shares the weights, and all arms share one static cache
with 1024 cached tokens. Arms run in random order, round after round; CUDA graphs are recorded anew in each round,
because two recordings of the same step differ more than two replays of one. `off again` is the same as `off`: it shows
the noise. An agent reads the ring and publishes nothing: the rows reach pinned memory of the host.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import rig
import torch
import transformers

import sonde

PAST = 1024
ROUNDS = {"eager": 20, "graph": 5, "compiled": 10}
STEPS = {"eager": 3, "graph": 30, "compiled": 15}  # of a round: few where the host is slow, and drifts
RING = 1 << 30

Step = Callable[[], Any]


class Bench:
    """One model and one cache."""

    def __init__(self, model: Any, batch: int) -> None:
        """batch: rows that decode."""
        self.model, self.batch = model, batch
        self.ids = torch.randint(3, 900, (batch, 1), device="cuda")
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=PAST + 256)
        model(input_ids=self.ids, past_key_values=self.cache, use_cache=True)

    def rewind(self) -> None:
        """Say that the cache holds PAST tokens."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(PAST)

    def call(self, m: Any, **how: Any) -> Any:
        """Decode one token of each row."""
        if isinstance(m, torch._dynamo.OptimizedModule):
            torch.compiler.cudagraph_mark_step_begin()
        return m(input_ids=self.ids, past_key_values=self.cache, use_cache=True, **how)


class Arm:
    """One way to capture; without anything changed it is `off`."""

    def __init__(self, bench: Bench, name: str, record: bool) -> None:
        """record: make CUDA graphs of the step."""
        self.bench, self.name, self._record = bench, name, record
        self.m = rig.twin(bench.model)
        self.times: list[float] = []
        self._graph: torch.cuda.CUDAGraph | None = None

    def call(self) -> Any:
        """Make one eager step."""
        return self.bench.call(self.m)

    def after(self, out: Any) -> None:
        """Do what belongs to a step and follows its forward."""

    def prepare(self) -> Step:
        """Make what a step of this round calls."""
        if not self._record:
            return lambda: self.after(self.call())
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.call()
            self.call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = self.call()

        def step() -> None:
            graph.replay()
            self.after(out)

        return step

    def round(self, steps: int) -> None:
        """Measure a round, in microseconds of a step."""
        self.bench.rewind()
        step = self.prepare()
        self.bench.rewind()
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        self.times.append((time.perf_counter() - start) / steps * 1e6)

    def close(self) -> dict[str, Any]:
        """End; say what was captured."""
        return {}


class Sonde(Arm):
    """HookPoints."""

    def __init__(self, bench: Bench, name: str, record: bool, hooks: int, socket: str, enabled: bool = True) -> None:
        """hooks: of each layer."""
        super().__init__(bench, name, record)
        self._slots: rig.Slots
        self._enabled = enabled

        def identity(recorder: Any) -> rig.Slots:
            self._slots = rig.Slots(recorder, bench.batch, PAST)
            return self._slots

        self.capture = sonde.attach(self.m, rig.HOOKS[hooks], socket=socket, identity=identity, token_ids=False,
                                    data_bytes=RING)  # fmt: skip
        self.capture.wait_attached()
        if not enabled:
            self.capture.disable()

    def prepare(self) -> Step:
        """Let the capture record the graph."""
        if not self._record:
            return super().prepare()
        graph = self.capture.graph(self.call)

        def step() -> None:
            graph.replay(self._slots.ranges())
            self._slots.finished()

        return step

    def round(self, steps: int) -> None:
        """Wait for the agent between rounds."""
        super().round(steps)
        rig.settle(self.capture, 5)

    def close(self) -> dict[str, Any]:
        """Detach."""
        stats, rings = self.capture.stats(), self.capture._gatherer.devices.stats()
        self.capture.detach(5)
        if (stats.captured_rows > 0) != self._enabled:
            raise SystemExit(f"{self.name}: {stats.captured_rows} rows were captured: {stats}")
        return {"captured_rows": stats.captured_rows, "dropped": stats.dropped_rows, "aborted": stats.aborted_rows,
                "problems": stats.problems, "lifted": sum(r.lifted for r in rings),
                "ring_full": sum(r.full for r in rings), "lifted_bytes": sum(r.bytes for r in rings)}  # fmt: skip


class HiddenStates(Arm):
    """output_hidden_states=True, and every tensor copied to pinned memory."""

    def __init__(self, bench: Bench, name: str, record: bool) -> None:
        """Allocate the memory once."""
        super().__init__(bench, name, record)
        self._pinned: list[torch.Tensor] = []

    def call(self) -> Any:
        """Ask the model for its hidden states."""
        return self.bench.call(self.m, output_hidden_states=True).hidden_states

    def after(self, out: Any) -> None:
        """Copy them."""
        if not self._pinned:
            self._pinned = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in out]
        for x, p in zip(out, self._pinned, strict=True):
            p.copy_(x, non_blocking=True)


class Hooked(Arm):
    """Forward hooks of one's own."""

    def __init__(self, bench: Bench, name: str, record: bool, hooks: int, how: str) -> None:
        """how: "pinned" clones and copies to pinned memory, "cpu" copies and waits, "inline" copies on the device."""
        super().__init__(bench, name, record)
        chosen = rig.taps(self.m, rig.HOOKS[hooks])
        width = bench.model.config.hidden_size
        kind = {"device": "cuda"} if how == "inline" else {"pin_memory": True}
        into = [torch.empty(bench.batch, width, dtype=torch.bfloat16, **kind) for _ in chosen]

        def take(i: int, x: torch.Tensor) -> None:
            if how == "cpu":
                into[i] = x.cpu()
            else:
                into[i].copy_((x.clone() if how == "pinned" else x).view(bench.batch, width), non_blocking=True)

        rig.plain_hooks(self.m, chosen, take)


def arms(bench: Bench, mode: str, socket: str) -> list[Arm]:
    """Make the arms of a mode."""
    record = mode == "graph"
    out = [
        Arm(bench, "off", record),
        Arm(bench, "off again", record),
        Sonde(bench, "sonde, 36 hooks", record, 1, socket),
        Sonde(bench, "sonde, 216 hooks", record, 6, socket),
        Sonde(bench, "sonde disabled, 216 hooks", record, 6, socket, enabled=False),
        HiddenStates(bench, "output_hidden_states to the host", record),
        Hooked(bench, "hooks: clone and copy to pinned memory, 36", record, 1, "pinned"),
    ]
    if record:
        out.append(Hooked(bench, "hooks: one copy on the device each, 36", record, 1, "inline"))
        out.append(Hooked(bench, "hooks: one copy on the device each, 216", record, 6, "inline"))
    else:
        out.append(Hooked(bench, "hooks: .cpu(), 36", record, 1, "cpu"))
    return out


def table(made: list[Arm]) -> dict[str, Any]:
    """Give the median step of each arm, and what it adds to `off` in the same round."""
    off, out = made[0], {}
    for a in made:
        added = [x - y for x, y in zip(a.times, off.times, strict=True)]
        out[a.name] = {
            "us": round(statistics.median(a.times)), "added_us": round(statistics.median(added), 1),
            "added_low_us": round(min(added), 1), "added_high_us": round(max(added), 1), **a.close(),
        }  # fmt: skip
    return out


@torch.no_grad()
def run(results: rig.Results, layers: int, seed: int, batches: list[int]) -> None:
    """Part 2: eager steps and CUDA graphs."""
    model = rig.model("8b", layers)
    with rig.agent("no_such_hook", stored=False) as agent:
        for batch in batches:
            for mode in ("graph", "eager"):
                name = f"cost: {mode}, batch {batch}"
                if results.has(name):
                    continue
                bench = Bench(model, batch)
                made = arms(bench, mode, agent.socket)
                order, rng = list(made), random.Random(seed)
                for _ in range(ROUNDS[mode]):
                    rng.shuffle(order)
                    for a in order:
                        a.round(STEPS[mode])
                results.add(name, layers=model.config.num_hidden_layers, rounds=ROUNDS[mode], steps=STEPS[mode],
                            seed=seed, arms=table(made))  # fmt: skip
                del bench, made, order, a
                torch.cuda.empty_cache()


@torch.no_grad()
def run_compiled(results: rig.Results, layers: int, seed: int, batch: int) -> None:
    """Part 4: torch.compile(mode="reduce-overhead"). Arms with hooks are compiled once; `off again` shares `off`."""
    name = f"cost: reduce-overhead, batch {batch}"
    if results.has(name):
        return
    bench = Bench(rig.model("8b", layers), batch)
    with rig.agent("no_such_hook", stored=False) as agent:
        made: list[Arm] = [
            Arm(bench, "off", False),
            Arm(bench, "off again", False),
            Sonde(bench, "sonde, 36 hooks", False, 1, agent.socket),
            Sonde(bench, "sonde, 216 hooks", False, 6, agent.socket),
            HiddenStates(bench, "output_hidden_states to the host", False),
        ]
        seconds = {}
        for a in made:
            start = time.perf_counter()
            a.m = torch.compile(a.m, mode="reduce-overhead")
            bench.rewind()
            for _ in range(4):
                a.after(a.call())
            torch.cuda.synchronize()
            seconds[a.name] = round(time.perf_counter() - start, 1)
            print(f"compiled {a.name}: {seconds[a.name]} s", flush=True)
        order, rng = list(made), random.Random(seed)
        for _ in range(ROUNDS["compiled"]):
            rng.shuffle(order)
            for a in order:
                a.round(STEPS["compiled"])
        skips = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
        results.add(name, layers=bench.model.config.num_hidden_layers, rounds=ROUNDS["compiled"],
                    steps=STEPS["compiled"], seed=seed, compile_seconds=seconds, cudagraph_skips=skips,
                    arms=table(made))  # fmt: skip
