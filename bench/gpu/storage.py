"""Part 3: batches with everything behind them: agent, bus, Parquet; the table is verified at the end.

A run computes a batch: each prompt, and then all together token by token. Arms run in random order, each after the
table has what the ones before it captured. The policy with storage takes as many layers
as make 300 MB/s, told from the speed without capture; the other takes all of them, more than any table takes.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import decoder
import rig
import torch
from engine import Engine, Request, serve

PROMPT, NEW, CHUNK = (128, 160, 128) if rig.ON_GPU else (8, 6, 8)
RING = 1 << 30 if rig.ON_GPU else 1 << 26
POLICY = 300e6  # bytes a second
EVERY = "resid_post of all layers"


def requests(name: str, count: int) -> list[Request]:
    """Make requests that are all there from the start."""
    return [Request(f"{name}-{i}", 0.0, PROMPT, NEW) for i in range(count)]


class Arm:
    """An engine and what it measured."""

    def __init__(self, name: str, model: decoder.Decoder, batch: int, hooks: list[str], socket: str) -> None:
        """hooks: that are captured; none: nothing is."""
        capture: dict[str, Any] = {"hooks": hooks, "socket": socket, "data_bytes": RING} if hooks else {}
        self.name, self.hooks = name, len(hooks)
        self.engine = Engine(model, CHUNK, [batch], **capture)
        self.speeds: list[float] = []
        self.behind: list[float] = []  # seconds from the end of a run until the table had all of it
        self.idle = True

    def run(self, turn: int, prompts: torch.Tensor, batch: int) -> float:
        """Compute a run; gives tokens a second, those of prompts included."""
        served = serve(self.engine, requests(f"{self.name}-{turn}", len(prompts)), prompts, batch)
        return len(prompts) * (PROMPT + NEW) / served.seconds

    def measure(self, turn: int, prompts: torch.Tensor, batch: int, agent: rig.Agent) -> None:
        """Measure a run, and wait for the table."""
        self.speeds.append(self.run(turn, prompts, batch))
        start = time.perf_counter()
        self.idle &= agent.wait_idle(60)
        self.behind.append(round(time.perf_counter() - start, 2))

    def close(self, lake: Any) -> dict[str, Any]:
        """End, and say what was captured and what of it is stored."""
        out: dict[str, Any] = {"layers": self.hooks, "tokens_per_s": [round(x, 1) for x in self.speeds]}
        out["median"] = statistics.median(self.speeds)
        capture = self.engine.capture
        if capture is None:
            return out
        rings = capture._gatherer.devices.stats()
        self.engine.close()
        stats = capture.stats()
        rows = lake(capture)
        lost = sum(stats.dropped_rows.values()) + stats.aborted_rows
        return {**out, "captured_rows": stats.captured_rows, "stored_rows": rows, "dropped": stats.dropped_rows,
                "aborted": stats.aborted_rows, "problems": stats.problems, "table_behind_s": self.behind,
                "table_in_time": self.idle, "ring_full": sum(r.full for r in rings),
                "unaccounted": stats.captured_rows - rows - lost}  # fmt: skip


def chosen(count: int, layers: int) -> list[str]:
    """Choose layers evenly."""
    return [f"resid_post.{i * layers // count}" for i in range(count)]


def measure(results: rig.Results, model: decoder.Decoder, shape: str, batch: int, seed: int, rounds: int) -> None:
    """Measure one size of batch."""
    name = f"batches: {shape}, batch {batch}"
    if results.has(name):
        return
    layers, width = model.config.num_hidden_layers, 2 * model.config.hidden_size
    prompts = torch.randint(3, model.config.vocab_size, (batch, PROMPT), device=rig.DEVICE)
    rng, order = random.Random(seed), []  # type: random.Random, list[Arm]
    with rig.agent("*", stored=True) as agent, torch.no_grad():
        off = Arm("off", model, batch, [], agent.socket)
        off.run(-1, prompts, batch)
        speed = off.run(-1, prompts, batch)
        many = max(1, min(layers, int(POLICY / (speed * width))))
        made = [off, Arm("off again", model, batch, [], agent.socket),
                Arm("policy", model, batch, chosen(many, layers), agent.socket)]  # fmt: skip
        made[2].run(-1, prompts, batch)
        for turn in range(rounds):
            order = rng.sample(made, len(made))
            for a in order:
                a.measure(turn, prompts, batch, agent)
            print(f"{name}, round {turn}: {[(a.name, round(a.speeds[-1])) for a in made]}", flush=True)
        every = Arm(EVERY, model, batch, ["resid_post"], agent.socket)
        every.hooks = layers
        every.measure(0, prompts, batch, agent)
        made.append(every)

        def lake(capture: Any) -> int:
            found = agent.wait_stored(capture, 120)
            return found.table("vectors", columns=["epoch"], epoch=capture.epoch).num_rows

        arms = {a.name: a.close(lake) for a in made}
        results.add(name, layers=layers, batch=batch, prompt=PROMPT, new=NEW, rounds=rounds, seed=seed,
                    off_tokens_per_s=round(speed), bytes_per_layer_and_s=round(speed * width), arms=arms,
                    ring_bytes=RING, verify=agent.verify())  # fmt: skip


def run(results: rig.Results, shape: str, seed: int, batches: list[int], rounds: int) -> None:
    """Measure each size of batch."""
    model = decoder.make(shape, max(batches), PROMPT + NEW, rig.DEVICE)
    for batch in batches:
        measure(results, model, shape, batch, seed, rounds)
        if rig.ON_GPU:
            torch.cuda.empty_cache()
