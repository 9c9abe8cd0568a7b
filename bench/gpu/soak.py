"""Part 7: several engines on one GPU serve for minutes, and nothing may grow: memory, threads, descriptors.

Each engine is a process with its own copy of the model, at half of the rate that it could serve, and captures three
layers; one agent, bus and table take all of it. Every few seconds the resident memory, goroutines or threads, open
descriptors and the memory of the GPU are noted. Growth is the median of the last third over that of the middle third.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import decoder
import rig
import torch
from engine import Engine, poisson, serve

LAYERS = {"qwen3-8b": 12, "llama-3.1-8b": 12}  # of each engine, so that several find room on one GPU
RATE = 4.0 if rig.ON_GPU else 8.0  # requests a second, of each engine
EVERY = 5.0 if rig.ON_GPU else 0.5
SLOTS, CHUNK, PROMPTS, NEW = (32, 128, (64, 256), (32, 128)) if rig.ON_GPU else (2, 8, (4, 12), (3, 8))


@torch.no_grad()
def child(shape: str, socket: str, seconds: float, seed: int) -> None:
    """Serve for so long; print what was captured."""
    layers = LAYERS.get(shape, 0)
    model = decoder.make(shape, SLOTS, PROMPTS[1] + NEW[1], rig.DEVICE, layers)
    last = model.config.num_hidden_layers - 1
    hooks = sorted({f"resid_post.{i}" for i in (0, last // 2, last)})
    engine = Engine(model, CHUNK, [SLOTS // 2, SLOTS], hooks=hooks, socket=socket, data_bytes=1 << 28)
    end, turn, tokens = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        left = min(10.0, end - time.monotonic())
        arrivals = poisson(RATE, left, PROMPTS, NEW, seed * 100000 + turn)
        prompts = torch.randint(3, model.config.vocab_size, (len(arrivals) + 1, PROMPTS[1]), device=rig.DEVICE)
        tokens += serve(engine, arrivals, prompts, SLOTS).tokens
        turn += 1
    engine.close()
    stats = engine.capture.stats()
    print(json.dumps({"tokens": tokens, "captured_rows": stats.captured_rows, "dropped": stats.dropped_rows,
                      "aborted": stats.aborted_rows, "problems": stats.problems,
                      "epoch": engine.capture.epoch}), flush=True)  # fmt: skip


def process(pid: int) -> dict[str, float]:
    """Read a process's resident MiB, threads and descriptors."""
    status = dict(x.split(":", 1) for x in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {"rss_mib": int(status["VmRSS"].split()[0]) / 1024, "threads": int(status["Threads"]),
            "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir()))}  # fmt: skip


def sample(agent: rig.Agent, engines: list[subprocess.Popen[str]]) -> dict[str, float]:
    """Note all gauges."""
    out = {f"agent {k}": v for k, v in process(agent.process.pid).items()}
    out["agent goroutines"] = agent.metric("go_goroutines")
    out["agent heap_mib"] = agent.metric("go_memstats_heap_inuse_bytes") / 2**20
    for i, e in enumerate(engines):
        out.update({f"engine {i} {k}": v for k, v in process(e.pid).items()})
    if rig.ON_GPU:
        free, total = torch.cuda.mem_get_info()
        out["gpu mib"] = (total - free) / 2**20
    return out


def growth(samples: list[dict[str, float]]) -> dict[str, Any]:
    """Compare the last third with the middle one."""
    third = max(len(samples) // 3, 1)
    out = {}
    for name in samples[-1]:
        middle, last = (statistics.median(s[name] for s in part) for part in
                        (samples[third : 2 * third] or samples, samples[-third:]))  # fmt: skip
        out[name] = {"middle": round(middle, 1), "last": round(last, 1)}
    return out


def run(results: rig.Results, shape: str, seed: int, seconds: float, engines: int) -> None:
    """Soak."""
    seconds = seconds or (480.0 if rig.ON_GPU else 4.0)
    name = f"soak: {engines} engines, {seconds:.0f} s"
    if results.has(name):
        return
    with rig.agent("*", stored=True) as agent:
        words = [agent.socket, str(seconds)]
        made = [subprocess.Popen([sys.executable, __file__, shape, *words, str(seed + i)], stdout=subprocess.PIPE,
                                 text=True) for i in range(engines)]  # fmt: skip
        samples = []
        try:
            while all(e.poll() is None for e in made):
                time.sleep(EVERY)
                try:
                    samples.append(sample(agent, made))
                except (OSError, urllib.error.URLError, KeyError):
                    break  # one of them ends
            said = [json.loads(e.communicate(timeout=180)[0].splitlines()[-1]) for e in made]
        finally:
            for e in made:
                e.kill()
        stored = sum(_stored(agent, s["epoch"]) for s in said)
        captured = sum(s["captured_rows"] for s in said)
        lost = sum(sum(s["dropped"].values()) + s["aborted"] for s in said)
        results.add(name, shape=shape, layers=LAYERS.get(shape, 0), rate=RATE, seed=seed, samples=len(samples),
                    growth=growth(samples), engines=said, stored_rows=stored,
                    unaccounted=captured - stored - lost, verify=agent.verify())  # fmt: skip


def _stored(agent: rig.Agent, epoch: str) -> int:
    lake = agent.wait_closed(epoch, 240)
    return lake.table("vectors", columns=["epoch"], epoch=epoch).num_rows


if __name__ == "__main__":
    child(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
