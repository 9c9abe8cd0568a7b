"""Part 5: requests arrive one by one, and each waits for its tokens; the same arrivals with and without capture.

Each round draws arrivals for every rate, and all arms serve the same ones, in random order. The policy keeps three
layers, which go to bus and table meanwhile; one arm captures these, one captures all layers and leaves the choice to
the policy. Latencies of all rounds of an arm are one sample; the spread of the medians of single
rounds stands beside them. `off again` is the same as `off`: it shows the noise.
"""

from __future__ import annotations

import random
from typing import Any

import decoder
import numpy as np
import rig
import torch
from engine import Engine, Served, poisson, serve

RATES = [8.0, 16.0, 28.0, 40.0]  # requests a second; the last one is more than an H100 serves
PROMPTS, NEW = ((96, 384), (32, 96)) if rig.ON_GPU else ((4, 12), (3, 8))
CHUNK, SLOTS, SIZES = (256, 64, [4, 8, 16, 32, 48, 64]) if rig.ON_GPU else (8, 2, [1, 2])
ROOM = PROMPTS[1] + NEW[1]
RING = 1 << 30 if rig.ON_GPU else 1 << 26
STORED = 3  # layers that the policy keeps, which is what the table takes


def figures(runs: list[Served]) -> dict[str, Any]:
    """Give milliseconds: from arrival to the first token, of each further one, and of each gap between two."""
    out: dict[str, Any] = {}
    first = [[(r.seen[0] - r.arrival) * 1e3 for r in s.requests if r.seen] for s in runs]
    each = [[(r.seen[-1] - r.seen[0]) / (len(r.seen) - 1) * 1e3 for r in s.requests if len(r.seen) > 1] for s in runs]
    gaps = [[x for r in s.requests for x in np.diff(r.seen) * 1e3] for s in runs]
    for name, parts in (("first_token", first), ("per_token", each), ("gap", gaps)):
        whole = np.concatenate([np.array(p) for p in parts])
        out[name] = {"p50": round(float(np.percentile(whole, 50)), 3), "p99": round(float(np.percentile(whole, 99)), 3),
                     "mean": round(float(whole.mean()), 3),
                     "mean_of_rounds": [round(float(np.mean(p)), 3) for p in parts]}  # fmt: skip
    out["tokens_per_s"] = round(sum(s.tokens for s in runs) / sum(s.seconds for s in runs), 1)
    out["requests"], out["tokens"] = sum(len(s.requests) for s in runs), sum(s.tokens for s in runs)
    decoding = np.array([n for s in runs for _, _, n in s.rounds])
    out["mean_batch"] = round(float(decoding.mean()), 1)
    return out


def account(engine: Engine, agent: rig.Agent) -> dict[str, Any]:
    """End, wait for the table, and count."""
    capture: Any = engine.capture
    rings = capture._gatherer.devices.stats()
    engine.close()
    stats = capture.stats()
    lake = agent.wait_stored(capture, 240)
    rows = lake.table("vectors", columns=["epoch"], epoch=capture.epoch).num_rows
    return {"captured_rows": stats.captured_rows, "stored_rows": rows, "dropped": stats.dropped_rows,
            "aborted": stats.aborted_rows, "ring_full": sum(r.full for r in rings), "problems": stats.problems,
            "lifted_bytes": sum(r.bytes for r in rings)}  # fmt: skip


@torch.no_grad()
def run(results: rig.Results, shape: str, seed: int, rates: list[float] | None, seconds: float, rounds: int) -> None:
    """Serve all rates."""
    rates = rates or (RATES if rig.ON_GPU else [50.0])
    seconds = seconds or (3.0 if rig.ON_GPU else 0.3)
    name = f"serving: {shape}"
    if results.has(name):
        return
    model = decoder.make(shape, SLOTS, ROOM, rig.DEVICE)
    prompts = torch.randint(3, model.config.vocab_size, (int(max(rates) * seconds * 2) + 16, PROMPTS[1]),
                            device=rig.DEVICE)  # fmt: skip
    rng = random.Random(seed)
    layers = model.config.num_hidden_layers
    kept = sorted({i * layers // STORED for i in range(STORED)})
    arms = {"off": [], "off again": [], f"{len(kept)} layers": [f"resid_post.{i}" for i in kept],
            "all layers": ["resid_post"]}  # fmt: skip
    with rig.agent("*", stored=True, layers=kept) as agent:
        made = {}
        for arm, chosen in arms.items():
            how: dict[str, Any] = {"hooks": chosen, "socket": agent.socket, "data_bytes": RING} if chosen else {}
            made[arm] = Engine(model, CHUNK, SIZES, **how)
        found: dict[float, dict[str, list[Served]]] = {rate: {arm: [] for arm in made} for rate in rates}
        for turn in range(-1, rounds):
            for rate in rng.sample(rates, len(rates)) if turn >= 0 else [rates[0]]:
                for arm in rng.sample(list(made), len(made)):
                    arrivals = poisson(rate, seconds if turn >= 0 else seconds / 4, PROMPTS, NEW, seed * 1000 + turn)
                    served = serve(made[arm], arrivals, prompts, SLOTS)
                    if turn >= 0:  # the first warms up
                        found[rate][arm].append(served)
                    agent.wait_idle(20)
            print(f"serving: round {turn}", flush=True)
        captured = {arm: account(e, agent) for arm, e in made.items() if e.capture is not None}
        table = {f"{rate:g}": {arm: figures(runs) for arm, runs in by.items()} for rate, by in found.items()}
        results.add(name, layers=layers, stored_layers=kept, slots=SLOTS, chunk=CHUNK, prompts=PROMPTS, new=NEW,
                    seconds=seconds, rounds=rounds, seed=seed, rates=table, captured=captured,
                    verify=agent.verify())  # fmt: skip
