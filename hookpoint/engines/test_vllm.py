"""The contract suite on vLLM, in this process."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="NOT RUN: vLLM is not installed; hookpoint/engines/install.sh installs it")

import tiny  # noqa: E402
from pipeline import Pipeline  # noqa: E402
from suite import Canaries, run  # noqa: E402
from vllm_offline import Offline  # noqa: E402

REQUESTS = 240


@pytest.fixture(scope="session")
def rng() -> random.Random:
    seed = int(os.environ.get("SONDE_SEED", "20261125"))
    print(f"SONDE_SEED={seed}")
    return random.Random(seed)


def test_no_row_of_vllm_is_wrong(pipe: Pipeline, tmp_path: Path, rng: random.Random) -> None:
    canaries = Canaries(rng, REQUESTS)
    model = tiny.write(tmp_path / "model", canaries.vocabulary)
    jobs = canaries.jobs(64, (4, 40), (4, 40), aborts=0.1)
    subject = Offline(pipe, model, tmp_path, "offline")
    verdict = run(subject, jobs, rng)
    print(f"vLLM in this process: {verdict}; {subject.preempted} preemptions")
    assert verdict.wrong == [], verdict.wrong[:10]
    assert not any(subject.stats[n] for n in ("unidentified", "failures", "dropped_rows", "silent")), subject.stats
    assert verdict.rows >= 100_000 and verdict.widest >= 16 and verdict.cached and verdict.aborted
    assert subject.preempted and verdict.recomputed
