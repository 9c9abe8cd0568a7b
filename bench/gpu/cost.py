"""Part 2: what capture adds to one decode step of the tight decoder, beside other ways of getting at the same tensors.

Every arm is a copy of the model with hooks of its own that shares the weights, and all arms share one cache, in which
each row holds 1024 tokens. Arms run in random order, round after round; CUDA graphs are recorded anew in each round,
because two recordings of the same step differ more than two replays of one. `off again` is the same as `off`: it shows
the noise. An agent reads the ring and publishes nothing: the rows reach pinned memory of the host.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import deque
from typing import Any

import decoder
import rig
import torch

import sonde

PAST = 1024 if rig.ON_GPU else 16
ROUNDS = {"eager": 12, "graph": 6}
STEPS = {"eager": 6, "graph": 40}  # of a round: few where the host is slow, and drifts
AHEAD = 3  # steps that the host launches before the first of them has ended: an engine does not launch dozens
RING = 1 << 30 if rig.ON_GPU else 1 << 24


class Bench:
    """The tight decoder, all of whose rows decode the same position again and again."""

    hooks = decoder.HOOKS

    def __init__(self, model: decoder.Decoder, batch: int) -> None:
        """batch: rows that decode."""
        self.model, self.batch = model, batch
        cache = model.cache
        self.ids = torch.randint(3, model.config.vocab_size, (batch, 1), device=rig.DEVICE)
        self.rows = torch.arange(cache.rows.numel(), dtype=torch.int32, device=rig.DEVICE)
        cache.rows.copy_(self.rows)
        cache.lengths.fill_(PAST)
        for x in (cache.keys, cache.values):
            x.normal_(0, 1)

    def rewind(self) -> None:
        """Nothing moves."""

    def call(self, m: Any, **how: Any) -> Any:
        """Decode one token of each row."""
        return m(input_ids=self.ids, **how)


class Arm:
    """One way to capture; without anything changed it is `off`."""

    def __init__(self, bench: Any, name: str, graph: bool) -> None:
        """graph: make CUDA graphs of the step."""
        self.bench, self.name, self.graph = bench, name, graph
        self.m = rig.twin(bench.model)
        self.times: list[float] = []
        self.capture: sonde.Capture | None = None

    def call(self) -> Any:
        """Make one eager step."""
        return self.bench.call(self.m)

    def after(self, out: Any) -> None:
        """Do what belongs to a step and follows its forward."""

    def step(self, made: Any) -> None:
        """Make one step."""
        self.after(self.call() if made is None else made.replay())

    def round(self, steps: int) -> None:
        """Measure a round, in microseconds of a step."""
        self.bench.rewind()
        made = rig.Step(self.call, self.capture) if self.graph else None
        self.bench.rewind()
        for _ in range(3):
            self.step(made)
        rig.synchronize()
        flying: deque[Any] = deque()
        start = time.perf_counter()
        for _ in range(steps):
            self.step(made)
            if rig.ON_GPU:
                flying.append(torch.cuda.Event())
                flying[-1].record()
                if len(flying) > AHEAD:
                    flying.popleft().synchronize()
        rig.synchronize()
        self.times.append((time.perf_counter() - start) / steps * 1e6)

    def close(self) -> dict[str, Any]:
        """End; say what was captured."""
        return {}


class Sonde(Arm):
    """HookPoints."""

    def __init__(self, bench: Any, name: str, graph: bool, hooks: int, socket: str, enabled: bool = True) -> None:
        """hooks: of each layer. socket: "": no agent reads the ring."""
        super().__init__(bench, name, graph)
        self._enabled, self._told = enabled, rig.Told()
        self.capture = sonde.attach(self.m, bench.hooks[hooks], socket=socket, identity=self._told, token_ids=False,
                                    data_bytes=RING)  # fmt: skip
        if socket:
            self.capture.wait_attached()
        self._slots = rig.Slots(self.capture.recorder, bench.batch, PAST)
        if not enabled:
            self.capture.disable()

    def call(self) -> Any:
        """Say whose rows they are."""
        self._told.now = self._slots.ranges()
        return super().call()

    def step(self, made: Any) -> None:
        """Name the rows of a graph, too."""
        self.after(self.call() if made is None else made.replay(self._slots.ranges()))
        self._slots.finished()

    def round(self, steps: int) -> None:
        """Wait for the agent between rounds."""
        super().round(steps)
        rig.settle(self.capture, 5)

    def close(self) -> dict[str, Any]:
        """Detach."""
        capture = self.capture
        stats, rings = capture.stats(), capture._gatherer.devices.stats()
        capture.detach(5)
        if (stats.captured_rows > 0) != self._enabled:
            raise SystemExit(f"{self.name}: {stats.captured_rows} rows were captured: {stats}")
        return {"captured_rows": stats.captured_rows, "dropped": stats.dropped_rows, "aborted": stats.aborted_rows,
                "problems": stats.problems, "lifted": sum(r.lifted for r in rings),
                "ring_full": sum(r.full for r in rings), "lifted_bytes": sum(r.bytes for r in rings)}  # fmt: skip


class HiddenStates(Arm):
    """output_hidden_states=True, and every tensor copied to pinned memory."""

    def __init__(self, bench: Any, name: str, graph: bool) -> None:
        """Allocate the memory once."""
        super().__init__(bench, name, graph)
        self._pinned: list[torch.Tensor] = []

    def call(self) -> Any:
        """Ask the model for its hidden states."""
        out = self.bench.call(self.m, output_hidden_states=True)
        return out[1] if isinstance(out, tuple) else out.hidden_states

    def after(self, out: Any) -> None:
        """Copy them."""
        if not self._pinned:
            self._pinned = [torch.empty(x.shape, dtype=x.dtype, pin_memory=rig.ON_GPU) for x in out]
        for x, p in zip(out, self._pinned, strict=True):
            p.copy_(x, non_blocking=True)


class Hooked(Arm):
    """Forward hooks of one's own."""

    def __init__(self, bench: Any, name: str, graph: bool, hooks: int, how: str) -> None:
        """how: "pinned" clones and copies to pinned memory, "cpu" copies and waits, "inline" copies on the device."""
        super().__init__(bench, name, graph)
        chosen = rig.taps(self.m, bench.hooks[hooks])
        kind = {"device": rig.DEVICE} if how == "inline" else {"pin_memory": rig.ON_GPU}
        into: list[Any] = [None] * len(chosen)

        def take(i: int, x: torch.Tensor) -> None:
            if how == "cpu":
                into[i] = x.cpu()
                return
            if into[i] is None:
                into[i] = torch.empty(x.shape, dtype=x.dtype, **kind)
            into[i].copy_(x.clone() if how == "pinned" else x, non_blocking=True)

        rig.plain_hooks(self.m, chosen, take)
        self.call()  # allocates, which the recording of a graph must not


def arms(bench: Any, mode: str, socket: str) -> list[Arm]:
    """Make the arms of a mode."""
    graph = mode == "graph"
    n = bench.model.config.num_hidden_layers
    out = [
        Arm(bench, "off", graph),
        Arm(bench, "off again", graph),
        Sonde(bench, f"sonde, {n} hooks", graph, 1, socket),
        Sonde(bench, f"sonde, {6 * n} hooks", graph, 6, socket),
        Sonde(bench, f"sonde disabled, {6 * n} hooks", graph, 6, socket, enabled=False),
        HiddenStates(bench, "output_hidden_states to the host", graph),
        Hooked(bench, f"hooks: clone and copy to pinned memory, {n}", graph, 1, "pinned"),
        Hooked(bench, f"hooks: clone and copy to pinned memory, {6 * n}", graph, 6, "pinned"),
    ]
    if graph:
        out.append(Hooked(bench, f"hooks: one copy on the device each, {n}", graph, 1, "inline"))
        out.append(Hooked(bench, f"hooks: one copy on the device each, {6 * n}", graph, 6, "inline"))
    else:
        out.append(Hooked(bench, f"hooks: .cpu(), {n}", graph, 1, "cpu"))
        out.append(Hooked(bench, f"hooks: .cpu(), {6 * n}", graph, 6, "cpu"))
    return out


def table(made: list[Arm]) -> dict[str, Any]:
    """Give the median step of each arm, and what it adds to `off` in the same round."""
    off, out = made[0], {}
    for a in made:
        added = sorted(x - y for x, y in zip(a.times, off.times, strict=True))
        out[a.name] = {
            "us": round(statistics.median(a.times)), "added_us": round(statistics.median(added), 1),
            "added_all_us": [round(x, 1) for x in added], **a.close(),
        }  # fmt: skip
    return out


@torch.no_grad()
def run(results: rig.Results, shape: str, seed: int, batches: list[int], modes: list[str]) -> None:
    """Part 2: CUDA graphs, and eager steps."""
    model = decoder.make(shape, max(batches), PAST + 8, rig.DEVICE)
    with rig.agent("no_such_hook", stored=False) as agent:
        for batch, mode in [(b, m) for m in modes for b in batches]:
            name = f"decode: {shape}, {mode}, batch {batch}"
            if results.has(name):
                continue
            bench = Bench(model, batch)
            made = arms(bench, mode, agent.socket)
            order, rng = list(made), random.Random(seed)
            rounds, steps = (ROUNDS[mode], STEPS[mode]) if rig.ON_GPU else (2, 2)
            for _ in range(rounds):
                rng.shuffle(order)
                for a in order:
                    a.round(steps)
            results.add(name, layers=model.config.num_hidden_layers, past=PAST, rounds=rounds, steps=steps, seed=seed,
                        arms=table(made))  # fmt: skip
            del bench, made, order, a
            if rig.ON_GPU:
                torch.cuda.empty_cache()
