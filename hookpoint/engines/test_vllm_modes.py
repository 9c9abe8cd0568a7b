"""Modes of vLLM beside the plain one: compiled, with and without its cache; and that capture changes no token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="NOT RUN: vLLM is not installed; hookpoint/engines/install.sh installs it")

import tiny  # noqa: E402
import vllm  # noqa: E402
from pipeline import Pipeline  # noqa: E402
from suite import Canaries, Job, run  # noqa: E402
from vllm_offline import Offline  # noqa: E402

REQUESTS = 48


@pytest.fixture(scope="module")
def canaries() -> Canaries:
    return Canaries(random.Random(7), 3 * REQUESTS)


@pytest.fixture(scope="module")
def model(canaries: Canaries, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("model"), canaries.vocabulary)


@pytest.fixture(scope="module")
def jobs(canaries: Canaries) -> list[Job]:
    return canaries.jobs(64, (4, 40), (4, 40), aborts=0.1)


@pytest.fixture(autouse=True, scope="module")
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.mark.parametrize("cache", ["compiled", "compiled, from the cache"])
def test_no_row_of_a_compiled_model_is_wrong(
    pipe: Pipeline, tmp_path: Path, model: Path, jobs: list[Job], cache: str
) -> None:
    subject = Offline(pipe, model, tmp_path, "compiled", plain=False, enforce_eager=False)
    runner = subject.engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    assert not runner.model.model.do_not_compile, "this vLLM does not compile here"
    mine = jobs[:REQUESTS] if cache == "compiled" else jobs[REQUESTS : 2 * REQUESTS]
    verdict = run(subject, mine, random.Random(8))
    print(f"vLLM, {cache}: {verdict}")
    assert verdict.wrong == [], verdict.wrong[:10]
    assert not any(subject.stats[n] for n in ("unidentified", "failures", "dropped_rows", "silent")), subject.stats
    assert verdict.rows > 20_000


def test_capture_changes_no_token(pipe: Pipeline, tmp_path: Path, model: Path, jobs: list[Job]) -> None:
    greedy = vllm.SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": j.prompt} for j in jobs[2 * REQUESTS :]]

    def tokens(subject: Offline) -> list[list[int]]:
        out = [list(o.outputs[0].token_ids) for o in subject.llm.generate(prompts, greedy, use_tqdm=False)]
        if subject.captures:
            assert list(subject.stored())
        else:
            subject.engine.engine_core.shutdown()
        return out

    without = tokens(Offline(pipe, model, tmp_path, "without", capture=False, plain=False))
    captured = tokens(Offline(pipe, model, tmp_path, "with", plain=False))
    assert without == captured and len(without) == REQUESTS
    print(f"{REQUESTS} requests of 24 tokens: the same with capture and without")
