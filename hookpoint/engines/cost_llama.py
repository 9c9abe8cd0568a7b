"""What capture adds to llama.cpp on a CPU, beside a plain callback in the same run.

One model decodes the same greedy batch again and again. In each round every arm has a turn, in random order, in a
context of its own. Given is the processor time of the thread that decodes, per decoded token: the median of the rounds,
and of the differences to `nothing` in the same round, with a 95 % interval by bootstrap. `again` is `nothing` once
more, and shows the noise. `plain callback` copies the same nodes with ctypes, as a user would, and keeps the last ones.
"""

from __future__ import annotations

import ctypes as c
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import llama_cpp
import llama_served
import llama_tiny
import numpy as np
from pipeline import Pipeline

from sonde.adapters.contract import Request
from sonde.adapters.llamacpp import Capture
from sonde.recorder import WriterSettings
from sonde.step import Finish

BATCH, TOKENS, ROUNDS, LAYERS, VOCABULARY = 8, 40, 15, 8, 256


class Plain:
    """A callback that copies the residual stream of all layers."""

    def __init__(self) -> None:
        """Nothing is copied yet."""
        self.kept: dict[bytes, np.ndarray] = {}
        self.call = llama_cpp.ggml_backend_sched_eval_callback(self._hear)

    def prepare(self, params: Any) -> Any:
        """Put it into the parameters of a context."""
        params.cb_eval = self.call
        return params

    def _hear(self, tensor: int, ask: bool, _data: object) -> bool:
        name = c.string_at(tensor + 256)
        if name.startswith(b"l_out-") and not ask:
            ne = (c.c_int64 * 4).from_address(tensor + 16)
            at = c.c_void_p.from_address(tensor + 248).value
            self.kept[name] = np.ctypeslib.as_array((c.c_float * (ne[0] * ne[1])).from_address(at)).copy()
        return not ask or name.startswith(b"l_out-")


def turn(model: llama_served.Model, decode: Any) -> tuple[float, list[list[int]]]:
    """Decode; give microseconds per token, and the tokens."""
    tokens = [[10 + i] for i in range(BATCH)]
    spent = 0
    for position in range(TOKENS):
        batch = model.fill((t[-1], position, i) for i, t in enumerate(tokens))
        before = time.thread_time_ns()
        assert decode(model.context, batch) == 0
        spent += time.thread_time_ns() - before
        for i, t in enumerate(tokens):
            t.append(int(model.logits(i).argmax()))
    return spent / 1e3 / (BATCH * TOKENS), tokens


def captured(path: Path, socket: str, hook: str) -> tuple[float, list[list[int]]]:
    """Take a turn with capture."""
    capture = Capture(WriterSettings(socket, engine_instance="cost"), [hook])
    model = llama_served.Model(path, capture.prepare, unified=True)
    capture.attach(model.model)
    capture.recorder.wait_attached(20)
    for i in range(BATCH):
        capture.open(i, Request(f"r{i}", 1))
    out = turn(model, capture.decode)
    for i in range(BATCH):
        capture.end(i, Finish.LENGTH, TOKENS)
    stats = capture.stats()
    capture.close()
    model.close()
    assert stats["captured_rows"] and not stats["problems"] and not stats["dropped_rows"], stats
    return out


def bare(path: Path, prepare: Any) -> tuple[float, list[list[int]]]:
    """Take a turn without capture."""
    model = llama_served.Model(path, prepare, unified=True)
    out = turn(model, llama_cpp.llama_decode)
    model.close()
    return out


def main() -> None:
    """Measure and print."""
    rng, plain = random.Random(1), Plain()
    with tempfile.TemporaryDirectory() as folder:
        path = llama_tiny.write(Path(folder) / "m.gguf", VOCABULARY, LAYERS)
        run = Pipeline(Path(folder), "none")
        run.start_run()
        arms = {
            "nothing": lambda: bare(path, lambda p: p), "again": lambda: bare(path, lambda p: p),
            "plain callback, all layers": lambda: bare(path, plain.prepare),
            "sonde, 1 layer": lambda: captured(path, f"{folder}/s", "resid_post.4"),
            "sonde, all layers": lambda: captured(path, f"{folder}/s", "resid_post"),
        }  # fmt: skip
        took: dict[str, list[float]] = {name: [] for name in arms}
        said = set()
        try:
            for i in range(ROUNDS + 1):
                for name in rng.sample(list(arms), len(arms)):
                    spent, tokens = arms[name]()
                    said.add(str(tokens))
                    if i:
                        took[name].append(spent)
        finally:
            run.stop()
    assert len(said) == 1, "capture changed a token"
    print(f"{BATCH} sequences of {TOKENS} tokens, {LAYERS} layers of {llama_tiny.WIDTH}, {ROUNDS} rounds; "
          "processor time, microseconds per token")  # fmt: skip
    for name, values in took.items():
        differences = [v - n for v, n in zip(values, took["nothing"], strict=True)]
        medians = sorted(statistics.median(rng.choices(differences, k=ROUNDS)) for _ in range(2000))
        print(f"{name:<27} {statistics.median(values):8.1f}   added {statistics.median(differences):6.1f} "
              f"({medians[50]:.1f} … {medians[1949]:.1f})")  # fmt: skip
    print("all turns generated the same tokens")


if __name__ == "__main__":
    main()
