"""Part 4: what capture adds to a decode step of a Hugging Face model, compiled, in CUDA graphs.

Each arm is a process with its own copy of the model: compiling takes most of the time, and they do it side by side.
Then one after the other measures a round, in random order; `off` measures twice in each round, which shows the noise.
`graph` is a compiled step recorded by `Capture.graph`, `reduce-overhead` the compiler's own graphs, `eager` the step
that is not compiled, recorded by `Capture.graph`.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import cost
import rig
import torch
import transformers

MODES = ("graph", "reduce-overhead", "eager")
STEPS = 30 if rig.ON_GPU else 2


class Bench:
    """A Hugging Face model and one static cache."""

    hooks = rig.HOOKS

    def __init__(self, model: Any, batch: int) -> None:
        """batch: rows that decode."""
        self.model, self.batch = model, batch
        self.ids = torch.randint(3, 900, (batch, 1), device=rig.DEVICE)
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=cost.PAST + (256 if rig.ON_GPU else 8))
        model(input_ids=self.ids, past_key_values=self.cache, use_cache=True)

    def rewind(self) -> None:
        """Say that the cache holds PAST tokens."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(cost.PAST)

    def call(self, m: Any, **how: Any) -> Any:
        """Decode one token of each row."""
        if isinstance(m, torch._dynamo.OptimizedModule):
            torch.compiler.cudagraph_mark_step_begin()
        return m(input_ids=self.ids, past_key_values=self.cache, use_cache=True, **how)


def make(bench: Bench, arm: str, graph: bool, socket: str) -> cost.Arm:
    """Make an arm by its name."""
    if arm.startswith("sonde"):
        return cost.Sonde(bench, arm, graph, int(arm.split()[1]), socket)
    if arm != "hidden":
        return cost.Arm(bench, arm, graph)
    made = cost.HiddenStates(bench, arm, graph)
    rig.prepare_states(made.m)
    return made


def kernels(call: Any) -> int:
    """Count what a step launches on the GPU, copies included."""
    if not rig.ON_GPU:
        return 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        call()
        rig.synchronize()
    return sum(e.device_type == torch.autograd.DeviceType.CUDA for e in seen.events())


@torch.no_grad()
def child(arm: str, mode: str, batch: int, layers: int, socket: str) -> None:
    """Compile, then measure a round for each line of the input."""
    model = rig.model("8b" if rig.ON_GPU else "small", layers)
    bench = Bench(model, batch)
    a = make(bench, arm, mode != "reduce-overhead", socket)
    start = time.perf_counter()
    if mode != "eager":
        a.m = torch.compile(a.m, mode=None if mode == "graph" else mode, fullgraph=True)
        bench.rewind()
        for _ in range(3):
            a.after(a.call())
        rig.synchronize()
    ready = {"seconds": round(time.perf_counter() - start, 1), "layers": model.config.num_hidden_layers,
             "kernels": kernels(a.call)}  # fmt: skip
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        a.round(STEPS)
        print(json.dumps({"us": a.times[-1]}), flush=True)
    skips = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    print(json.dumps({"cudagraph_skips": skips, **a.close()}), flush=True)


class Child:
    """An arm in a process of its own."""

    def __init__(self, *arguments: Any) -> None:
        """Start it."""
        words = [str(a) for a in arguments]
        here = [sys.executable, __file__, *words]
        self.process = subprocess.Popen(here, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.times: list[float] = []

    def read(self) -> dict[str, Any]:
        """Read what it says next."""
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"an arm ended with code {self.process.wait()}")
        return json.loads(line)

    def ask(self, what: str) -> dict[str, Any]:
        """Ask, and wait."""
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.read()


def run(results: rig.Results, layers: int, seed: int, batch: int, rounds: int, modes: list[str]) -> None:
    """Measure each mode."""
    for mode in modes:
        name = f"hugging face: {mode}, batch {batch}"
        if not results.has(name):
            results.add(name, rounds=rounds, steps=STEPS, seed=seed, **measure(layers, seed, batch, rounds, mode))


def measure(layers: int, seed: int, batch: int, rounds: int, mode: str) -> dict[str, Any]:
    """Compile all arms, and measure them."""
    rng = random.Random(seed)
    with rig.agent("no_such_hook", stored=False) as agent:
        names = ["off", "sonde 1", "sonde 6", "hidden"]
        made = {n: Child(n, mode, batch, layers, agent.socket) for n in names}
        try:
            ready = {n: c.read() for n, c in made.items()}
            times: dict[str, list[float]] = {n: [] for n in [*names, "off again"]}
            for _ in range(rounds):
                for n in rng.sample(list(times), len(times)):
                    times[n].append(made[n.removesuffix(" again")].ask("round")["us"])
            ends = {n: c.ask("end") for n, c in made.items()}
        finally:
            for c in made.values():
                c.process.kill()
    hooks = ready["off"]["layers"]
    said = {"sonde 1": f"sonde, {hooks} hooks", "sonde 6": f"sonde, {6 * hooks} hooks",
            "hidden": "output_hidden_states to the host"}  # fmt: skip
    arms = {}
    for n, us in times.items():
        added = sorted(x - y for x, y in zip(us, times["off"], strict=True))
        arms[said.get(n, n)] = {"us": round(statistics.median(us)), "added_us": round(statistics.median(added), 1),
                                "added_all_us": [round(x, 1) for x in added], **ends.get(n, {})}  # fmt: skip
    return {"layers": hooks, "compile_seconds": {n: r["seconds"] for n, r in ready.items()},
            "kernels": {n: r["kernels"] for n, r in ready.items()}, "arms": arms}  # fmt: skip


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
