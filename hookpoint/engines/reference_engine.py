"""Sonde's own engine over HTTP, as a subject of the suite; its witness, written past the ring, is the plain hook."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tiny
from pipeline import ROOT, Pipeline, read_witness, rows_of
from suite import DIGEST, Answer, Hook, Job, Plain, Row

import sonde

MODEL = ROOT / "models" / "trilingual"
LAYERS = 4
HOOKS = ("resid_post", "attn_out", "mlp_out", "resid_mid")
AT_ONCE = 40


class Reference:
    """`sonde engine`, with few blocks of keys and values, so that sequences are preempted."""

    name = "sonde engine"
    hooks: Sequence[Hook] = [*((h, i) for h in HOOKS for i in range(LAYERS)), ("final_ln", -1)]
    sampled: Sequence[Hook] = [("final_logits", -1)]
    tolerance = 1e-3

    def __init__(self, folder: Path) -> None:
        """Start the engine and its pipeline."""
        self._witness = folder / "witness"
        flags = ("--kv-blocks", "72", "--prefill-chunk", "96", "--max-batch", "24", "--threads", "1",
                 "--ring-mode", "complete", "--wait-agent", "20s", "--witness", str(self._witness),
                 "--hooks", ",".join((*HOOKS, "final_ln", "final_logits", "token_ids")))  # fmt: skip
        self.pipe = Pipeline(folder, str(MODEL), engine_args=flags)
        self.pipe.start()
        self.alone_of = tiny.Alone(MODEL)
        self._jobs: dict[str, Job] = {}
        self._rows: list[Row] = []

    def serve(self, jobs: Sequence[Job], rng: random.Random) -> list[Answer]:
        """Serve jobs on threads; clients that abort close their connection."""
        self._jobs = {j.id: j for j in jobs}
        waiting, out, lock = list(jobs), [], threading.Lock()  # type: list[Job], list[Answer], threading.Lock

        def work() -> None:
            while True:
                with lock:
                    if not waiting:
                        return
                    job = waiting.pop(0)
                found = self._complete(job)
                with lock:
                    out.extend(found)

        threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
        for t in threads:
            t.start()
            time.sleep(rng.random() * 0.02)
        for t in threads:
            t.join()
        return out

    def _complete(self, job: Job) -> list[Answer]:
        body = {"prompt": job.prompt, "max_tokens": job.max_tokens, "temperature": 0, "n": job.samples,
                "stream": True, "sonde": {"request_id": job.id}}  # fmt: skip
        question = urllib.request.Request(f"http://{self.pipe.engine}/v1/completions", json.dumps(body).encode(),
                                          {"Content-Type": "application/json"})  # fmt: skip
        finish, pieces = ["abort"] * job.samples, 0
        with urllib.request.urlopen(question, timeout=300) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                for c in json.loads(line[6:])["choices"]:
                    finish[c["index"]] = c["finish_reason"] or finish[c["index"]]
                pieces += 1
                if job.abort_after and pieces >= job.abort_after:
                    break
        return [Answer(job.id, i, None, finish[i]) for i in range(job.samples)]

    def stored(self) -> Iterable[Row]:
        """Stop the engine and give every row."""
        with urllib.request.urlopen(f"http://{self.pipe.engine}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        self.preempted = int(sum(float(x.split()[-1]) for x in lines if x.startswith("sonde_engine_preemptions_total")))
        self.pipe.stop_process("engine")
        end = time.monotonic() + 180
        while True:
            lake = sonde.open_lake(self.pipe.lake)
            facts = lake.table("ledger", columns=["fact", "epoch"]).to_pylist()
            closed = [f["epoch"] for f in facts if f["fact"] == "closed"]
            if closed:
                self._rows = list(rows_of(lake, closed[0]))
                return self._rows
            assert time.monotonic() < end, self.pipe.log()
            time.sleep(0.2)

    def plain(self) -> Plain | None:
        """Give what the witness wrote down, each row for the token of the sequence that it names."""
        tokens = {(r.request, r.sample, r.position): int(r.values[0]) for r in self._rows if r.hook == "token_ids"}
        for job in self._jobs.values():
            for sample in range(job.samples):
                tokens |= {(job.id, sample, p): t for p, t in enumerate(job.prompt)}
        out, computed = Plain(), set()
        for (request, sample, position, pass_, hook, layer), row in read_witness(self._witness).items():
            place = (tokens.get((request, sample, position), -1), position)
            out.note((hook, layer), row[:DIGEST], place)
            if (request, sample, position, pass_) not in computed:
                computed.add((request, sample, position, pass_))
                out.computed[place] += 1
        return out

    def alone(self, tokens: list[int]) -> Mapping[Hook, np.ndarray]:
        """Compute a sequence by itself with Hugging Face, from the same weights."""
        found = dict(self.alone_of(tokens))
        found["final_ln", -1], found["final_logits", -1] = found.pop(("ln_final", -1)), found.pop(("logits", -1))
        return found
