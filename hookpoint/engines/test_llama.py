"""The contract suite on llama.cpp."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="NOT RUN: llama.cpp is not installed; install-llama.sh installs it")

from llama_served import Served  # noqa: E402
from pipeline import Pipeline  # noqa: E402
from suite import Canaries, run  # noqa: E402


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get("SONDE_SEED", "20261125"))
    print(f"SONDE_SEED={seed}")
    return random.Random(seed)


@pytest.mark.parametrize("unified", [True, False], ids=["one cache", "a cache of each sequence"])
def test_no_row_of_llama_cpp_is_wrong(pipe: Pipeline, tmp_path: Path, rng: random.Random, unified: bool) -> None:
    canaries = Canaries(rng, 80)
    jobs = canaries.jobs(32, (4, 32), (4, 24), aborts=0.15)
    subject = Served(pipe, tmp_path / "m.gguf", canaries.vocabulary, unified)
    verdict = run(subject, jobs, rng)
    caches = "one cache" if unified else "a cache of each sequence"
    print(f"llama.cpp, {caches}: {verdict}; {subject.preempted} preemptions")
    assert verdict.wrong == [], verdict.wrong[:10]
    stats = subject.stats
    assert not any(stats[n] for n in ("unidentified", "failures", "dropped_rows", "silent", "aborted_rows")), stats
    assert verdict.widest >= 4 and verdict.aborted and verdict.recomputed and (verdict.cached or not unified)
