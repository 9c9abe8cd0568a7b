"""Part 3: batches of generate with everything behind them: agent, bus, Parquet; the table is verified at the end."""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from typing import Any

import rig
import torch

import sonde

BATCH, PROMPT, NEW, ROUNDS = 32, 64, 64, 3
RING = 1 << 30

#: Arms: hooks that are captured.
ARMS: dict[str, list[str]] = {
    "off": [],
    "off again": [],
    "resid_post of every 8th layer": [f"resid_post.{i}" for i in range(3, 36, 8)],
    "resid_post of all layers": ["resid_post"],
}


@torch.no_grad()
def run(results: rig.Results, layers: int, seed: int) -> None:
    """Measure tokens a second of each arm."""
    name = f"storage: eager generate, batch {BATCH}"
    if results.has(name):
        return
    model, rng = rig.model("8b", layers), random.Random(seed)
    chosen = {k: [h for h in v if "." not in h or int(h.split(".")[1]) < model.config.num_hidden_layers]
              for k, v in ARMS.items()}  # fmt: skip
    ids = torch.randint(3, 900, (BATCH, PROMPT), device="cuda")
    mask = torch.ones_like(ids)
    figures: dict[str, dict[str, Any]] = {k: {"tokens_per_s": []} for k in chosen}
    with rig.agent("*", stored=True) as agent:
        for turn in range(ROUNDS + 1):
            for arm in rng.sample(list(chosen), len(chosen)):
                capture = None
                with contextlib.ExitStack() as stack:
                    if chosen[arm]:
                        capture = sonde.attach(model, chosen[arm], socket=agent.socket, data_bytes=RING)
                        stack.callback(capture.detach, 60)
                        capture.wait_attached()
                    model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
                    torch.cuda.synchronize()
                    seconds = time.perf_counter() - start
                if turn:  # the first warms up
                    figures[arm]["tokens_per_s"].append(round(BATCH * NEW / seconds, 1))
                if capture is not None:
                    _note(figures[arm], capture, agent.wait_stored(capture, 180))
        for f in figures.values():
            f["median"] = statistics.median(f["tokens_per_s"])
        results.add(name, layers=model.config.num_hidden_layers, batch=BATCH, prompt=PROMPT, new=NEW, rounds=ROUNDS,
                    seed=seed, arms=figures, verify=agent.verify())  # fmt: skip


def _note(into: dict[str, Any], capture: sonde.Capture, lake: sonde.Lake) -> None:
    stats = capture.stats()
    rows = lake.table("vectors", columns=["epoch"], epoch=capture.epoch).num_rows
    tokens = lake.table("tokens", columns=["epoch"], epoch=capture.epoch).num_rows
    into["captured_rows"] = into.get("captured_rows", 0) + stats.captured_rows
    into["stored_rows"] = into.get("stored_rows", 0) + rows + tokens
    into["aborted_rows"] = into.get("aborted_rows", 0) + stats.aborted_rows
    dropped = into.setdefault("dropped_rows", {})
    for reason, n in stats.dropped_rows.items():
        dropped[reason] = dropped.get(reason, 0) + n
    into.setdefault("problems", {}).update(stats.problems)
