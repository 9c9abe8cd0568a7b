"""The contract suite on Sonde's own engine and on continuous batching of Hugging Face."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="NOT RUN: torch is not installed")
transformers = pytest.importorskip("transformers", reason="NOT RUN: transformers is not installed")
if int(transformers.__version__.split(".")[1]) < 20:
    pytest.skip("NOT RUN: this environment is that of vLLM, with an older transformers", allow_module_level=True)

import tiny  # noqa: E402
from huggingface_batched import Batched  # noqa: E402
from pipeline import Pipeline  # noqa: E402
from reference_engine import Reference  # noqa: E402
from suite import Canaries, run  # noqa: E402


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get("SONDE_SEED", "20261125"))
    print(f"SONDE_SEED={seed}")
    return random.Random(seed)


def test_no_row_of_sondes_engine_is_wrong(tmp_path_factory: pytest.TempPathFactory, rng: random.Random) -> None:
    folder = tmp_path_factory.mktemp("r")
    subject = Reference(folder)
    try:
        jobs = Canaries(rng, 200).jobs(64, (4, 40), (4, 24), aborts=0.1, bound=False)
        verdict = run(subject, jobs, rng)
    finally:
        subject.pipe.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"Sonde's engine: {verdict}; {subject.preempted} preemptions")
    assert verdict.wrong == [], verdict.wrong[:10]
    assert verdict.rows >= 100_000 and verdict.cached and verdict.aborted and verdict.recomputed


def test_no_row_of_continuous_batching_is_wrong(pipe: Pipeline, tmp_path: Path, rng: random.Random) -> None:
    canaries = Canaries(rng, 160)
    jobs = [j for j in canaries.jobs(24, (4, 24), (4, 24), aborts=0.1, bound=False) if j.samples == 1]
    subject = Batched(pipe, tiny.write(tmp_path / "model", canaries.vocabulary))
    verdict = run(subject, jobs, rng)
    print(f"Hugging Face: {verdict}")
    assert verdict.wrong == [], verdict.wrong[:10]
    assert subject.stats.unidentified == subject.stats.failures == 0, subject.stats
    assert verdict.rows >= 40_000 and verdict.widest >= 16 and verdict.aborted
