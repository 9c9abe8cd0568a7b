"""Fixtures of the tests of engines."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import probe  # noqa: E402

_paths = probe.write_entry(HERE.parents[1] / "build" / "engines-probe")  # vLLM finds the plain hooks there
sys.path[:0] = _paths.split(os.pathsep)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_paths, os.environ.get("PYTHONPATH", "")]))

os.environ |= {
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End as all tests of the project end: what could not run, and one line that counts."""
    import pipeline

    pipeline.summary(terminalreporter)


@pytest.fixture
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """`sonde run` by itself, for one test."""
    yield from _running(tmp_path_factory)


@pytest.fixture(scope="module")
def module_pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """`sonde run` by itself, for the tests of a file."""
    yield from _running(tmp_path_factory)


def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    import pipeline

    folder = tmp_path_factory.mktemp("e")
    run = pipeline.Pipeline(folder, "none")
    run.start_run()
    try:
        yield run
    finally:
        run.stop()
        shutil.rmtree(folder, ignore_errors=True)
