"""`vllm serve` with all its processes, as a subject of the suite: jobs go over HTTP, streamed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import probe
import tiny
from pipeline import Pipeline, free_address, rows_of, wait_closed
from suite import Answer, Hook, Job, Plain, Row
from vllm_offline import ALL, ENGINE, HOOKS

AT_ONCE = 40  # requests under way


class Server:
    """The API server, its engine core and its worker."""

    hooks: Sequence[Hook] = ALL
    sampled: Sequence[Hook] = [("logits", -1)]
    tolerance = 1e-3

    def __init__(self, run: Pipeline, model: Path, folder: Path, name: str, *flags: str, **sonde: Any) -> None:
        """Start it and wait until it answers. sonde: further settings of the plug-in."""
        self.name, self.pipe, self.seen = name, run, folder / f"{name}.probe"
        self.alone_of, self.address = tiny.Alone(model), free_address()
        self.before = 0  # records of plain hooks that belong to no job
        self.log = folder / f"{name}.log"
        options = {k.replace("_", "-"): v for k, v in ENGINE.items()}
        told = {"socket": f"{run.dir}/s", "hooks": [*HOOKS, "ln_final", "logits"], "mode": "complete", "engine": name}
        words = [str(Path(sys.executable).with_name("vllm")), "serve", str(model), "--served-model-name", "tiny",
                 "--port", self.address.rpartition(":")[2], "--host", "127.0.0.1", "--enforce-eager",
                 "--additional-config", json.dumps({"sonde": {**told, **sonde}}), *flags]  # fmt: skip
        for option, value in options.items():
            words += [f"--{option}"] if value is True else [f"--{option}", str(value)]
        env = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_SERVER_DEV_MODE": "1",
               probe.VARIABLE: str(self.seen)}  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(words, env=env, stdout=log, stderr=log, start_new_session=True)
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + 240
        while True:
            try:
                if self.get("/health") is not None:
                    return
            except OSError:
                pass
            if time.monotonic() > end or self._process.poll() is not None:
                self.stop()
                raise RuntimeError(f"vllm serve did not start:\n{self.said()[-6000:]}")
            time.sleep(0.5)

    def said(self) -> str:
        """Give its log."""
        return self.log.read_text(errors="replace")

    def get(self, path: str, body: Any = None) -> bytes:
        """Ask it for a path. Raises OSError."""
        data = None if body is None else json.dumps(body).encode()
        question = urllib.request.Request(f"http://{self.address}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(question, timeout=60) as answer:
            return answer.read()

    def stats(self) -> dict[str, Any]:
        """Ask the worker's plug-in what it captured."""
        return json.loads(self.get("/collective_rpc", {"method": "sonde_stats"}))["results"][0]

    def metric(self, name: str) -> float:
        """Read a counter of vLLM."""
        lines = self.get("/metrics").decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def stop(self) -> None:
        """End all its processes, the workers in their own way."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    # ---- as a subject ----

    def serve(self, jobs: Sequence[Job], rng: random.Random) -> list[Answer]:
        """Serve jobs, some at once; clients that abort close their connection."""
        self.before = probe.records(self.seen)
        return asyncio.run(self._serve(jobs, rng))

    async def _serve(self, jobs: Sequence[Job], rng: random.Random) -> list[Answer]:
        gate = asyncio.Semaphore(AT_ONCE)
        pauses = [rng.random() * 0.02 for _ in jobs]
        connections = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(f"http://{self.address}", connector=connections) as session:
            found = await asyncio.gather(*(self._one(session, gate, *jp) for jp in zip(jobs, pauses, strict=True)))
        return [a for answers in found for a in answers]

    async def _one(self, session: Any, gate: Any, job: Job, pause: float) -> list[Answer]:
        async with gate:
            await asyncio.sleep(pause)
            return await complete(session, job)

    def stored(self) -> Iterable[Row]:
        """Stop the server and give every row."""
        self.told = self.stats()
        self.preempted = int(self.metric("vllm:num_preemptions_total"))
        self.stop()
        self.lake = wait_closed(self.pipe, self.told["epoch"])
        return rows_of(self.lake, self.told["epoch"])

    def plain(self) -> Plain | None:
        """Give what plain hooks in the worker saw."""
        return probe.read(self.seen, self.before)

    def alone(self, tokens: list[int]) -> Mapping[Hook, np.ndarray]:
        """Compute a sequence by itself with Hugging Face."""
        return self.alone_of(tokens)


async def complete(session: Any, job: Job, **xargs: Any) -> list[Answer]:
    """Ask for a completion, and go away after so many tokens if the job says so."""
    body = {"model": "tiny", "prompt": job.prompt, "max_tokens": job.max_tokens, "n": job.samples, "temperature": 1,
            "stream": True, "return_token_ids": True, "ignore_eos": True,
            "vllm_xargs": {"sonde.request_id": job.id, **xargs}}  # fmt: skip
    if job.own != (0, 0):
        body["allowed_token_ids"] = list(range(*job.own))
    tokens: list[list[int]] = [[] for _ in range(job.samples)]
    finish = ["abort"] * job.samples
    async with session.post("/v1/completions", json=body, headers={"X-Request-Id": job.id}) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            for c in json.loads(line[6:])["choices"]:
                tokens[c["index"]] += c["token_ids"] or []
                finish[c["index"]] = c["finish_reason"] or finish[c["index"]]
            if job.abort_after and max(map(len, tokens)) >= job.abort_after:
                answer.close()
                break
    return [Answer(job.id, i, tokens[i], finish[i]) for i in range(job.samples)]
